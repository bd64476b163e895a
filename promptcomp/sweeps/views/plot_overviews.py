"""Pictures of a whole sweep: Pareto front, parallel coordinates, importances, learning curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from promptcomp.plotting import COLOURS, GREY, MARKERS, interval, panel, ticks_at
from promptcomp.sweeps.values import Goal, dev_reports, metric_rows
from promptcomp.sweeps.views.numbers import is_of_run
from promptcomp.sweeps.views.points import Summary
from promptcomp.sweeps.views.wording import (
    Axis,
    amount,
    axis_of,
    direction_text,
    objective_text,
    params_text,
    scalar_text,
    short,
    short_names,
    values_text,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LISTED = 10
_COLOURED = 5
_FEW = 8
_LOG_FROM = 8.0
"""A positive axis whose ends differ by this factor is logarithmic."""


def draw_front(summary: Summary, first: Goal, other: Goal) -> Figure:
    """`first` upwards, `other` to the right; the front is numbered and listed, its steps drawn for two objectives."""
    figure, axes = panel(8.6, 4.4)
    shown = [p for p in summary.points if first.name in p.values and other.name in p.values]
    front = sorted((p for p in shown if p.on_front), key=lambda p: p.values[other.name].mean)
    if len(summary.objectives) == 2:
        # The edge of what the front dominates: between two neighbours, the worse of both.
        edge = [p.values[other.name].mean for p in front], [p.values[first.name].mean for p in front]
        where: Literal["pre", "post"] = "post" if other.direction == "minimize" else "pre"
        axes.step(*edge, where=where, color=COLOURS[0], linewidth=1.2, alpha=0.8)
    rest = [p for p in shown if not p.on_front]
    for number, point in enumerate([*front, *rest], start=1):
        across, up = point.values[other.name], point.values[first.name]
        # Intervals do not decide how far the axes reach: those of two seeds are very wide.
        look: dict[str, Any] = {"linewidth": 1, "scalex": False, "scaley": False}
        look |= {"color": COLOURS[0], "alpha": 0.54} if point.on_front else {"color": GREY, "alpha": 0.3}
        interval(axes, across.mean, up.ci, **look)
        interval(axes, up.mean, across.ci, sideways=True, **look)
        if point.on_front:
            name = short(params_text(point.params, summary.varying), 44)
            label = f"{number}  {name}" if number <= _LISTED else None
            axes.plot(across.mean, up.mean, MARKERS[0], color=COLOURS[0], markersize=7, label=label, zorder=3)
            offset = (6, 6) if first.direction == "maximize" else (6, -12)
            axes.annotate(str(number), (across.mean, up.mean), textcoords="offset points", xytext=offset)
    for feasible, marker, label in ((True, "o", "all other points"), (False, "x", "outside a constraint")):
        places = [(p.values[other.name].mean, p.values[first.name].mean) for p in rest if p.feasible == feasible]
        if places:
            axes.plot(*zip(*places, strict=True), marker, color=GREY, alpha=0.75, markersize=5, label=label)
    values = [p.values[other.name].mean for p in shown]
    if is_of_run(other.name) and min(values) > 0 and max(values) / min(values) >= _LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: amount(other.name, value))
        axes.xaxis.set_minor_formatter("")
        if len(set(values)) <= _FEW:
            ticks_at(axes, {value: amount(other.name, value) for value in sorted(set(values))})
    axes.set_xlabel(f"{objective_text(other)}, {direction_text(other)}")
    axes.set_ylabel(f"{objective_text(first)}, {direction_text(first)}")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def parallel(summary: Summary) -> dict[str, Any] | None:
    """Columns and points of parallel coordinates, for the picture and the page's script.

    Returns:
        `columns`: `title` and `ticks` (share of the height, text); `points`, best first: `id`, `shares` (one for each
        column), `value` of the first objective, `good` (0-1), `top` (best or on the front), `text`. None: fewer than
        two dimensions vary, or nothing has a value.
    """
    first = summary.objectives[0]
    points = [p for p in summary.points if first.name in p.values]
    if len(summary.varying) < 2 or not points:
        return None
    columns = [axis_of(summary.state.config, name, [p.params for p in points]) for name in summary.varying]
    titled = [{"title": axis.title, "ticks": _ticks(axis, "")} for axis in columns]
    measured: dict[str, Axis] = {}
    for objective in summary.objectives:
        values = sorted({p.values[objective.name].mean for p in points if objective.name in p.values})
        if values:
            axis = measured[objective.name] = Axis(objective.name, objective_text(objective), "linear", tuple(values))
            titled.append({"title": axis.title, "ticks": _ticks(axis, objective.name)})
    drawn = []
    for point in points:
        shares = [axis.share(point.params[axis.name]) if axis.name in point.params else None for axis in columns]
        means = [(axis, point.values.get(name)) for name, axis in measured.items()]
        shares += [None if mean is None else axis.share(mean.mean) for axis, mean in means]
        value = point.values[first.name].mean
        good = measured[first.name].share(value)
        good = good if first.sign > 0 else 1 - good
        text = f"{params_text(point.params, summary.varying)}: {values_text(point.values, summary.objectives)}"
        top = point.is_best or point.on_front
        drawn.append({"id": point.point, "shares": shares, "value": value, "good": good, "top": top, "text": text})
    return {"columns": titled, "points": drawn}


def _ticks(axis: Axis, metric: str) -> list[tuple[float, str]]:
    values = axis.values if axis.discrete and not metric else (axis.values[0], axis.values[-1])
    return [(axis.share(v), amount(metric, v) if metric and isinstance(v, float) else scalar_text(v)) for v in values]


def draw_parallel(found: dict[str, Any], objective: Goal) -> Figure:
    """One line for each point across the columns of `parallel`, coloured by the first objective."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    columns, points = found["columns"], found["points"]
    figure, axes = panel(max(7.0, 1.9 * len(columns) + 1.5), 4.4)
    values = [point["value"] for point in points]
    viridis = matplotlib.colormaps["viridis"]
    colours = LinearSegmentedColormap.from_list("ours", [viridis(0.12 + 0.073 * i) for i in range(11)])
    scale = Normalize(min(values), max(values) if max(values) > min(values) else min(values) + 1e-9)
    for point in reversed(points):  # the best are drawn last, on top
        places = [number for number, share in enumerate(point["shares"]) if share is not None]
        width, alpha = (2.6, 1.0) if point["top"] else (1.2, 0.75 if len(points) <= 40 else 0.4)
        shares = [point["shares"][number] for number in places]
        axes.plot(places, shares, color=colours(scale(point["value"])), linewidth=width, alpha=alpha)
    axes.grid(False)
    for name in ("left", "bottom"):
        axes.spines[name].set_visible(False)
    for number, column in enumerate(columns):  # every column has its own scale: values are written beside it
        axes.axvline(number, color=GREY, linewidth=0.8, alpha=0.7)
        for share, text in column["ticks"]:
            where: dict[str, Any] = {"textcoords": "offset points", "xytext": (4, 2), "fontsize": "x-small"}
            axes.annotate(short(text, 16), (number, share), **where)
    axes.set_xticks(range(len(columns)), [short(column["title"]) for column in columns])
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) - 0.6)
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, pad=0.08, aspect=30)
    bar.set_label(objective_text(objective))
    return figure


def draw_importances(summary: Summary) -> Figure:
    """Share of each dimension in what separates the best points from all, a bar for each objective."""
    names = sorted(summary.varying, key=lambda name: max(f.get(name, 0.0) for f in summary.importances.values()))
    titles = short_names(summary.dimensions)
    count = len(summary.importances)
    figure, axes = panel(7, 1.2 + 0.35 * len(names) * count + 0.2 * len(names))
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


def draw_curves(summary: Summary) -> Figure | None:
    """Dev results over training steps, a line for each trial; many points: the best in colour, the others grey."""
    lines = [(point, trial) for point in summary.points for trial in point.trials if trial.reports]
    if not lines:
        return None
    figure, axes = panel(8.6, 4.4)
    having = list({point.point: point for point, _ in lines}.values())
    coloured = having if len(having) <= _FEW else having[:_COLOURED]
    looks: dict[str, dict[str, Any]] = {
        point.point: {"color": COLOURS[number % len(COLOURS)], "linestyle": "--" if number >= len(COLOURS) else "-"}
        for number, point in enumerate(coloured)
    }
    grey: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "alpha": 0.3}
    for point, trial in reversed(lines):
        look = {"linewidth": 1.4, "alpha": 0.85, **looks[point.point]} if point.point in looks else grey
        steps, values = zip(*trial.reports, strict=True)
        axes.plot(steps, values, marker="." if len(steps) == 1 else None, **look)
        if trial.status == "pruned":
            axes.plot(steps[-1:], values[-1:], "x", color=look["color"], markersize=7)
    for point in coloured:
        text = params_text(point.params, summary.varying) or "all trials"
        axes.plot([], [], label=short(text, 44), **looks[point.point])
    if len(coloured) < len(having):
        axes.plot([], [], color=GREY, label=f"the other {len(having) - len(coloured)} points")
    if any(trial.status == "pruned" for _, trial in lines):
        axes.plot([], [], "x", color=GREY, label="pruned")
    axes.set_xlabel("training step")
    metric = summary.state.config.pruning.metric or dev_reports(metric_rows(lines[0][1].run), None)[0]
    axes.set_ylabel(metric or "dev metric")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
