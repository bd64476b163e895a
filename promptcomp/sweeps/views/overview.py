"""A sweep as tables on a terminal (`promptcomp sweep show DIR`)."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from promptcomp.errors import command
from promptcomp.evaluation.formatting import many
from promptcomp.sweeps.planning import Trial
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.views.efficiency import efficiency_of, print_efficiency
from promptcomp.sweeps.views.live import status_line
from promptcomp.sweeps.views.numbers import log_tail, plain_line
from promptcomp.sweeps.views.points import Point, Summary
from promptcomp.sweeps.views.wording import (
    device_hours_text,
    mean_text,
    objective_text,
    params_text,
    scalar_text,
    short_names,
    time_text,
)
from promptcomp.terminal import open_table

_ROWS = 40
"""Points that the table shows; the formats for files have all."""
_TAIL, _FAILURES = 8, 5
ONE_SEED = "One seed has no interval: use 3 seeds or more before believing a difference."
BEST_AND_FIT = f"{{}} > best.yaml && {command('fit', '--config', 'best.yaml')}"
MARKS = {
    "best": "*",
    "within noise of the best": "~",
    "Pareto front": "P",
    "outside a constraint": "!",
    "dropped": "x",
    "": "",
}
"""What is said of a point (`note`) -> its letter in the table."""


def print_state(state: SweepState, console: Console) -> None:
    """Print what a sweep has found so far, its failures, and what to do next.

    Args:
        state: as read.
        console: its width decides how the table is laid out; 60 columns are enough.
    """
    summary = Summary(state)
    _say(console, state.config.title or f"sweep of {state.config.experiment}", "bold")
    for line in overview(summary):
        _say(console, line)
    if summary.points:
        console.print()
        console.print(_table(summary, console.width))
        for line in notes(summary):
            _say(console, line)
    for line in [*_bands(summary), *_importances(summary)]:
        _say(console, line)
    efficiency = efficiency_of(state)
    if efficiency is not None:
        console.print()
        print_efficiency(efficiency, console)
    _failures(summary, console)
    console.print()
    for count, step in enumerate(next_steps(summary)):
        line = f"{'next  ' if count == 0 else '      '}{step}"
        console.print(Text(plain_line(line)), soft_wrap=True)  # a command must be one line to be copied


def overview(summary: Summary) -> list[str]:
    """Progress, times, and what ended the sweep."""
    progress = summary.progress
    times = f"{time_text(progress.elapsed)} since the start, {device_hours_text(progress)}"
    if progress.eta is not None:
        times += f", about {time_text(progress.eta)} left with {many(max(1, summary.state.workers), 'worker')}"
    lines = [status_line(progress, f"{many(progress.planned, 'trial')} done").plain, times]
    if summary.state.stopped_by:
        lines.append(f"stopped by {summary.state.stopped_by}; raise it and start the sweep again to continue")
    return lines


def note(point: Point) -> str:
    """What is said of a point, see `MARKS`."""
    marks = {
        "best": point.is_best,
        "Pareto front": point.on_front,
        "outside a constraint": not point.feasible,
        "dropped": point.dropped,
        "within noise of the best": point.within_noise,
    }
    return next((mark for mark, holds in marks.items() if holds), "")


def _table(summary: Summary, width: int) -> Table:
    table = open_table(left=[""])
    names = summary.varying or summary.dimensions
    wide = len(names) <= 4 and width >= 60 + 12 * (len(names) - 1) + 26 * (len(summary.objectives) - 1)
    short = short_names(summary.dimensions)
    for name in [short[name] for name in names] if wide else ["point"]:
        table.add_column(Text(plain_line(name)), overflow="fold", justify="left")
    table.add_column("seeds", justify="right", no_wrap=True)
    for objective in summary.objectives:
        table.add_column(Text(objective_text(objective)), justify="right", no_wrap=wide)
    against = summary.best is not None and width >= 100
    if against:
        table.add_column("minus best", justify="right", no_wrap=True)
    for point in summary.points[:_ROWS]:
        own = [scalar_text(point.params[name]) if name in point.params else "-" for name in names]
        cells = own if wide else [params_text(point.params, names) or "-"]
        cells = [MARKS[note(point)], *cells, f"{point.seeds}/{summary.seeds}"]
        cells += [mean_text(point.values.get(objective.name), objective.name) for objective in summary.objectives]
        cells += [mean_text(point.versus_best, summary.objectives[0].name, "+")] if against else []
        style = "bold" if point.is_best or point.on_front else "dim" if not point.feasible else ""
        table.add_row(*(Text(plain_line(cell)) for cell in cells), style=style)
    return table


def notes(summary: Summary, on_page: bool = False) -> list[str]:
    """What the marks mean, and what to be careful with; the page has all points, and words for marks."""
    used = set() if on_page else {note(point) for point in summary.points}
    lines = ["   ".join(f"{letter} {text}" for text, letter in MARKS.items() if letter and text in used)]
    seeds = {point.seeds for point in summary.points if point.values}
    if seeds and max(seeds) > 1:
        lines.append("[low, high]: 95 % interval over seeds (Student's t); noise: paired differences over common seeds")
    elif seeds:
        lines.append(ONE_SEED)
    if summary.best is None and not (summary.several and summary.front):
        lines.append(f"no best point: {summary.why_no_best}")
    if summary.ahead is not None:
        who, have = params_text(summary.ahead.params, summary.varying), summary.ahead.seeds
        lines.append(f"{who} is ahead of the best point, but has {have} of {many(summary.seeds, 'seed')}")
    if summary.several and summary.front and not all(point.complete for point in summary.front):
        lines.append("the Pareto front is provisional: its points lack seeds")
    if not on_page and len(summary.points) > _ROWS:
        show = command("sweep", "show", summary.state.directory.path, "--format", "csv")
        lines.append(f"{len(summary.points) - _ROWS} more points: {show}")
    return [line for line in lines if line]


def _bands(summary: Summary) -> list[str]:
    return [
        f"{'control' if band.trained else 'bound'}  {band.title}: {objective_text(objective)} "
        f"{mean_text(band.value, objective.name)}, {many(band.value.seeds, 'seed')}"
        for objective in summary.objectives
        for band in summary.runs.measured_bands(objective)
    ]


def _importances(summary: Summary) -> list[str]:
    if summary.why_no_importances is not None and len(summary.dimensions) > 1:
        return [f"importances: {summary.why_no_importances}"]
    lines = []
    for metric, found in summary.importances.items():
        shares = ", ".join(f"{name} {share:.0%}" for name, share in found.items())
        lines.append(f"importances for {metric} (PED-ANOVA): {shares}")
    return lines


def _failures(summary: Summary, console: Console) -> None:
    for trial in summary.failures[-_FAILURES:]:
        console.print()
        _say(console, failure_title(trial, summary), "red")
        log = summary.state.directory.log_of(trial.cell)
        for line in log_tail(log, _TAIL):
            console.print(Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis"))
        _say(console, f"  log: {log}", "dim")
    if len(summary.failures) > _FAILURES:
        _say(console, f"and {len(summary.failures) - _FAILURES} earlier failures (all are in the report)")


def failure_title(trial: Trial, summary: Summary) -> str:
    """Which trial failed, at what attempt, and why."""
    attempts = f" after {many(trial.attempt, 'attempt')}" if trial.attempt > 1 else ""
    names = summary.varying or summary.dimensions
    who = f"{trial.point if trial.is_control else params_text(trial.params, names)}, seed {trial.seed}"
    return f"failed{attempts}: {who}: {trial.problem or 'no reason known'}"


def next_steps(summary: Summary) -> list[str]:
    """Commands that make sense now."""
    folder = summary.state.directory.path
    steps = []
    if not summary.progress.over:
        steps.append(command("sweep", folder))
    if summary.best is not None:
        steps.append(BEST_AND_FIT.format(command("sweep", "best", folder)))
    elif summary.several and summary.front:
        steps.append(command("sweep", "best", folder, "--objective", summary.objectives[0].name))
    if any(point.values for point in summary.points):
        steps.append(command("sweep", "plot", folder))
    if summary.failures:
        steps.append(command("sweep", "doctor", folder))
    return steps or [command("sweep", folder)]


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(plain_line(text), style=style), soft_wrap=False)
