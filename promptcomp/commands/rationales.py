"""`promptcomp rationales`: have a teacher explain and label examples."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptcomp.commands.common import ConfigOption, JsonOption, MethodOption, Overrides, console_for
from promptcomp.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from promptcomp.endpoints import Endpoint
    from promptcomp.rationales.job import Prices
    from promptcomp.rationales.session import Extraction

ASKS_FROM = 200
"""More requests than this, or any price, need --yes where nobody can be asked."""
INTERRUPTED = 130


def rationales(
    overrides: Overrides = None,
    method: MethodOption = None,
    config: ConfigOption = None,
    model: Annotated[str | None, typer.Option("--model", help="The teacher's name at an endpoint.")] = None,
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", help="OpenAI-compatible server, up to /v1; default: OPENAI_BASE_URL, else OpenAI."),
    ] = None,
    api_key_env: Annotated[
        str, typer.Option("--api-key-env", help="Environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
    local: Annotated[
        str | None, typer.Option("--local", metavar="PATH", help="Ask a local LM instead (folder or hub name).")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Which split of the data.")] = "train",
    template: Annotated[
        str | None, typer.Option("--template", help="Shipped template or YAML file; default: the data format's.")
    ] = None,
    show_template: Annotated[
        bool, typer.Option("--show-template", help="Print the template (to edit it) and stop.")
    ] = False,
    show_prompt: Annotated[bool, typer.Option("--show-prompt", help="Print the first row's prompt and stop.")] = False,
    rows: Annotated[int | None, typer.Option("--rows", "-n", min=1, help="Only the first so many rows.")] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Answers for each row; the majority's label is kept.")
    ] = 1,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0, help="0: greedy; default: 0, or 0.7 for several samples.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Longest answer; default: the template's.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Other samples for another seed.")] = 0,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Most requests at a time.")] = 4,
    rpm: Annotated[int | None, typer.Option("--rpm", min=1, help="Most requests in a minute.")] = None,
    tpm: Annotated[int | None, typer.Option("--tpm", min=1, help="Most tokens in a minute.")] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.01, help="Seconds for one request.")] = 120.0,
    retries: Annotated[int, typer.Option("--retries", min=0, help="Further tries after a passing fault.")] = 5,
    retry_refused: Annotated[
        bool, typer.Option("--retry-refused", help="Ask again what was refused in an earlier call.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="For --local: auto, cpu, cuda.")] = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="For --local.")] = 8,
    price_in: Annotated[float | None, typer.Option("--price-in", min=0, help="Per million prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option("--price-out", min=0, help="Per million answer tokens.")] = None,
    no_ask: Annotated[
        bool, typer.Option("--no-ask", help="Ask nothing: read again the texts that are there, and report.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Start without asking.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Rows (JSONL); default: rationales/DATA-SPLIT-TEACHER.jsonl.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Rationales and labels from a teacher, by few-shot chain of thought. The same command continues where it stopped.

    The data is an experiment's (--method, --config) or named by data.* keys. What it writes is data for
    data.name=rationale_files.
    """
    from promptcomp.rationales.job import Job, Prices, load_data, pick_template
    from promptcomp.rationales.session import Extraction

    if show_template:
        _print_template(template, method, config, overrides)
        return
    data = load_data(method, config, overrides or ())
    if show_prompt:
        from promptcomp.datamodules import build_rationales

        print(pick_template(template, data).text(build_rationales(data).rows(split)[0]))
        return
    if (model is None) == (local is None):
        raise ConfigError("name the teacher: either --model NAME (with --base-url URL) or --local PATH")
    from promptcomp.endpoints import AskingStopped, Endpoint
    from promptcomp.rationales.show import print_report

    job = Job(
        data=data,
        teacher=model if model is not None else _local_identity(str(local)),
        chat=model is not None,
        split=split,
        template=template,
        rows=rows,
        samples=samples,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        retry_refused=retry_refused,
        output=output,
    )
    console, prices = console_for(as_json), Prices(price_in, price_out)
    with Extraction(job) as extraction:
        try:
            if extraction.todo and not no_ask and model is not None:
                endpoint = Endpoint(
                    model=model,
                    base_url=base_url,
                    api_key_env=api_key_env,
                    timeout=timeout,
                    retries=retries,
                    requests_per_minute=rpm,
                    tokens_per_minute=tpm,
                )
                _confirm(extraction, prices, yes, console)
                _ask_endpoint(extraction, endpoint, concurrency, console)
            elif extraction.todo and not no_ask:
                _ask_local(extraction, str(local), device, batch_size, console)
        except AskingStopped as stop:
            _print_stop(extraction, stop)
            raise typer.Exit(INTERRUPTED if stop.interrupted else 1) from None
        report = extraction.write(prices)
        if as_json:
            print(json.dumps(report))
        else:
            print_report(report, extraction.kept, console)


def _print_template(name: str | None, method: str | None, config: Path | None, overrides: list[str] | None) -> None:
    from promptcomp.evaluation.files import read_text
    from promptcomp.rationales.job import load_data
    from promptcomp.rationales.template import shipped_templates, template_path

    if name is None:
        data = load_data(method, config, overrides or ())
        name = str(data.model_dump().get("task") or data.model_dump().get("format"))
        if name not in shipped_templates():
            raise ConfigError(
                f"this data has no template of its own; --template one of {', '.join(shipped_templates())}"
            )
    print(read_text(template_path(name), "template"), end="")


def _confirm(extraction: Extraction, prices: Prices, yes: bool, console: Console) -> None:
    """Tell what is about to be asked, and ask whether it should be."""
    from promptcomp.rationales.show import estimate_text

    estimate = extraction.estimate(prices)
    console.print(estimate_text(estimate), markup=False, highlight=False)
    if yes:
        return
    if sys.stdin.isatty():
        if not typer.confirm("Start?", err=True):
            raise typer.Exit(0)
    elif estimate[3] is not None or estimate[0] > ASKS_FROM:
        raise ConfigError(f"{estimate_text(estimate)}: nobody is here to agree; give --yes to start")


def _ask_endpoint(extraction: Extraction, endpoint: Endpoint, concurrency: int, console: Console) -> None:
    from promptcomp.rationales.show import progress

    with progress(console, len(extraction.todo)) as seen:
        notes = extraction.ask_endpoint(endpoint, concurrency, seen)
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False)


def _ask_local(extraction: Extraction, path: str, device: str, batch_size: int, console: Console) -> None:
    from promptcomp.rationales.local import LocalTeacher
    from promptcomp.rationales.show import progress
    from promptcomp.run.quiet import quiet

    with quiet():
        teacher = LocalTeacher(path, device)
    with progress(console, len(extraction.todo)) as seen:
        extraction.ask_local(teacher, batch_size, seen)


def _print_stop(extraction: Extraction, stop: Exception) -> None:
    left = sum(request.key not in extraction.record.completions for request in extraction.todo)
    done = len(extraction.todo) - left
    print(
        f"error: {stop}; {done} of {len(extraction.todo)} texts were written in this call and all are kept in"
        f" {extraction.record.path}; the same command continues with the other {left}",
        file=sys.stderr,
    )


def _local_identity(path: str) -> str:
    from promptcomp.rationales.local import local_identity

    return local_identity(path)
