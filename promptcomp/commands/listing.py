"""`promptcomp methods` and `promptcomp data list | show | validate`: what there is, and what data looks like."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from promptcomp.config import ConfigError
from promptcomp.datamodules import DATASETS
from promptcomp.datamodules.base import Counts
from promptcomp.datamodules.inspect import ShownRow, show
from promptcomp.datamodules.sources.records import Problem, has_errors
from promptcomp.experiment import load, shipped
from promptcomp.lightning_modules import METHODS
from promptcomp.run.opening import check_train_split, make_data, make_module
from promptcomp.run.quiet import quiet


def print_methods(console: Console, as_json: bool) -> None:
    """The registry, and the experiments that come with the package."""
    if as_json:
        methods = [
            {"name": name, "summary": s.summary, "paper": s.paper, "families": s.families, "needs": s.needs}
            for name, s in METHODS.items()
        ]
        print(json.dumps({"methods": methods, "experiments": list(shipped())}))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("method", "what it does", "paper"):
        table.add_column(name)
    for name, section in METHODS.items():
        table.add_row(Text(name, style="bold"), section.summary, section.paper)
    console.print(table)
    console.print("\nShipped experiments (promptcomp fit --method NAME):", highlight=False)
    console.print("  " + ", ".join(shipped()), highlight=False)


def print_data(console: Console, as_json: bool) -> None:
    """The kinds of data with the keys of their sections."""
    if as_json:
        print(json.dumps({name: section.model_json_schema() for name, section in DATASETS.items()}))
        return
    for name, section in DATASETS.items():
        summary = (section.__doc__ or "").strip().splitlines()[0]
        table = Table(box=None, pad_edge=False, title=f"data.name={name}: {summary}", title_justify="left")
        for column in ("key", "default", "meaning"):
            table.add_column(column, overflow="fold")
        for key, field in section.model_fields.items():
            if key != "name":
                default = "required" if field.is_required() else str(field.get_default(call_default_factory=True))
                table.add_row(key, default, " ".join((field.description or "").split()))
        console.print(table)
        console.print()


def print_rows(
    method: str | None,
    config: Path | None,
    overrides: Sequence[str],
    split: str,
    count: int,
    console: Console,
    as_json: bool,
) -> None:
    """The first rows of a split, decoded from the ids that the model gets.

    Raises:
        ConfigError: a mistake in the configuration or the data, or an unknown split.
    """
    experiment = load(method, config, overrides)
    with quiet():
        datamodule = make_data(experiment)
        rows, said = show(datamodule, split, count), datamodule.remarks()
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    for row in rows:
        _print_row(row, experiment.data.context_kind == "demonstrations", console)
    for remark in said:
        console.print(remark, highlight=False, markup=False, soft_wrap=True)


def _print_row(row: ShownRow, is_icl: bool, console: Console) -> None:
    """One query with its context; line ends are shown as \\n."""
    seed = "" if row.seed is None else f", data seed {row.seed}"
    console.rule(f"task {row.task}{seed}", align="left")
    lost = [f"{row.dropped} demonstrations over the budget left out"] if row.dropped else []
    lost += [f"{row.cut_tokens} tokens cut"] if row.cut_tokens else []
    teacher = f", teacher {row.teacher_tokens}" if row.teacher_tokens != row.context_tokens else ""
    pieces = f" in {len(row.demonstrations)} demonstrations" if is_icl else ""
    parts = [f"{row.context_tokens} tokens{pieces}{teacher}", *lost]
    if row.context_tokens:
        console.print(Text.assemble(("context", "bold"), f" ({'; '.join(parts)})"), highlight=False)
    for piece in row.demonstrations if row.context_tokens else ():
        console.print("  " + _visible(piece), highlight=False, markup=False, soft_wrap=True)
    console.print(Text.assemble(("query", "bold"), f" ({row.query_tokens} tokens)"), highlight=False)
    console.print("  " + _visible(row.query), highlight=False, markup=False, soft_wrap=True)
    console.print(Text.assemble(("targets", "bold"), " (the right one marked)"), highlight=False)
    for number, (option, tokens) in enumerate(zip(row.options, row.target_tokens, strict=True)):
        mark = "*" if number == row.gold else " "
        console.print(f"{mark} {_visible(option)}  ({tokens})", highlight=False, markup=False, soft_wrap=True)


def _visible(text: str) -> str:
    return text.replace("\n", "\\n").replace("\t", "\\t")


def print_problems(
    method: str | None, config: Path | None, overrides: Sequence[str], console: Console, as_json: bool
) -> bool:
    """Every problem of the data, with file and line, and what was read. Returns whether there is an error.

    Raises:
        ConfigError: a mistake in the configuration.
    """
    experiment = load(method, config, overrides)
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
    errors = sum(problem.severity == "error" for problem in problems)
    if as_json:
        print(json.dumps({"problems": [asdict(p) for p in problems], "read": [asdict(c) for c in counts]}))
        return errors > 0
    for line in (*problems, *counts):
        console.print(str(line), highlight=False, markup=False, soft_wrap=True)
    console.print(f"{errors} errors, {len(problems) - errors} warnings", highlight=False)
    return errors > 0
