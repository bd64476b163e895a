"""`promptcomp judge A B`: which of two runs' texts a language model prefers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from promptcomp.commands import asking
from promptcomp.commands.common import JsonOption, console_for
from promptcomp.errors import ConfigError

_SIDE = "A run directory, a folder with predictions.jsonl, or a JSONL/CSV file with id, instruction, input, text."


def judge(
    a: Annotated[Path, typer.Argument(metavar="A", help=f"The side whose win rate is wanted. {_SIDE}")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The other side, likewise.")],
    model: Annotated[str | None, typer.Option("--model", help="The judge's name at an endpoint.")] = None,
    base_url: asking.BaseUrlOption = None,
    api_key_env: asking.KeyOption = "OPENAI_API_KEY",
    local: Annotated[
        str | None,
        typer.Option("--local", metavar="PATH", help="Judge with a local causal LM instead (folder or hub)."),
    ] = None,
    row_a: Annotated[str, typer.Option("--row-a", help="Row of a run: method, full_prompt, no_prompt.")] = "method",
    row_b: Annotated[str, typer.Option("--row-b", help="The same for B.")] = "method",
    split: Annotated[list[str] | None, typer.Option("--split", help="Only this split; may be repeated.")] = None,
    examples: Annotated[int | None, typer.Option("--examples", min=1, help="Most examples of each split.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of answers and the choice of examples.")] = 42,
    prompt: Annotated[Path | None, typer.Option("--prompt", help="A judge prompt of your own (docs/judge.md).")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens of the judge's answer.")] = 300,
    attempts: Annotated[int, typer.Option("--attempts", min=1, help="Most times to ask for readable JSON.")] = 3,
    malformed: Annotated[str, typer.Option("--malformed", help="Unread answers: drop them or count a tie.")] = "drop",
    retry_malformed: Annotated[
        bool, typer.Option("--retry-malformed", help="Ask anew where an earlier call got no readable answer.")
    ] = False,
    ask_identical: Annotated[
        bool, typer.Option("--ask-identical", help="Ask about identical answers too; else they are ties for free.")
    ] = False,
    concurrency: asking.ConcurrencyOption = 4,
    rpm: asking.RpmOption = None,
    tpm: asking.TpmOption = None,
    timeout: asking.TimeoutOption = 120.0,
    retries: asking.RetriesOption = 5,
    device: asking.DeviceOption = "auto",
    batch_size: asking.BatchSizeOption = 8,
    price_in: asking.PriceInOption = None,
    price_out: asking.PriceOutOption = None,
    yes: asking.YesOption = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File of judgements; default: in A, named after both sides.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Pairwise win rate of A over B, judged by a language model. The same command continues where it was stopped."""
    if malformed not in ("drop", "tie"):
        raise ConfigError(f"--malformed {malformed!r} is not known; choose drop or tie")
    name, endpoint = asking.endpoint_of("judge", model, local, base_url, api_key_env, timeout, retries, rpm, tpm)
    from promptcomp.chat import Prices
    from promptcomp.judge.judging import JudgeSession, JudgeSettings, print_result
    from promptcomp.judge.win_rates import Malformed

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
    console, prices = console_for(as_json), Prices(price_in, price_out)
    with JudgeSession(settings) as session:
        asking.ask(
            session,
            endpoint,
            local,
            concurrency=concurrency,
            device=device,
            batch_size=batch_size,
            prices=prices,
            yes=yes,
            console=console,
        )
        result = session.result(policy, prices)
        session.write_result(policy, prices)
        if as_json:
            print(json.dumps(result))
        else:
            print_result(session, result, console)
