"""`promptcomp judge A B`: which of two runs' texts a language model prefers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from promptcomp.commands.asking import Asking, takes_asking
from promptcomp.commands.common import JsonOption, console_for
from promptcomp.errors import ConfigError

_SIDE = "A run directory, a folder with predictions.jsonl, or a JSONL/CSV file with id, instruction, input, text."


@takes_asking
def judge(
    a: Annotated[Path, Argument(metavar="A", help=f"The side whose win rate is wanted. {_SIDE}")],
    b: Annotated[Path, Argument(metavar="B", help="The other side, likewise.")],
    row_a: Annotated[str, Option(help="Row of a run: method, full_prompt, no_prompt.")] = "method",
    row_b: Annotated[str, Option(help="The same for B.")] = "method",
    split: Annotated[list[str] | None, Option(help="Only this split; may be repeated.")] = None,
    examples: Annotated[int | None, Option(min=1, help="Most examples of each split.")] = None,
    seed: Annotated[int, Option(help="Of the order of answers and the choice of examples.")] = 42,
    prompt: Annotated[Path | None, Option(help="A judge prompt of your own (docs/judge.md).")] = None,
    max_tokens: Annotated[int, Option(min=1, help="Most tokens of the judge's answer.")] = 300,
    attempts: Annotated[int, Option(min=1, help="Most times to ask for readable JSON.")] = 3,
    malformed: Annotated[str, Option(help="Unread answers: drop them or count a tie.")] = "drop",
    retry_malformed: Annotated[
        bool, Option("--retry-malformed", help="Ask anew where an earlier call got no readable answer.")
    ] = False,
    ask_identical: Annotated[
        bool, Option("--ask-identical", help="Ask about identical answers too; else they are ties for free.")
    ] = False,
    output: Annotated[
        Path | None, Option("--output", "-o", help="File of judgements; default: in A, named after both sides.")
    ] = None,
    as_json: JsonOption = False,
    *,
    asking: Asking,
) -> None:
    """Pairwise win rate of A over B, judged by a language model. The same command continues where it was stopped."""
    if malformed not in ("drop", "tie"):
        raise ConfigError(f"--malformed {malformed!r} is not known; choose drop or tie")
    name, endpoint = asking.endpoint("judge")
    from promptcomp.judge.judging import JudgeSession, JudgeSettings, Malformed, print_result

    policy: Malformed = "tie" if malformed == "tie" else "drop"
    settings = JudgeSettings(
        a=a,
        b=b,
        judge=name,
        url=endpoint.url if endpoint else None,
        row_a=row_a,
        row_b=row_b,
        splits=tuple(split or ()),
        examples=examples,
        seed=seed,
        prompt=prompt,
        max_tokens=max_tokens,
        attempts=attempts,
        ask_identical=ask_identical,
        retry_malformed=retry_malformed,
        output=output,
    )
    console = console_for(as_json)
    with JudgeSession(settings) as session:
        asking.ask(session, endpoint, console)
        result = session.write(policy, asking.prices)
        if as_json:
            print(json.dumps(result))
        else:
            print_result(session, result, console)
