"""`promptcomp data ...`: what there is, what the model sees of data, what is wrong with it.

Nothing heavy is imported before a configuration is read.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from promptcomp.commands.common import (
    Commands,
    ConfigOption,
    JsonOption,
    MethodOption,
    Overrides,
    console_for,
    show,
    tell,
)
from promptcomp.commands.completing import data_names
from promptcomp.commands.explain import print_rows, print_section
from promptcomp.errors import ConfigError
from promptcomp.plain import say

if TYPE_CHECKING:
    from rich.console import Console

    from promptcomp.datamodules.context_module import Counts
    from promptcomp.datamodules.inspect import ShownRow
    from promptcomp.datamodules.sources.records import Problem
    from promptcomp.experiment import Experiment

_MOST_WARNINGS = 20
"""That `validate` shows; errors are all shown."""
app = typer.Typer(
    help="Inspect data: kinds of data, rows as the model sees them, bad rows.", no_args_is_help=True, cls=Commands
)
build_app = typer.Typer(help="Build published data sets from their source files.", no_args_is_help=True, cls=Commands)
app.add_typer(build_app, name="build")


@app.command("list")
def data_list(
    name: Annotated[
        str | None, Argument(metavar="NAME", help="Explain this one, with its keys.", autocompletion=data_names)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the kinds of data, or explain one with its keys."""
    from promptcomp.config import NOT_LOADED
    from promptcomp.datamodules import DATASETS
    from promptcomp.reference import first_sentence

    if name is not None:
        print_section("data", name, DATASETS, as_json)
        return
    console = console_for(as_json)
    for problem in NOT_LOADED.values():
        say(console, f"not loaded: {problem}")
    found = {each: first_sentence(section.__doc__ or "") for each, section in DATASETS.items()}

    def draw(console: Console) -> None:
        print_rows(("data.name", "what it is"), found.items(), console)
        say(console, "\n`promptcomp data list NAME` explains one with its keys.")

    tell(found, draw, as_json)


@app.command("show")
def data_show(
    overrides: Overrides = None,
    method: MethodOption = None,
    config: ConfigOption = None,
    split: Annotated[str, Option(help="The split to show.")] = "train",
    count: Annotated[int, Option("--count", "-n", min=1, max=1_000_000, help="Number of contexts to show.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Print rows of an experiment's data exactly as the model will see them."""
    from promptcomp.experiment import load

    experiment = load(method, config, overrides or ())
    experiment.without_training().check(*({split} - {"train"}), trains=False)
    from promptcomp.datamodules.inspect import show as shown_rows
    from promptcomp.run.opening import make_data, quiet

    with quiet():
        datamodule = make_data(experiment)
        rows, notes = shown_rows(datamodule, split, count), [*datamodule.notes(), *datamodule.unknown()]
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    console = console_for(False)
    for row in rows:
        _print_row(row, experiment.data.context_kind == "demonstrations", console)
    for note in notes:
        say(console, note)


def _print_row(row: ShownRow, is_icl: bool, console: Console) -> None:
    """One query with its context; line ends are shown as \\n."""
    from rich.text import Text

    from promptcomp.evaluation.formatting import many

    seed = "" if row.seed is None else f", data seed {row.seed}"
    console.rule(f"task {row.task}{seed}", align="left")
    if row.context_tokens:
        pieces = f" in {many(len(row.demonstrations), 'demonstration')}" if is_icl else ""
        teacher = f", teacher {row.teacher_tokens}" if row.teacher_tokens != row.context_tokens else ""
        parts = [f"{many(row.context_tokens, 'token')}{pieces}{teacher}"]
        parts += [f"{many(row.dropped, 'demonstration')} over the budget left out"] if row.dropped else []
        parts += [f"{many(row.cut_tokens, 'token')} cut"] if row.cut_tokens else []
        console.print(Text.assemble(("context", "bold"), f" ({'; '.join(parts)})"), highlight=False)
        for piece in row.demonstrations:
            show("  " + _visible(piece))
    console.print(Text.assemble(("query", "bold"), f" ({many(row.query_tokens, 'token')})"), highlight=False)
    show("  " + _visible(row.query))
    console.print(Text.assemble(("targets", "bold"), " (the right one marked)"), highlight=False)
    for number, (option, tokens) in enumerate(zip(row.options, row.target_tokens, strict=True)):
        show(f"{'*' if number == row.gold else ' '} {_visible(option)}  ({many(tokens, 'token')})")


def _visible(text: str) -> str:
    return text.replace("\n", "\\n").replace("\t", "\\t")


@app.command("validate")
def data_validate(
    overrides: Overrides = None, method: MethodOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Find every bad row of an experiment's data, with file and line. Exit code 1 when there is one."""
    from promptcomp.experiment import load

    experiment = load(method, config, overrides or ())
    experiment.lm.check_place()
    experiment.data.check_places()
    problems, counts = _problems(experiment)
    errors = sum(problem.severity == "error" for problem in problems)
    if as_json:
        print(json.dumps({"problems": [asdict(p) for p in problems], "read": [asdict(c) for c in counts]}))
    else:
        from promptcomp.evaluation.formatting import many

        console, warnings = console_for(False), 0
        for problem in problems:
            warnings += problem.severity == "warning"
            if problem.severity == "error" or warnings <= _MOST_WARNINGS:
                say(console, str(problem))
        if warnings > _MOST_WARNINGS:
            say(console, f"{many(warnings - _MOST_WARNINGS, 'further warning')}; --json has them all")
        for count in counts:
            say(console, str(count))
        say(console, f"{many(errors, 'error')}, {many(warnings, 'warning')}")
    if errors:
        raise typer.Exit(1)


def _problems(experiment: Experiment) -> tuple[list[Problem], list[Counts]]:
    """Every problem of the data, and what was read where there is no error."""
    from promptcomp.datamodules.sources.records import Problem, has_errors
    from promptcomp.run.opening import check_train_split, make_data, make_module, quiet

    problems: list[Problem] = []
    counts: list[Counts] = []
    with quiet():
        try:
            try:
                datamodule = make_data(experiment)
            except ConfigError:
                problems = experiment.data.file_problems()
                raise
            problems = datamodule.problems()
            if not has_errors(problems):
                check_train_split(experiment, datamodule, make_module(experiment, datamodule.task_names))
                counts = datamodule.all_counts(with_tokens=True)
        except ConfigError as error:
            last = Problem("data", None, str(error))
            problems += [last] if last not in problems else []
    return problems, counts


@build_app.command("alpaca-plus")
def data_build_alpaca_plus(
    alpaca: Annotated[Path, Option(help="Stanford Alpaca: alpaca_data.json.")],
    self_instruct: Annotated[Path, Option(help="Self-Instruct: all_instances_82K.jsonl.")],
    user_oriented: Annotated[Path, Option(help="Self-Instruct: user_oriented_instructions.jsonl.")],
    output: Annotated[Path, Option("--output", "-o", help="Folder for the four files.")],
    seen: Annotated[int, Option(min=0, help="Rows of the seen split.")] = 1000,
    unseen: Annotated[int, Option(min=0, help="Rows of the unseen split.")] = 1000,
    force: Annotated[bool, Option("--force", "--overwrite", help="Replace existing files.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build Alpaca+ (gisting, Mu et al. 2023) by the published rules, and print what is in it."""
    from promptcomp.datamodules.sources import alpaca_plus as plus
    from promptcomp.terminal import plain_table

    rows = plus.read_flat(self_instruct), plus.read_flat(alpaca), plus.read_user_oriented(user_oriented)
    data = plus.build_alpaca_plus(*rows, seen, unseen)
    paths = plus.write_alpaca_plus(data, output, force)
    figures = {split: plus.counts(found) for split, found in data._asdict().items()}
    if as_json:
        print(json.dumps({split: {"file": str(paths[split]), **found} for split, found in figures.items()}))
        return
    names = [name.replace("_", " ") for name in figures["train"]]
    lines = [(split, *map(str, counted.values())) for split, counted in figures.items()]
    console = console_for(False)
    console.print(plain_table(("split", *names), lines, right=names))
    console.print(f"written to {output}", highlight=False, soft_wrap=True)
