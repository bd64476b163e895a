"""`promptcomp judge A B`: which of two runs' texts a language model prefers."""

from __future__ import annotations

from functools import partial

from promptcomp.commands.asking import Asking, takes
from promptcomp.commands.common import JsonOption, console_for, tell
from promptcomp.errors import ConfigError
from promptcomp.judge import JudgeOptions


@takes(options=JudgeOptions, asking=Asking)
def judge(as_json: JsonOption = False, *, options: JudgeOptions, asking: Asking) -> None:
    """Pairwise win rate of A over B, judged by a language model. The same command continues where it was stopped."""
    if options.malformed not in ("drop", "tie"):
        raise ConfigError(f"--malformed {options.malformed!r} is not known; choose drop or tie")
    name, endpoint = asking.endpoint("judge")
    from promptcomp.judge.judging import JudgeSession, print_result

    with JudgeSession(options, name, endpoint.url if endpoint else None) as session:
        asking.ask(session, endpoint, console_for(as_json))
        result = session.write(asking.prices)
        tell(result, partial(print_result, session, result), as_json)
