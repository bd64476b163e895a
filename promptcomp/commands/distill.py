"""`promptcomp distill`: one prompt becomes a cartridge, trained slots that a frozen LM reads in its stead."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from promptcomp.commands.common import JsonOption, console_for, loading, refuse_ignored, takes
from promptcomp.commands.prompts import DeviceOption
from promptcomp.distilling import ROWS, DistillOptions
from promptcomp.errors import ConfigError, Exit, command
from promptcomp.files import check_output
from promptcomp.plain import say, told_apart

if TYPE_CHECKING:
    from rich.console import Console

    from promptcomp.distilling.distill_job import Distilled


@takes(options=DistillOptions)
def distill(
    context: typer.Context,
    lm: Annotated[str, Option(help="The LM: a folder, a GGUF file, a name of `promptcomp models list` or of the hub.")],
    text: Annotated[Path, Option("--text", help="A UTF-8 file with the prompt or document.")],
    output: Annotated[Path, Option("--output", "-o", help="The file to write (safetensors).")],
    questions: Annotated[
        Path | None,
        Option(help="Questions to train on: one on each line, or rows with input. Default: the LM asks itself."),
    ] = None,
    work: Annotated[
        Path | None, Option(help="Folder of questions, answers and training states; default: OUTPUT.distill.")
    ] = None,
    beside: Annotated[
        list[Path] | None,
        Option(help="A file with another text, a shorter prompt for example, to compare with; may be repeated."),
    ] = None,
    dtype: Annotated[str, Option(help="Of the LM's weights: float32 or bfloat16.")] = "float32",
    force: Annotated[bool, Option("--force", help="Replace the file if it exists.")] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    *,
    options: DistillOptions,
) -> None:
    """Train slots for one prompt until a frozen LM answers behind them as behind the prompt. The same command goes on.

    The file is a compressed prompt, which generate, inspect, bench, serve and export take.
    """
    from promptcomp.config import build
    from promptcomp.distilling.work_folder import WorkFolder
    from promptcomp.language_model import LanguageModelConfig
    from promptcomp.prompts.sources import read_queries

    if questions is not None:
        why = "is for questions that an LM asks; leave it or --questions out"
        refuse_ignored(context, why, "--num-questions", "--temperature")
    if options.ask_model is None:
        refuse_ignored(context, "has the key of --ask-model; give that too", "--ask-key-env")
    budgets = options.budgets()  # mistakes are told before torch is imported
    config = build(LanguageModelConfig, {"path": lm, "dtype": dtype}, source="distill")
    config.check_place()
    content, others = _text_of(text), _texts_of(beside or [])
    if questions is not None and options.ask_model is not None:
        raise ConfigError("--questions are the questions, and --ask-model would write others; give one of them")
    given = None if questions is None else [query.text for query in read_queries(questions)]
    check_output(output, force=True)
    console, stopped = console_for(as_json), ""
    with WorkFolder(output.with_suffix(".distill") if work is None else work) as folder:
        outputs = folder.outputs(output, budgets, force)
        with loading(console, "the model"):
            from promptcomp.distilling.distill_job import DistillJob, DistillStopped, open_causal

            model = open_causal(config, device)
        job = DistillJob(model, config, content, given, options, folder, console, others)
        try:
            found: Mapping[int, Distilled] = job.run(outputs)
        except DistillStopped as stop:
            stopped, found = str(stop), stop.found
    if as_json:
        print(json.dumps({"stopped": stopped, "files": [_described(outputs[k], each) for k, each in found.items()]}))
    for slots in () if as_json else found:
        _print(outputs[slots], found[slots], console)
    if stopped:
        say(console, stopped)
        raise typer.Exit(Exit.INTERRUPTED)


def _text_of(file: Path) -> str:
    from promptcomp.prompts.sources import read_source

    if not (content := read_source(file=file).text).strip():
        raise ConfigError(f"{file}: is empty or only white space; there is nothing to distill")
    return content


def _texts_of(files: list[Path]) -> dict[str, str]:
    """Other texts by the names of their rows."""
    places = [Path(os.path.abspath(file)) for file in files]
    if twice := next((file for file, place in zip(files, places, strict=True) if places.count(place) > 1), None):
        raise ConfigError(f"--beside {twice}: the same file is given twice; leave one out")
    return {name: _text_of(file) for name, file in zip(told_apart(places, ROWS), files, strict=True)}


def _described(file: Path, found: Distilled) -> dict[str, Any]:
    info = found.prompt.info
    return {
        "file": str(file),
        "slots": info.slots,
        "tokens": info.source_tokens,
        "finished": found.finished,
        "best_step": found.progress.best_step,
        "cost": info.cost,
        "held_out": info.held_out,
        "examples": [each._asdict() for each in found.examples],
    }


def _print(file: Path, found: Distilled, console: Console) -> None:
    from promptcomp.evaluation.formatting import flops_text, many
    from promptcomp.plain import near
    from promptcomp.report import print_held_out, print_steps
    from promptcomp.terminal import plain_table

    info, cost, best = found.prompt.info, found.prompt.info.cost, found.progress.best_step
    if (row := info.held_out.get("cartridge")) is not None:  # not where it was stopped before
        what = f"\n{many(info.slots, 'slot')} in the place of {many(info.source_tokens, 'token')}"
        gap = row.get("gap_closed")
        kept = "nothing" if gap is None or gap <= 0 else f"{gap:.0%}"
        where = "of the distance between no text and the whole text, on held-out questions"
        why = "" if gap is not None else ", where there is none: the text changes no prediction"
        say(console, f"{what} close{'s' if info.slots == 1 else ''} {kept} {where}{why}.", "bold")
    say(
        console,
        f"{file}: {info.lengths} ({info.source_tokens / info.slots:.1f}x), "
        f"{cost['questions']:.0f} questions, {many(round(cost['steps']), 'step')} (the best: {best}), "
        f"{cost['seconds']:.0f} s, {flops_text(cost['flops'])}",
    )
    print_held_out(info.held_out, console)
    for each in found.examples:
        texts = {"question": each.question, "whole text": each.whole, many(info.slots, "slot"): each.cartridge}
        rows = [(name, " ".join(text.split())) for name, text in texts.items()]
        console.print(plain_table(("", ""), rows, show_header=False))
    for rival, title in (("prompt", "reading the text anew"), ("prefix_cache", "a prefix cache of the text")):
        uses = cost.get(f"uses_against_{rival}")
        said = "never" if uses is None else f"from {uses:,.0f} questions on"
        say(console, f"pays in FLOPs against {title}: {said}")
    file = near(file)
    print_steps([command("generate", "--prompt", file, "QUESTION"), command("bench", file)], console)
