"""`promptcomp rationales`: have a teacher explain and label examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Option

from promptcomp.commands.asking import Asking, takes_asking
from promptcomp.commands.common import ConfigOption, JsonOption, MethodOption, Overrides, console_for, show


@takes_asking
def rationales(
    overrides: Overrides = None,
    method: MethodOption = None,
    config: ConfigOption = None,
    split: Annotated[str, Option(help="Which split of the data.")] = "train",
    template: Annotated[str | None, Option(help="Shipped template or YAML file; default: the data format's.")] = None,
    show_template: Annotated[bool, Option("--show-template", help="Print the template (to edit it) and stop.")] = False,
    show_prompt: Annotated[bool, Option("--show-prompt", help="Print the first row's prompt and stop.")] = False,
    rows: Annotated[int | None, Option("--rows", "-n", min=1, help="Only the first so many rows.")] = None,
    samples: Annotated[int, Option(min=1, help="Answers for each row; the majority's label is kept.")] = 1,
    temperature: Annotated[
        float | None, Option(min=0, help="0: greedy; default: 0, or 0.7 for several samples.")
    ] = None,
    max_tokens: Annotated[int | None, Option(min=1, help="Longest answer; default: the template's.")] = None,
    seed: Annotated[int, Option(help="Other samples for another seed.")] = 0,
    retry_refused: Annotated[
        bool, Option("--retry-refused", help="Ask again what was refused in an earlier call.")
    ] = False,
    no_ask: Annotated[
        bool, Option("--no-ask", help="Ask nothing: read again the texts that are there, and report.")
    ] = False,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Rows (JSONL); default: rationales/DATA-SPLIT-TEACHER.jsonl.")
    ] = None,
    as_json: JsonOption = False,
    *,
    asking: Asking,
) -> None:
    """Rationales and labels from a teacher, by few-shot chain of thought. The same command continues where it stopped.

    The data is an experiment's (--method, --config) or named by data.* keys. What it writes is data for
    data.name=rationale_files.
    """
    from promptcomp.rationales.rationale_job import RationaleJob, load_data, pick_template, template_name

    if show_template:
        from promptcomp.files import read_text
        from promptcomp.rationales.rationale_job import template_path

        name = template_name(load_data(method, config, overrides or ())) if template is None else template
        show(read_text(template_path(name), "template"), end="")
        return
    data = load_data(method, config, overrides or ())
    if show_prompt:
        show(pick_template(template, data).text(data.source().rows(split)[0]))
        return
    teacher, endpoint = asking.endpoint("teacher")
    from promptcomp.rationales.extraction import Extraction, print_report

    job = RationaleJob(
        data=data,
        teacher=teacher,
        chat=endpoint is not None,
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
    console = console_for(as_json)
    with Extraction(job) as extraction:
        if not no_ask:
            asking.ask(extraction, endpoint, console)
        report = extraction.write(asking.prices)
        if as_json:
            print(json.dumps(report))
        else:
            print_report(report, extraction.kept, console)
