"""Pictures of a whole sweep: Pareto front, parallel coordinates, importances, learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from promptcomp.plotting import COLOURS, GREY, MARKERS
from promptcomp.sweeps.state import SweepState, Trial
from promptcomp.sweeps.views.axes import Axis, axis_of
from promptcomp.sweeps.views.numbers import Goal, is_of_run, learning_curve
from promptcomp.sweeps.views.plot_parameters import short
from promptcomp.sweeps.views.points import Point, Summary, sign_of
from promptcomp.sweeps.views.wording import amount, objective_text, params_text, scalar_text, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LISTED = 10
_COLOURED = 5
_FEW = 8
_LOG_FROM = 8.0
"""A positive axis whose ends differ by this factor is logarithmic."""


def draw_front(summary: Summary, first: Goal, other: Goal) -> Figure:
    """`first` upwards, `other` to the right; the front is numbered and listed, its steps drawn for two objectives."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 4.4))
    axes = figure.subplots()
    shown = [p for p in summary.points if first.name in p.values and other.name in p.values]
    front = sorted((p for p in shown if p.on_front), key=lambda p: p.values[other.name].mean)
    labelled = {"all other points": False, "outside a constraint": False}
    for point in shown:
        if point.on_front:
            continue
        text = "all other points" if point.feasible else "outside a constraint"
        label, labelled[text] = None if labelled[text] else text, True
        marker = "o" if point.feasible else "x"
        _cross(axes, point, first, other, GREY, 0.5)
        axes.plot(*_at(point, other, first), marker, color=GREY, alpha=0.75, markersize=5, label=label)
    if len(summary.objectives) == 2:
        axes.plot(*_stairs(front, other, first), color=COLOURS[0], linewidth=1.2, alpha=0.8)
    for number, point in enumerate(front, start=1):
        x, y = _at(point, other, first)
        _cross(axes, point, first, other, COLOURS[0], 0.9)
        name = short(params_text(point.params, summary.varying), 44)
        label = f"{number}  {name}" if number <= _LISTED else None
        axes.plot(x, y, MARKERS[0], color=COLOURS[0], markersize=7, label=label)
        offset = (6, 6) if first.direction == "maximize" else (6, -12)
        axes.annotate(str(number), (x[0], y[0]), textcoords="offset points", xytext=offset)
    values = [p.values[other.name].mean for p in shown]
    if is_of_run(other.name) and min(values) > 0 and max(values) / min(values) >= _LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: amount(other.name, value))
        axes.xaxis.set_minor_formatter("")
        if len(set(values)) <= _FEW:
            axes.set_xticks(sorted(set(values)), [amount(other.name, value) for value in sorted(set(values))])
            axes.minorticks_off()
    axes.set_xlabel(_with_arrow(other))
    axes.set_ylabel(_with_arrow(first))
    handles, labels = axes.get_legend_handles_labels()
    rest = sum(labelled.values())  # drawn first, named last
    handles, labels = handles[rest:] + handles[:rest], labels[rest:] + labels[:rest]
    axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _with_arrow(objective: Goal) -> str:
    return f"{objective_text(objective)}, {'higher' if objective.direction == 'maximize' else 'lower'} is better"


def _at(point: Point, x: Goal, y: Goal) -> tuple[list[float], list[float]]:
    return [point.values[x.name].mean], [point.values[y.name].mean]


def _cross(axes: Axes, point: Point, y: Goal, x: Goal, colour: str, alpha: float) -> None:
    """Intervals over seeds, both ways; they do not decide how far the axes reach (two seeds: very wide ones)."""
    across, up = point.values[x.name], point.values[y.name]
    limits: dict[str, Any] = {"scalex": False, "scaley": False}
    if up.ci is not None:
        axes.plot([across.mean] * 2, up.ci, color=colour, linewidth=1, alpha=0.6 * alpha, **limits)
    if across.ci is not None:
        axes.plot(across.ci, [up.mean] * 2, color=colour, linewidth=1, alpha=0.6 * alpha, **limits)


def _stairs(front: Sequence[Point], x: Goal, y: Goal) -> tuple[list[float], list[float]]:
    """The edge of what the front dominates: between two neighbours, the worse of both."""
    xs: list[float] = []
    ys: list[float] = []
    for number, point in enumerate(front):
        across, up = point.values[x.name].mean, point.values[y.name].mean
        if number:
            xs.append(min(xs[-1] * sign_of(x), across * sign_of(x)) * sign_of(x))
            ys.append(min(ys[-1] * sign_of(y), up * sign_of(y)) * sign_of(y))
        xs.append(across)
        ys.append(up)
    return xs, ys


def draw_parallel(state: SweepState, summary: Summary) -> Figure:
    """One line for each point across all dimensions that vary and the objectives; bright lines are good ones."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure

    points = [p for p in summary.points if all(o.name in p.values for o in summary.objectives)]
    points = points or [p for p in summary.points if summary.objectives[0].name in p.values]
    axes_of = [axis_of(state.config, name, [p.params for p in points]) for name in summary.varying]
    columns = [*axes_of, *(_objective_axis(objective, points) for objective in summary.objectives)]
    figure = Figure(figsize=(max(7.0, 1.9 * len(columns) + 1.5), 4.4))
    axes = figure.subplots()
    first = summary.objectives[0].name
    values = [p.values[first].mean for p in points if first in p.values] or [0.0]
    viridis = matplotlib.colormaps["viridis"]
    colours = LinearSegmentedColormap.from_list("ours", [viridis(0.12 + 0.073 * i) for i in range(11)])
    scale = Normalize(min(values), max(values) if max(values) > min(values) else min(values) + 1e-9)
    for point in reversed(points):  # the best are drawn last, on top
        strong = point.is_best or point.on_front
        shares = [column.share(_value_on(column, point)) for column in columns if _has(column, point)]
        places = [number for number, column in enumerate(columns) if _has(column, point)]
        width, alpha = (2.6, 1.0) if strong else (1.2, 0.75 if len(points) <= 40 else 0.4)
        axes.plot(places, shares, color=colours(scale(point.values[first].mean)), linewidth=width, alpha=alpha)
    _parallel_ticks(axes, columns)
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, pad=0.08, aspect=30)
    bar.set_label(objective_text(summary.objectives[0]))
    return figure


def _objective_axis(objective: Goal, points: Sequence[Point]) -> Axis:
    values = sorted({p.values[objective.name].mean for p in points if objective.name in p.values}) or [0.0]
    return Axis(objective.name, objective_text(objective), "linear", tuple(values))


def _has(column: Axis, point: Point) -> bool:
    return column.name in point.params or column.name in point.values


def _value_on(column: Axis, point: Point) -> bool | int | float | str | None:
    return point.params[column.name] if column.name in point.params else point.values[column.name].mean


def _parallel_ticks(axes: Axes, columns: Sequence[Axis]) -> None:
    """Every column has its own scale: values are written beside it."""
    axes.grid(False)
    for name in ("left", "bottom"):
        axes.spines[name].set_visible(False)
    for number, column in enumerate(columns):
        axes.axvline(number, color=GREY, linewidth=0.8, alpha=0.7)
        shown = column.values if column.discrete else (column.values[0], column.values[-1])
        for value in shown if column.kind == "category" or len(shown) <= 6 else (shown[0], shown[-1]):
            text = short(amount(column.name, value) if isinstance(value, float) else scalar_text(value), 16)
            axes.annotate(
                text, (number, column.share(value)), textcoords="offset points", xytext=(4, 2), fontsize="x-small"
            )
    axes.set_xticks(range(len(columns)), [short(column.title) for column in columns])
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) - 0.6)


def draw_importances(summary: Summary) -> Figure:
    """Share of each dimension in what separates the best points from all, a bar for each objective."""
    from matplotlib.figure import Figure

    names = sorted(summary.varying, key=lambda name: max(f.get(name, 0.0) for f in summary.importances.values()))
    titles = short_names(summary.dimensions)
    count = len(summary.importances)
    figure = Figure(figsize=(7, 1.2 + 0.35 * len(names) * count + 0.2 * len(names)))
    axes = figure.subplots()
    objectives = {objective.name: objective for objective in summary.objectives}
    for number, (metric, found) in enumerate(summary.importances.items()):
        places = [row - (number - (count - 1) / 2) * 0.8 / count for row in range(len(names))]
        shares = [found.get(name, 0.0) for name in names]
        colour = COLOURS[number % len(COLOURS)]
        bars = axes.barh(places, shares, 0.72 / count, color=colour, label=objective_text(objectives[metric]))
        axes.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3, fontsize="small")
    axes.set_yticks(range(len(names)), [short(titles[name], 30) for name in names])
    axes.set_xlim(0, 1.08)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("importance (PED-ANOVA)")
    axes.grid(False, axis="y")
    if count > 1:
        axes.legend()
    return figure


def draw_curves(state: SweepState, summary: Summary) -> Figure | None:
    """Dev results over training steps, a line for each trial; many points: the best in colour, the others grey."""
    from matplotlib.figure import Figure

    found = [(p, t, *learning_curve(t, state.config.pruning.metric)) for p in summary.points for t in p.trials]
    lines: list[tuple[Point, Trial, str, tuple[tuple[int, float], ...]]] = [line for line in found if line[3]]
    if not lines:
        return None
    figure = Figure(figsize=(8.6, 4.4))
    axes = figure.subplots()
    having = list(dict.fromkeys(line[0].point for line in lines))
    coloured = having if len(having) <= _FEW else having[:_COLOURED]
    legend: set[str] = set()
    for point, trial, _, pairs in reversed(lines):
        number = coloured.index(point.point) if point.point in coloured else None
        colour = GREY if number is None else COLOURS[number % len(COLOURS)]
        style = "--" if number is not None and number >= len(COLOURS) else "-"
        steps, values = [step for step, _ in pairs], [value for _, value in pairs]
        marker = "." if len(pairs) == 1 else None
        width, alpha = (1.4, 0.85) if number is not None else (0.8, 0.3)
        axes.plot(steps, values, color=colour, linestyle=style, linewidth=width, alpha=alpha, marker=marker)
        if trial.status == "pruned":
            axes.plot(steps[-1:], values[-1:], "x", color=colour, markersize=7)
            legend.add("pruned")
    for number, name in enumerate(coloured):
        point = next(line[0] for line in lines if line[0].point == name)
        style = "--" if number >= len(COLOURS) else "-"
        text = short(params_text(point.params, summary.varying) or "all trials", 44)
        axes.plot([], [], color=COLOURS[number % len(COLOURS)], linestyle=style, label=text)
    if len(coloured) < len(having):
        axes.plot([], [], color=GREY, label=f"the other {len(having) - len(coloured)} points")
    if "pruned" in legend:
        axes.plot([], [], "x", color=GREY, label="pruned")
    axes.set_xlabel("training step")
    axes.set_ylabel(state.config.pruning.metric or lines[0][2])
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
