"""`promptcomp rationales`: have a teacher explain and label examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptcomp.commands import asking
from promptcomp.commands.common import ConfigOption, JsonOption, MethodOption, Overrides, console_for, show
from promptcomp.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from promptcomp.rationales.session import Extraction


def rationales(
    overrides: Overrides = None,
    method: MethodOption = None,
    config: ConfigOption = None,
    model: Annotated[str | None, typer.Option("--model", help="The teacher's name at an endpoint.")] = None,
    base_url: asking.BaseUrlOption = None,
    api_key_env: asking.KeyOption = "OPENAI_API_KEY",
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
    concurrency: asking.ConcurrencyOption = 4,
    rpm: asking.RpmOption = None,
    tpm: asking.TpmOption = None,
    timeout: asking.TimeoutOption = 120.0,
    retries: asking.RetriesOption = 5,
    retry_refused: Annotated[
        bool, typer.Option("--retry-refused", help="Ask again what was refused in an earlier call.")
    ] = False,
    device: asking.DeviceOption = "auto",
    batch_size: asking.BatchSizeOption = 8,
    price_in: asking.PriceInOption = None,
    price_out: asking.PriceOutOption = None,
    no_ask: Annotated[
        bool, typer.Option("--no-ask", help="Ask nothing: read again the texts that are there, and report.")
    ] = False,
    yes: asking.YesOption = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Rows (JSONL); default: rationales/DATA-SPLIT-TEACHER.jsonl.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Rationales and labels from a teacher, by few-shot chain of thought. The same command continues where it stopped.

    The data is an experiment's (--method, --config) or named by data.* keys. What it writes is data for
    data.name=rationale_files.
    """
    from promptcomp.rationales.job import Job, load_data, pick_template
    from promptcomp.rationales.session import Extraction

    if show_template:
        _print_template(template, method, config, overrides)
        return
    data = load_data(method, config, overrides or ())
    if show_prompt:
        show(pick_template(template, data).text(data.source().rows(split)[0]))
        return
    if (model is None) == (local is None):
        raise ConfigError("name the teacher: either --model NAME (with --base-url URL) or --local PATH")
    from promptcomp.endpoints import AskingStopped, Endpoint, Prices
    from promptcomp.rationales.show import estimate_text, print_report, progress

    job = Job(
        data=data,
        teacher=asking.identity_of(model, local),
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
                estimate = extraction.estimate(prices)
                asking.agree(estimate_text(estimate), estimate[0], estimate[3], yes, console)
                bar = progress(console, len(extraction.todo))
                asking.ask_endpoint(extraction, endpoint, concurrency, bar, console)
            elif extraction.todo and not no_ask:
                _ask_local(extraction, str(local), device, batch_size, console)
        except AskingStopped as stop:
            raise asking.stopped(extraction, stop, "texts were written in this call") from None
        report = extraction.write(prices)
        if as_json:
            print(json.dumps(report))
        else:
            print_report(report, extraction.kept, console)


def _print_template(name: str | None, method: str | None, config: Path | None, overrides: list[str] | None) -> None:
    from promptcomp.files import read_text
    from promptcomp.rationales.job import load_data
    from promptcomp.rationales.template import shipped_templates, template_path

    if name is None:
        data = load_data(method, config, overrides or ())
        name = str(data.model_dump().get("task") or data.model_dump().get("format"))
        if name not in shipped_templates():
            raise ConfigError(
                f"this data has no template of its own; --template one of {', '.join(shipped_templates())}"
            )
    show(read_text(template_path(name), "template"), end="")


def _ask_local(extraction: Extraction, path: str, device: str, batch_size: int, console: Console) -> None:
    from promptcomp.rationales.local import LocalTeacher
    from promptcomp.rationales.show import progress
    from promptcomp.run.quiet import quiet

    with quiet():
        teacher = LocalTeacher(path, device)
    with progress(console, len(extraction.todo)) as seen:
        extraction.ask_local(teacher, batch_size, seen)
