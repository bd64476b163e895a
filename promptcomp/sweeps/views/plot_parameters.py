"""A metric against one parameter: means with intervals over seeds, the controls as bands, a panel for each split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from promptcomp.evaluation.seeds import Mean, mean_of
from promptcomp.plotting import COLOURS, GREY, MARKERS
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.sweep_config import Scalar
from promptcomp.sweeps.views.axes import Axis, axis_of
from promptcomp.sweeps.views.numbers import Band, Goal, Runs
from promptcomp.sweeps.views.points import Point, Summary
from promptcomp.sweeps.views.wording import objective_text, scalar_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BANDS = {"full_prompt": "--", "no_prompt": ":"}
_MANY = 40
"""With more points, intervals of single points would hide each other."""
_COLUMNS = 3


@dataclass(frozen=True, slots=True)
class _Dot:
    """One point in one panel."""

    point: Point
    place: float
    seeds: Sequence[float]
    mean: Mean


def draw_parameter(state: SweepState, summary: Summary, runs: Runs, objective: Goal, axis: Axis) -> Figure | None:
    """The picture of one objective over one dimension; None where no point has a value."""
    from matplotlib.figure import Figure

    splits: list[str | None] = list(runs.splits(objective)) or [None]
    panels = [(split, _dots(summary, runs, objective, axis, split)) for split in splits]
    panels = [(split, dots) for split, dots in panels if dots]
    if not panels:
        return None
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(7 if columns == 1 else 4.4 * columns, 4.2 * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    other = _other(state, summary, axis)
    for axes, (split, dots) in zip(grid.flat, panels, strict=False):
        bands = runs.bands(objective, split)
        _bands(axes, bands)
        _series(axes, dots, axis, other)
        _limits(axes, dots, bands)
        _lay_out(axes, axis)
        axes.set_ylabel(objective_text(objective, split))
    _legend(figure, grid.flat[0], other)
    return figure


def _legend(figure: Figure, axes: Axes, other: Axis | None) -> None:
    """One for all panels, below them, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        title = other.title if other is not None else None
        columns = min(len(handles), round(figure.get_size_inches()[0] / 1.6))
        figure.legend(handles, labels, title=title, title_fontsize="small", loc="outside lower center", ncols=columns)


def _dots(summary: Summary, runs: Runs, objective: Goal, axis: Axis, split: str | None) -> list[_Dot]:
    found = []
    for point in summary.points:
        if axis.name not in point.params:
            continue
        read = [runs.value(trial, objective, split) for trial in point.trials]
        values = [value for value in read if value is not None]
        if values:
            found.append(_Dot(point, axis.place(point.params[axis.name]), values, mean_of(values)))
    return sorted(found, key=lambda dot: dot.place)


def _other(state: SweepState, summary: Summary, axis: Axis) -> Axis | None:
    """The one other dimension whose values get a line each; None: there is none, or too much varies for lines."""
    others = [name for name in summary.varying if name != axis.name]
    if len(others) != 1 or not axis.discrete:
        return None
    other = axis_of(state.config, others[0], [point.params for point in summary.points])
    return other if len(other.values) <= len(COLOURS) else None


def _bands(axes: Axes, bands: Sequence[Band]) -> None:
    for band in bands:
        axes.axhline(band.value.mean, color=GREY, linestyle=_BANDS[band.name], linewidth=1.4, label=band.title)
        if band.value.ci is not None:
            axes.axhspan(*band.value.ci, color=GREY, alpha=0.16, linewidth=0)


def _series(axes: Axes, dots: Sequence[_Dot], axis: Axis, other: Axis | None) -> None:
    if other is not None:
        for number, value in enumerate(other.values):
            own = [dot for dot in dots if _is(dot.point.params, other.name, value)]
            if own:
                text = short(scalar_text(value))
                _line(axes, own, axis, COLOURS[number], MARKERS[number], text, number - (len(other.values) - 1) / 2)
        return
    places = {dot.place for dot in dots}
    if len(places) == len(dots) and len(dots) <= _MANY and axis.discrete:
        _line(axes, dots, axis, COLOURS[0], MARKERS[0], None)
        return
    many = len(dots) > _MANY
    for number, dot in enumerate(dots):
        _error(axes, dot, dot.place, COLOURS[0], "o", 0.35 if many else 0.7, bars=not many, first=number == 0)
    best = [dot for dot in dots if dot.point.is_best or dot.point.on_front]
    label = "Pareto front" if best and best[0].point.on_front else "best point"
    if best:
        means = [dot.mean.mean for dot in best]
        axes.plot([dot.place for dot in best], means, "*", color=COLOURS[1], markersize=12, label=label)
    if axis.discrete and len(places) > 1:
        means = [mean_of([dot.mean.mean for dot in dots if dot.place == place]).mean for place in sorted(places)]
        look: dict[str, Any] = {"linestyle": "none", "marker": "_", "markersize": 30, "markeredgewidth": 2}
        look = look if axis.kind == "category" else {"linewidth": 1.6}
        axes.plot(sorted(places), means, color=COLOURS[1], label="mean over points", **look)


def _line(
    axes: Axes, dots: Sequence[_Dot], axis: Axis, colour: str, marker: str, label: str | None, row: float = 0
) -> None:
    """Means joined (numbers only), with intervals and single seeds; lines are shifted a little beside each other."""
    places = [_shifted(dot.place, axis, row) for dot in dots]
    joined = "none" if axis.kind == "category" else "-"
    means = [dot.mean.mean for dot in dots]
    axes.plot(places, means, color=colour, marker=marker, markersize=5, linestyle=joined, label=label)
    for dot, place in zip(dots, places, strict=True):
        _error(axes, dot, place, colour, "", 1.0, bars=True)
        if len(dot.seeds) > 1:
            axes.plot([place] * len(dot.seeds), dot.seeds, ".", color=colour, markersize=4, alpha=0.45)


def _shifted(place: float, axis: Axis, row: float) -> float:
    if axis.kind in ("log2", "log10"):
        return place * 1.02**row
    width = axis.place(axis.values[-1]) - axis.place(axis.values[0])
    return place + row * 0.008 * max(width, 1e-12)


def _error(
    axes: Axes, dot: _Dot, place: float, colour: str, marker: str, alpha: float, *, bars: bool, first: bool = False
) -> None:
    if marker:
        label = "points" if first else None
        axes.plot([place], [dot.mean.mean], marker, color=colour, markersize=4, alpha=alpha, label=label)
    if bars and dot.mean.ci is not None:
        axes.plot([place, place], dot.mean.ci, "-", color=colour, linewidth=1.3, alpha=0.75 * alpha)


def _limits(axes: Axes, dots: Sequence[_Dot], bands: Sequence[Band]) -> None:
    """Room for all seeds and bands; intervals of two seeds are so wide that whole ones would flatten everything."""
    values = [value for dot in dots for value in dot.seeds] + [band.value.mean for band in bands]
    low, high = min(values), max(values)
    span = (high - low) or abs(high) * 0.1 or 1.0
    intervals = [dot.mean.ci for dot in dots if dot.mean.ci is not None]
    bottom = min([low, *(ci[0] for ci in intervals)])
    top = max([high, *(ci[1] for ci in intervals)])
    axes.set_ylim(max(bottom, low - 0.3 * span) - 0.05 * span, min(top, high + 0.3 * span) + 0.05 * span)
    if bottom < low - 0.3 * span or top > high + 0.3 * span:
        axes.set_title("some intervals reach beyond the picture", fontsize="x-small", loc="right")


def _lay_out(axes: Axes, axis: Axis) -> None:
    """Scale, ticks and name of the horizontal axis."""
    if axis.kind in ("log2", "log10"):
        axes.set_xscale("log", base=2 if axis.kind == "log2" else 10)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter("")
    if axis.discrete:
        labels = [short(scalar_text(value)) for value in axis.values]
        crowded = sum(map(len, labels)) > 34
        turned: dict[str, Any] = {"rotation": 25, "ha": "right"} if crowded else {}
        axes.set_xticks([axis.place(value) for value in axis.values], labels, **turned)
        axes.minorticks_off()
    if axis.kind == "category":
        axes.set_xlim(-0.5, len(axis.values) - 0.5)
    axes.set_xlabel(axis.title if axis.title == axis.name else f"{axis.title}  ({axis.name})")


def _is(params: Mapping[str, Scalar], name: str, value: Scalar) -> bool:
    return name in params and type(params[name]) is type(value) and params[name] == value


def short(text: str, length: int = 22) -> str:
    """At most `length` characters; a leading underscore would hide a legend entry."""
    text = text if len(text) <= length else text[: length - 1] + "…"
    return f" {text}" if text.startswith("_") else text
