"""A curve as a picture (matplotlib, the extra "plots")."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promptcomp.curve.summary import Cell, Curve
from promptcomp.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MISSING = 'no plot: matplotlib is not installed; pip install "promptcomp[plots]"'
FILES = ("curve.png", "curve.svg")
_COLOURS = ("tab:red", "tab:blue", "tab:green", "tab:orange", "tab:purple", "tab:brown")
_LINES = ("-", "--", ":", "-.")


def can_plot() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def plot(curve: Curve, folder: Path) -> list[Path]:
    """The metric over the share of the data, and over the students' sizes where there are several; PNG and SVG."""
    from matplotlib.figure import Figure

    many = len(curve.sizes) > 1
    figure = Figure(figsize=(10 if many else 6, 4), layout="constrained")
    axes = figure.subplots(1, 2 if many else 1, squeeze=False)[0]
    _over_data(axes[0], curve)
    if many:
        _over_sizes(axes[1], curve)
    for one in axes:
        one.grid(alpha=0.3)
        one.set_ylabel(f"{curve.metric} ({curve.split})")
        one.legend(fontsize="small")
    figure.suptitle(f"{curve.method} on {curve.data}, {curve.seeds} seeds")
    paths = [folder / name for name in FILES]
    for path in paths:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=150)
    return paths


def _over_data(axes: Axes, curve: Curve) -> None:
    for number, size in enumerate(curve.sizes):
        for name, colour in _methods(curve):
            cells = [c for c in curve.cells if (c.method, c.size) == (name, size)]
            label = f"{name}, {size}" if size else name
            _line(axes, [c.fraction for c in cells], cells, label, colour, _LINES[number % len(_LINES)])
        for reached in curve.reached:
            if reached.size == size:
                colour = dict(_methods(curve))[reached.baseline]
                axes.axhline(reached.target.mean, color=colour, linewidth=0.8, linestyle=":")
                if reached.fraction is not None:
                    axes.axvline(reached.fraction, color="tab:gray", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(curve.fractions, [f"{fraction:g}" for fraction in curve.fractions])
    axes.set_xlabel("share of the training data")


def _over_sizes(axes: Axes, curve: Curve) -> None:
    """At the largest share; by parameters where they are known for all sizes, else by name."""
    counts = [curve.parameters.get(size) for size in curve.sizes]
    known = [count for count in counts if count is not None]
    by_count = len(known) == len(counts)
    places: dict[str, float] = {size: known[number] if by_count else number for number, size in enumerate(curve.sizes)}
    for name, colour in _methods(curve):
        cells = [c for c in curve.cells if c.method == name and c.fraction == curve.fractions[-1]]
        cells.sort(key=lambda cell: places[cell.size])
        _line(axes, [places[c.size] for c in cells], cells, name, colour, "-")
    if by_count:
        axes.set_xscale("log")
        axes.set_xlabel("parameters of the student")
    else:
        axes.set_xticks(list(places.values()), list(places))
        axes.set_xlabel(curve.size_key)
    axes.set_title(f"share {curve.fractions[-1]:g}", fontsize="medium")


def _methods(curve: Curve) -> list[tuple[str, str]]:
    names = (curve.method, *curve.baselines)
    return [(name, _COLOURS[number % len(_COLOURS)]) for number, name in enumerate(names)]


def _line(axes: Axes, places: Sequence[float], cells: Sequence[Cell], label: str, colour: str, style: str) -> None:
    means = [cell.value.mean for cell in cells]
    axes.plot(places, means, label=label, color=colour, linestyle=style, marker=".")
    if cells and all(cell.value.seeds > 1 for cell in cells):
        intervals = [cell.value.ci or (cell.value.mean, cell.value.mean) for cell in cells]
        lows, highs = [low for low, _ in intervals], [high for _, high in intervals]
        axes.fill_between(places, lows, highs, color=colour, alpha=0.12, linewidth=0)
