"""`promptcomp sweep show | best | plot DIR`: what a sweep has found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from promptcomp.commands.common import JsonOption, console_for, show
from promptcomp.errors import ConfigError

if TYPE_CHECKING:
    from promptcomp.sweeps.state import SweepState

DirectoryArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A sweep's directory.")]


def sweep_show(
    directory: DirectoryArgument,
    format_: Annotated[
        str,
        typer.Option("--format", "-f", help="table, csv (points), trials (as CSV) or json."),
    ] = "table",
    as_json: JsonOption = False,
) -> None:
    """Points with intervals over seeds, the best, the Pareto front, importances, failures with their logs."""
    chosen = "json" if as_json else format_
    from promptcomp.sweeps.views import tables

    known = ("table", *tables.FORMATS, "json")
    if chosen not in known:
        raise ConfigError(f"--format {format_!r} is not known; choose {', '.join(known)}")
    state = read(directory)
    if chosen == "table":
        from promptcomp.sweeps.views.overview import print_state

        print_state(state, console_for(False))
        return
    show(json.dumps(tables.state_json(state)) if chosen == "json" else tables.FORMATS[chosen](state).rstrip("\n"))


def sweep_best(
    directory: DirectoryArgument,
    objective: Annotated[
        str | None, typer.Option("--objective", help="Which one decides, where the sweep has several.")
    ] = None,
    point: Annotated[str | None, typer.Option("--point", help="This point instead (the start of its name).")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it there, not to the screen.")] = None,
) -> None:
    """The best point as YAML that `promptcomp fit --config` takes."""
    state = read(directory)
    from promptcomp.sweeps.space import best_yaml
    from promptcomp.sweeps.views.points import best_cell

    trial = best_cell(state, objective, point)
    values = ", ".join(f"{name} {value:.4g}" for name, value in trial.values.items())
    text = best_yaml(state.config, trial.params, seed=trial.seed, note=f"{values} in {trial.run}")
    if output is None:
        print(text, end="")
        return
    from promptcomp.files import write_atomic

    write_atomic(output, text)
    console_for(False).print(f"saved as {output}", highlight=False, markup=False, soft_wrap=True)


def sweep_plot(directory: DirectoryArgument) -> None:
    """Write the plots, the tables and one page that opens without a network (DIR/report/index.html)."""
    state = read(directory)
    from promptcomp.sweeps.views.html_report import write_report

    console_for(False).print(f"saved as {write_report(state)}", highlight=False, markup=False, soft_wrap=True)


def read(directory: Path) -> SweepState:
    """The state of a sweep.

    Raises:
        ConfigError: no sweep is there.
    """
    from promptcomp.sweeps.sweep_directory import SweepDirectory

    place = SweepDirectory(directory)
    if not place.config.is_file():
        raise ConfigError(f"{directory} is no sweep directory: it has no {place.config.name}")
    from promptcomp.sweeps.study import read_state

    return read_state(place)
