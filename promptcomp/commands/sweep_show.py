"""Commands on the directory of a sweep that was begun: show, best, plot, doctor, and a worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from promptcomp.commands.common import JsonOption, console_for, show, tell
from promptcomp.commands.completing import sweep_folders
from promptcomp.documents import parse_yaml
from promptcomp.errors import ConfigError, command
from promptcomp.plain import say

if TYPE_CHECKING:
    from promptcomp.sweeps.state import SweepState

DirectoryArgument = Annotated[Path, Argument(metavar="DIR", help="A sweep's directory.", autocompletion=sweep_folders)]


def sweep_show(
    directory: DirectoryArgument,
    format_: Annotated[str, Option("--format", "-f", help="table, csv (points), trials (as CSV) or json.")] = "table",
    as_json: JsonOption = False,
) -> None:
    """Points with intervals over seeds, the best, the Pareto front, importances, failures with their logs."""
    if as_json and format_ not in ("table", "json"):
        raise ConfigError(f"--json and --format {format_}: give one of them")
    chosen, known = "json" if as_json else format_, ("table", "csv", "trials", "json")
    if chosen not in known:
        raise ConfigError(f"--format {format_!r} is not known; choose {', '.join(known)}")
    state = read(directory)
    if chosen == "table":
        from promptcomp.sweeps.views.overview import print_state

        print_state(state, console_for(False))
        return
    from promptcomp.sweeps.views.html_report import FORMATS, state_json

    show(json.dumps(state_json(state)) if chosen == "json" else FORMATS[chosen](state).rstrip("\n"))


def sweep_best(
    directory: DirectoryArgument,
    objective: Annotated[str | None, Option(help="The objective that decides, if the sweep has several.")] = None,
    point: Annotated[str | None, Option(help="This point instead (the start of its name).")] = None,
    output: Annotated[Path | None, Option("--output", "-o", help="Write to this file instead of the screen.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the best point as YAML for `promptcomp fit --config`."""
    state = read(directory)
    from promptcomp.sweeps.space import best_yaml
    from promptcomp.sweeps.views.points import best_cell

    trial = best_cell(state, objective, point)
    values = ", ".join(f"{name} {value:.4g}" for name, value in trial.values.items())
    note = f"{values} in {trial.run}"
    text = best_yaml(state.config, trial.params, seed=trial.seed, note=note, base=state.base)
    if output is not None:
        from promptcomp.files import write_atomic

        write_atomic(output, text)
    if as_json:
        place = None if output is None else str(output)
        found = {"values": trial.values, "params": trial.params, "seed": trial.seed, "run": str(trial.run)}
        print(json.dumps({**found, "file": place, "config": parse_yaml(text)}))
    elif output is None:
        print(text, end="")
    else:
        say(console_for(False), f"saved as {output}")


def sweep_plot(directory: DirectoryArgument, as_json: JsonOption = False) -> None:
    """Write the plots, the tables and one self-contained page (DIR/report/index.html)."""
    state = read(directory)
    from promptcomp.sweeps.views.html_report import write_report

    page = write_report(state)
    tell({"page": str(page)}, f"saved as {page}", as_json)


def read(directory: Path) -> SweepState:
    """The state of a sweep.

    Raises:
        ConfigError: no sweep is there.
    """
    from promptcomp.sweeps.sweep_directory import SweepDirectory

    place = SweepDirectory(directory)
    place.check()
    from promptcomp.sweeps.study import read_state

    return read_state(place)


def sweep_work(
    directory: DirectoryArgument,
    worker: Annotated[int, Option(min=0, help="Number of this worker, for its log.")] = 0,
    devices: Annotated[str, Option(help="GPUs of this worker, as 0,1; default: all visible ones.")] = "",
) -> None:
    """Run trials of a sweep one by one until none is left; what `promptcomp sweep` and cluster jobs start."""
    from promptcomp.sweeps.sweep_directory import SweepDirectory

    place = SweepDirectory(directory)
    place.check()
    from promptcomp.sweeps.worker import work

    names = tuple(name.strip() for name in devices.split(",") if name.strip())
    raise typer.Exit(work(place, worker, names, fork=True))


def sweep_doctor(
    directory: DirectoryArgument,
    repair: Annotated[
        bool, Option("--repair", help="Repair what can be repaired; a damaged journal is kept as a copy.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a sweep: damaged journal, stale locks, trials whose process is gone, results that were not recorded."""
    from promptcomp.sweeps.sweep_directory import SweepDirectory

    place = SweepDirectory(directory)
    place.check(place.journal, place.storage)
    from promptcomp.sweeps.repair import examine

    found = examine(place, repair)
    console = console_for(as_json)
    for finding in found:
        mark = "repaired" if finding.repaired else "found"
        advice = f" ({finding.advice})" if finding.advice else ""
        say(console, f"{mark}: {finding.what}{advice}")
    left = [finding for finding in found if not finding.repaired]
    if not found:
        say(console, "nothing is wrong")
    elif left and not repair:
        say(console, f"{command('sweep', 'doctor', directory, '--repair')} repairs what can be repaired")
    if as_json:
        print(json.dumps([{key: getattr(each, key) for key in ("what", "repaired", "advice")} for each in found]))
    if left:
        raise typer.Exit(1)
