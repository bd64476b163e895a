"""A sweep as pictures (matplotlib, the extra "plots"): over parameters, over shares of the data; SVG for the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from promptcomp.evaluation.bootstrap import Mean, mean_of
from promptcomp.plotting import COLOURS, GREY, INK, MARKERS, interval, panels, ticks_at
from promptcomp.sweeps.values import Goal
from promptcomp.sweeps.views.efficiency import Efficiency, EfficiencyRow, efficiency_of
from promptcomp.sweeps.views.numbers import Band
from promptcomp.sweeps.views.plot_overviews import draw_curves, draw_front, draw_importances, draw_parallel, parallel
from promptcomp.sweeps.views.points import Point, Summary
from promptcomp.sweeps.views.wording import (
    Axis,
    axis_of,
    direction_text,
    objective_text,
    scalar_text,
    short,
    short_names,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture."""

    name: str
    """File name without its ending."""
    section: str
    """efficiency, parameters, front, parallel, importances or curves."""
    title: str
    figure: Figure


def figures(summary: Summary) -> list[Plot]:
    """All pictures that a sweep has something for; none before the first value. Call it inside `drawing`."""
    state = summary.state
    plots: list[Plot] = []

    def add(stem: str, section: str, title: str, figure: Figure | None) -> None:
        taken = {plot.name for plot in plots}  # two names may differ only in what file names cannot hold
        names = (stem, *(f"{stem}_{number}" for number in range(2, len(plots) + 3)))
        if figure is not None:
            plots.append(Plot(next(name for name in names if name not in taken), section, title, figure))

    efficiency = efficiency_of(state)
    if efficiency is not None:
        add("efficiency", "efficiency", efficiency.heading, draw_efficiency(efficiency))
    first, names = summary.objectives[0], short_names(summary.dimensions)
    params = [point.params for point in summary.points]
    for objective in summary.objectives if any(point.values for point in summary.points) else ():
        for name in summary.varying or summary.dimensions[:1]:
            figure = draw_parameter(summary, objective, axis_of(state.config, name, params))
            stem = f"{_slug(objective.name)}_over_{_slug(names[name])}"
            add(stem, "parameters", f"{objective_text(objective)} against {names[name]}", figure)
    for other in summary.objectives[1:] if summary.front else ():
        title = f"{objective_text(first)} against {objective_text(other)}, {direction_text(other)}"
        add(f"front_{_slug(first.name)}_{_slug(other.name)}", "front", title, draw_front(summary, first, other))
    lines = parallel(summary)
    if lines is not None:
        add("parallel", "parallel", "All dimensions at once", draw_parallel(lines, first))
    if summary.importances:
        add("importances", "importances", "Importances", draw_importances(summary))
    add("curves", "curves", "Learning curves", draw_curves(summary))
    return plots


def _slug(name: str) -> str:
    """A name that is safe as part of a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower() or "x"


def page_svg(plot: Plot, folder: Path) -> str:
    """A saved picture as an inline `<svg>`: transparent, in the page's text colour, its ids its own."""
    svg = (folder / f"{plot.name}.svg").read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace("fill: #ffffff", "fill: none")
    for pattern in (r"<metadata>.*?</metadata>", r"<!--.*?-->", r'\sxmlns(:\w+)?="[^"]*"'):  # HTML knows the namespaces
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)
    prefix = f"{plot.name}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'\b(xlink:)?href="#', f'href="#{prefix}', svg).replace("xlink:href=", "href=")
    return svg.replace("url(#", f"url(#{prefix}")


_BANDS = {"full_prompt": "--", "no_prompt": ":"}
_MANY = 40
"""With more points, intervals of single points would hide each other."""


class _Dot(NamedTuple):
    """One point in one panel."""

    point: Point
    place: float
    seeds: Sequence[float]
    mean: Mean


def draw_parameter(summary: Summary, objective: Goal, axis: Axis) -> Figure | None:
    """A metric against one parameter: means with intervals over seeds, the controls as bands, a panel for each split;
    None where no point has a value."""
    splits: list[str | None] = list(summary.runs.splits(objective)) or [None]
    found = [(split, dots) for split in splits if (dots := _dots(summary, objective, axis, split))]
    if not found:
        return None
    figure, grid = panels(len(found), 3)
    # The one other dimension gets a line for each of its values, unless too much varies for lines.
    others = [name for name in summary.varying if name != axis.name] if axis.discrete else []
    other = axis_of(summary.state.config, others[0], [p.params for p in summary.points]) if len(others) == 1 else None
    other = other if other is not None and len(other.values) <= len(COLOURS) else None
    for axes, (split, dots) in zip(grid, found, strict=True):
        bands = summary.runs.bands(objective, split)
        for band in bands:
            axes.axhline(band.value.mean, color=GREY, linestyle=_BANDS[band.name], linewidth=1.4, label=band.title)
            if band.value.ci is not None:
                axes.axhspan(*band.value.ci, color=GREY, alpha=0.16, linewidth=0)
        _series(axes, dots, axis, other)
        _limits(axes, dots, bands)
        _lay_out(axes, axis)
        axes.set_ylabel(objective_text(objective, split))
    handles, labels = grid[0].get_legend_handles_labels()
    if handles:  # one legend for all panels, below them, where it hides nothing
        title = other.title if other is not None else None
        columns = min(len(handles), round(figure.get_size_inches()[0] / 1.6))
        figure.legend(handles, labels, title=title, title_fontsize="small", loc="outside lower center", ncols=columns)
    return figure


def _dots(summary: Summary, objective: Goal, axis: Axis, split: str | None) -> list[_Dot]:
    found = []
    for point in (each for each in summary.points if axis.name in each.params):
        read = [summary.runs.value(trial, objective, split) for trial in point.trials]
        if values := [value for value in read if value is not None]:
            found.append(_Dot(point, axis.place(point.params[axis.name]), values, mean_of(values)))
    return sorted(found, key=lambda dot: dot.place)


def _series(axes: Axes, dots: Sequence[_Dot], axis: Axis, other: Axis | None) -> None:
    places = sorted({dot.place for dot in dots})
    if other is None and len(places) == len(dots) and len(dots) <= _MANY and axis.discrete:
        _line(axes, dots, axis, 0, 0)
        return
    if other is not None:
        for number, value in enumerate(other.values):
            if own := [dot for dot in dots if other.holds(dot.point.params, value)]:
                _line(axes, own, axis, number, number - (len(other.values) - 1) / 2, label=short(scalar_text(value)))
        return
    many = len(dots) > _MANY
    look: dict[str, Any] = {"color": COLOURS[0], "markersize": 4, "alpha": 0.35 if many else 0.7}
    axes.plot([dot.place for dot in dots], [dot.mean.mean for dot in dots], "o", label="points", **look)
    for dot in () if many else dots:
        interval(axes, dot.place, dot.mean.ci, color=COLOURS[0], linewidth=1.3, alpha=0.525)
    best = [dot for dot in dots if dot.point.is_best or dot.point.on_front]
    if best:
        label = "Pareto front" if best[0].point.on_front else "best point"
        means = [dot.mean.mean for dot in best]
        axes.plot([dot.place for dot in best], means, "*", color=COLOURS[1], markersize=12, label=label)
    if axis.discrete and len(places) > 1:
        means = [mean_of([dot.mean.mean for dot in dots if dot.place == place]).mean for place in places]
        look = {"linestyle": "none", "marker": "_", "markersize": 30, "markeredgewidth": 2}
        look = look if axis.kind == "category" else {"linewidth": 1.6}
        axes.plot(places, means, color=COLOURS[1], label="mean over points", **look)


def _line(axes: Axes, dots: Sequence[_Dot], axis: Axis, number: int, row: float, label: str | None = None) -> None:
    """Means joined (numbers only), with intervals and single seeds; lines are shifted a little beside each other."""
    if axis.kind in ("log2", "log10"):
        places = [dot.place * 1.02**row for dot in dots]
    else:
        width = axis.place(axis.values[-1]) - axis.place(axis.values[0])
        places = [dot.place + row * 0.008 * max(width, 1e-12) for dot in dots]
    joined = "none" if axis.kind == "category" else "-"
    _means(axes, places, [dot.mean for dot in dots], number, linestyle=joined, label=label)
    for dot, place in zip(dots, places, strict=True):
        if len(dot.seeds) > 1:
            axes.plot([place] * len(dot.seeds), dot.seeds, ".", color=COLOURS[number], markersize=4, alpha=0.45)


def _means(axes: Axes, places: Sequence[float], means: Sequence[Mean], number: int, **look: Any) -> None:
    """Means with their intervals, in the colour and with the marker of this number."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    axes.plot(places, [mean.mean for mean in means], color=colour, marker=marker, markersize=5, **look)
    for place, mean in zip(places, means, strict=True):
        interval(axes, place, mean.ci, color=colour, linewidth=1.3, alpha=0.75)


def _limits(axes: Axes, dots: Sequence[_Dot], bands: Sequence[Band]) -> None:
    """Room for all seeds and bands; intervals of two seeds are so wide that whole ones would flatten everything."""
    values = [value for dot in dots for value in dot.seeds] + [band.value.mean for band in bands]
    ends = values + [end for dot in dots for end in dot.mean.ci or ()]
    span = (max(values) - min(values)) or abs(max(values)) * 0.1 or 1.0
    low, high = min(values) - 0.3 * span, max(values) + 0.3 * span
    axes.set_ylim(max(min(ends), low) - 0.05 * span, min(max(ends), high) + 0.05 * span)
    if min(ends) < low or max(ends) > high:
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
        ticks_at(axes, dict(zip(map(axis.place, axis.values), labels, strict=True)), **turned)
    if axis.kind == "category":
        axes.set_xlim(-0.5, len(axis.values) - 0.5)
    axes.set_xlabel(axis.title if axis.title == axis.name else f"{axis.title}  ({axis.name})")


def draw_efficiency(found: Efficiency) -> Figure:
    """A panel for each size; dotted: the baselines with all data, and the share at which they are reached."""
    figure, shown = panels(len(found.sizes) + (len(found.sizes) > 1), 2, sharey=True)
    for axes, size in zip(shown, found.sizes, strict=False):
        _over_shares(axes, found, size)
    if len(found.sizes) > 1:
        _over_sizes(shown[-1], found)
    for axes in shown[::2]:
        axes.set_ylabel(f"{found.metric.replace('_', ' ')}{f' ({found.split})' if found.split else ''}")
    figure.legend(*shown[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(found.methods))
    return figure


def _over_shares(axes: Axes, found: Efficiency, size: str) -> None:
    rows = [row for row in found.rows if row.size == size]
    _methods(axes, found, rows, [row.share for row in rows])
    for reached in found.reached:
        if reached.size != size:
            continue
        colour = COLOURS[found.methods.index(reached.baseline) % len(COLOURS)]
        axes.axhline(reached.target.mean, color=colour, linewidth=0.8, linestyle=":")
        if reached.share is not None:
            axes.axvline(reached.share, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_title(short(size, 44))
    axes.set_xscale("log", base=2)
    ticks_at(axes, {share: f"{share:g}" for share in found.shares})
    axes.set_xlabel("share of the training data")


def _over_sizes(axes: Axes, found: Efficiency) -> None:
    """At the largest share; by parameters where they are known and differ, else by name."""
    counts = [count for count in found.sizes.values() if count is not None]
    by_count = len(set(counts)) == len(found.sizes)
    places = dict(zip(found.sizes, counts if by_count else range(len(found.sizes)), strict=True))
    rows = sorted((row for row in found.rows if row.share == found.shares[-1]), key=lambda row: places[row.size])
    _methods(axes, found, rows, [places[row.size] for row in rows])
    if by_count:
        axes.set_xscale("log")
        ticks_at(axes, {count: f"{count:,}" for count in counts})
        axes.set_xlabel("parameters of the language model")
    else:
        axes.set_xticks(list(places.values()), [short(size) for size in places])
    axes.set_title(f"share {found.shares[-1]:g}")


def _methods(axes: Axes, found: Efficiency, rows: Sequence[EfficiencyRow], places: Sequence[float]) -> None:
    """A line for each method."""
    for index, name in enumerate(found.methods):
        means = {place: row.values[name] for row, place in zip(rows, places, strict=True) if name in row.values}
        _means(axes, list(means), list(means.values()), index, label=short(name, 44))
