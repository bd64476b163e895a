"""`promptcomp rationales`: have a teacher explain and label examples."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from typer import Option

from promptcomp.commands.asking import Asking, takes
from promptcomp.commands.common import ConfigOption, JsonOption, MethodOption, Overrides, console_for, show, tell
from promptcomp.rationales import RationaleOptions


@takes(options=RationaleOptions, asking=Asking)
def rationales(
    overrides: Overrides = None,
    method: MethodOption = None,
    config: ConfigOption = None,
    show_template: Annotated[bool, Option("--show-template", help="Print the template (to edit it) and stop.")] = False,
    show_prompt: Annotated[bool, Option("--show-prompt", help="Print the first row's prompt and stop.")] = False,
    no_ask: Annotated[
        bool, Option("--no-ask", help="Ask nothing: read again the texts that are there, and report.")
    ] = False,
    as_json: JsonOption = False,
    *,
    options: RationaleOptions,
    asking: Asking,
) -> None:
    """Rationales and labels from a teacher, by few-shot chain of thought. The same command continues where it stopped.

    The data is an experiment's (--method, --config) or named by data.* keys. What it writes is data for
    data.name=rationale_files.
    """
    from promptcomp.rationales.rationale_job import RationaleJob, load_data, pick_template, template_name, template_path

    if show_template:
        from promptcomp.files import read_text

        name = options.template or template_name(load_data(method, config, overrides or ()))
        show(read_text(template_path(name), "template"), end="")
        return
    data = load_data(method, config, overrides or ())
    if show_prompt:
        show(pick_template(options.template, data).text(data.source().rows(options.split)[0]))
        return
    teacher, endpoint = asking.endpoint("teacher")
    from promptcomp.rationales.extraction import Extraction, print_report

    with Extraction(RationaleJob(data, teacher, endpoint is not None, options)) as extraction:
        if not no_ask:
            asking.ask(extraction, endpoint, console_for(as_json))
        report = extraction.write(asking.prices)
        tell(report, partial(print_report, report, extraction.kept), as_json)
