"""The metric over the share of the training data, a line for each method; where sizes differ, over sizes too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from promptcomp.evaluation.seeds import Mean
from promptcomp.plotting import COLOURS, GREY, MARKERS
from promptcomp.sweeps.views.efficiency import Efficiency
from promptcomp.sweeps.views.plot_parameters import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 2


def draw_efficiency(found: Efficiency) -> Figure:
    """A panel for each size; dotted: the baselines with all data, and the share at which they are reached."""
    from matplotlib.figure import Figure

    count = len(found.sizes) + (len(found.sizes) > 1)
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(7 if columns == 1 else 4.4 * columns, 4.2 * rows))
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes, size in zip(panels, found.sizes, strict=False):
        _over_shares(axes, found, size)
    if len(found.sizes) > 1:
        _over_sizes(panels[count - 1], found)
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel(f"{found.metric.replace('_', ' ')}{f' ({found.split})' if found.split else ''}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(found.methods))
    return figure


def _over_shares(axes: Axes, found: Efficiency, size: str) -> None:
    rows = [row for row in found.rows if row.size == size]
    for index, name in enumerate(found.methods):
        having = [row for row in rows if name in row.values]
        _line(axes, [row.share for row in having], [row.values[name] for row in having], index, name)
    for reached in found.reached:
        if reached.size != size:
            continue
        colour = COLOURS[found.methods.index(reached.baseline) % len(COLOURS)]
        axes.axhline(reached.target.mean, color=colour, linewidth=0.8, linestyle=":")
        if reached.share is not None:
            axes.axvline(reached.share, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_title(short(size, 44))
    axes.set_xscale("log", base=2)
    axes.set_xticks(found.shares, [f"{share:g}" for share in found.shares])
    axes.minorticks_off()
    axes.set_xlabel("share of the training data")


def _over_sizes(axes: Axes, found: Efficiency) -> None:
    """At the largest share; by parameters where they are known and differ, else by name."""
    counts = [count for count in found.sizes.values() if count is not None]
    by_count = len(set(counts)) == len(found.sizes)
    places = dict(zip(found.sizes, counts if by_count else range(len(found.sizes)), strict=True))
    rows = sorted((row for row in found.rows if row.share == found.shares[-1]), key=lambda row: places[row.size])
    for index, name in enumerate(found.methods):
        having = [row for row in rows if name in row.values]
        _line(axes, [places[row.size] for row in having], [row.values[name] for row in having], index, name)
    if by_count:
        axes.set_xscale("log")
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("parameters of the language model")
    else:
        axes.set_xticks(list(places.values()), [short(size) for size in places])
    axes.set_title(f"share {found.shares[-1]:g}")


def _line(axes: Axes, places: Sequence[float], means: Sequence[Mean], index: int, label: str) -> None:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    values = [mean.mean for mean in means]
    axes.plot(places, values, label=short(label, 44), color=colour, marker=marker, markersize=5)
    for place, mean in zip(places, means, strict=True):
        if mean.ci is not None:
            axes.plot([place, place], mean.ci, color=colour, linewidth=1.3, alpha=0.75)
