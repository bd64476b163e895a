"""A sweep on a terminal: as tables (`promptcomp sweep show DIR`), and while it runs as a view that refreshes in place,
or elsewhere as one line for each event.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from promptcomp.errors import command
from promptcomp.evaluation.formatting import many
from promptcomp.sweeps.planning import Trial
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.views.efficiency import efficiency_of, print_efficiency
from promptcomp.sweeps.views.numbers import Progress, log_tail, plain_line
from promptcomp.sweeps.views.points import Point, Summary
from promptcomp.sweeps.views.wording import (
    STATUS_STYLES,
    amount,
    device_hours_text,
    hours_text,
    mean_text,
    number,
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
_LIVE_FAILURES = 3
_FIXED_LINES = 16
"""Lines of the live view besides the running trials."""
_NUMBERS = 30
"""Columns for seed, step and dev result of a running trial."""
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


class LiveView:
    """Shows each state that it is given; a context manager.

    Args:
        console: where; on a terminal the view fits its width (60 columns and more) and height.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._seen: dict[str, tuple[str, int]] | None = None

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, state: SweepState) -> None:
        """Show a state: redraw, or print what has changed since the last one."""
        summary = Summary(state)
        if self._live is not None:
            self._live.update(render(summary, self.console), refresh=True)
            return
        for line in self._news(summary):
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _news(self, summary: Summary) -> Iterator[str]:
        before, done = self._seen, summary.progress.done
        # A failed attempt waits before its successor is queued: the same news.
        self._seen = {t.cell: (t.status, 0 if t.status == "waiting" else t.attempt) for t in summary.state.trials}
        if before is None:
            yield f"sweep: {many(summary.progress.planned, 'trial')}" + (f", {done} done before" if done else "")
        for trial in summary.state.trials:
            if before is None and trial.status not in ("running", "stale"):
                continue
            if self._seen[trial.cell] != (before or {}).get(trial.cell) and (event := _event(trial, summary)):
                yield event


def _event(trial: Trial, summary: Summary) -> str | None:
    """The state of a trial, in one line."""
    progress = summary.progress
    values = ", ".join(f"{name} {amount(name, value)}" for name, value in trial.values.items() if value is not None)
    left = f", about {time_text(progress.eta)} left" if progress.eta is not None else ""
    log = summary.state.directory.log_of(trial.cell)
    again = trial.attempt > 1
    if trial.status == "waiting" and not trial.problem and not again:
        return None
    word, rest = {
        "finished": ("finished", f": {values or 'no value'} ({progress.done} of {progress.planned}{left})"),
        "failed": ("failed", f": {plain_line(trial.problem or 'no reason known')} (log: {log})"),
        "pruned": ("pruned", f" at step {trial.step}"),
        "stale": ("lost", ": its process has died; a worker will continue it"),
        "running": ("started", f", attempt {trial.attempt}" if again else ""),
        "waiting": ("retry", f": {plain_line(trial.problem)}" if trial.problem else ""),
    }[trial.status]
    who = f"{plain_line(params_text(trial.params, summary.varying))}, seed {trial.seed}".removeprefix(", ")
    return f"{word:<10}{who}{rest}"


def render(summary: Summary, console: Console) -> RenderableType:
    """The whole view, at most as high as the terminal."""
    width = console.width
    progress = summary.progress
    parts: list[RenderableType] = [*_header(summary), _bar(progress, width, console.options.ascii_only)]
    parts += [status_line(progress), *_leading(summary), Text()]
    running = [trial for trial in summary.state.trials if trial.status in ("running", "stale")]
    room = max(1, console.height - _FIXED_LINES)
    if running:
        parts.append(_running(running[:room], summary, width))
        if len(running) > room:
            parts.append(_line(f"and {len(running) - room} more running", "dim"))
    for trial in summary.failures[-_LIVE_FAILURES:]:
        who = trial.point if trial.is_control else params_text(trial.params, summary.varying)
        text = f"failed  {who}, seed {trial.seed}: {trial.problem or '?'}"
        parts.append(_line(plain_line(text), "red"))
    if len(summary.failures) > _LIVE_FAILURES:
        more = len(summary.failures) - _LIVE_FAILURES
        show = command("sweep", "show", summary.state.directory.path)
        parts.append(_line(f"and {many(more, 'earlier failure')}: {show}", "dim"))
    return Group(*parts)


def _header(summary: Summary) -> list[Text]:
    progress, budget = summary.progress, summary.state.config.budget
    of = f" of {hours_text(budget.device_hours)}" if budget.device_hours is not None else ""
    facts = [
        f"elapsed {time_text(progress.elapsed)}",
        progress.eta is not None and f"about {time_text(progress.eta)} left",
        many(summary.state.workers, "worker"),
        f"{hours_text(progress.device_hours)}{of} device hours",
        budget.hours is not None and f"at most {hours_text(budget.hours)} h",
        summary.state.stopped_by and f"stopped by {summary.state.stopped_by}",
    ]
    title = _line(plain_line(summary.state.config.title or f"sweep of {summary.state.config.experiment}"), "bold")
    return [title, Text("  ".join(fact.replace(" ", "\N{NO-BREAK SPACE}") for fact in facts if fact))]


def _bar(progress: Progress, width: int, ascii_only: bool) -> Text:
    """One stretch of the line for each status, in proportion; what is there gets at least one column."""
    counts = {status: progress.counts[status] for status in STATUS_STYLES if progress.counts[status]}
    total = sum(counts.values())
    columns = {status: max(1, count * (width - 1) // total) for status, count in counts.items()}
    if columns:
        columns[max(columns, key=columns.__getitem__)] += width - 1 - sum(columns.values())
    full, empty = ("#", ".") if ascii_only else ("━", "─")
    stretches = [((empty if s == "waiting" else full) * max(0, n), STATUS_STYLES[s]) for s, n in columns.items()]
    return Text.assemble(*stretches, no_wrap=True, overflow="crop")


def status_line(progress: Progress, done: str = "") -> Text:
    """`5 of 12  4 finished  1 failed  2 waiting`; `done`: more of its first words."""
    line = Text(f"{progress.done} of {done or progress.planned}", style="bold")
    for status, style in STATUS_STYLES.items():
        if progress.counts[status]:
            line.append(f"  {progress.counts[status]} {status}", style=style)
    if progress.left_out:
        line.append(f"  {progress.left_out} left out", style="dim")
    if progress.controls:
        line.append(f"  {progress.controls_done} of {many(progress.controls, 'control')}")
    return line


def _leading(summary: Summary) -> list[Text]:
    if summary.front:
        return [_line(f"Pareto front: {many(len(summary.front), 'point')}", "green")]
    point = summary.leading
    if point is None:
        return []
    objective = summary.objectives[0]
    of = many(point.seeds, "seed") if point.complete else f"{point.seeds} of {many(summary.seeds, 'seed')}"
    value = f"{objective_text(objective)} {mean_text(point.values[objective.name], objective.name)}, {of}"
    return [Text(plain_line(f"best so far  {params_text(point.params, summary.varying)}: {value}"), style="green")]


def _running(trials: list[Trial], summary: Summary, width: int) -> Table:
    """Running trials: one column for each swept key where there is room, otherwise one for all."""
    table = open_table()
    short = short_names(summary.dimensions)
    names = summary.varying or summary.dimensions
    wide = width >= 100 and len(names) <= 4
    worker = 0 if width < 80 else 16 if width < 120 else 28
    for name in [plain_line(short[name]) for name in names] if wide else ["trial"]:
        table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=width - _NUMBERS - worker)
    for name in ("seed", "step", "dev"):
        table.add_column(name, justify="right", no_wrap=True)
    if worker:
        table.add_column("worker", no_wrap=True, overflow="ellipsis", max_width=worker)
    for trial in trials:
        own = [scalar_text(trial.params[name]) if name in trial.params else "-" for name in names]
        keys = own if wide else [params_text(trial.params, names)]
        step = f"{trial.step}/{trial.max_steps}" if trial.max_steps else str(trial.step)
        dev = number(trial.reports[-1][1]) if trial.reports else "-"
        by = [plain_line(trial.worker) if trial.status == "running" else "lost"] if worker else []
        cells = [Text(plain_line(text)) for text in [*keys, str(trial.seed), step, dev, *by]]
        table.add_row(*cells, style=STATUS_STYLES["stale"] if trial.status == "stale" else "")
    return table


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
