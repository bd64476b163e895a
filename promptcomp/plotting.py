"""What all pictures share: colours, style, PNG and SVG files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptcomp.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with every kind of colour vision; black and yellow are left out (dark and light
# pages).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", ":", "-.")
GREY = "#808080"
INK = "#1b1f24"
"""Text and axes; on the page of a sweep it becomes the text's own colour, so that dark mode works."""
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "legend.fontsize": "small",
    "legend.framealpha": 0.0,
    "legend.labelcolor": INK,
    "svg.hashsalt": "promptcomp",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Our style, for the time of drawing and saving; a missing glyph is a box in the picture, no reason to warn."""
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def panels(count: int, most: int, size: tuple[float, float] | None = None, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, at most `most` in a row; options of `Figure.subplots`."""
    from matplotlib.figure import Figure

    columns = min(most, count)
    rows = -(-count // columns)
    figure = Figure(figsize=size or (7 if columns == 1 else 4.4 * columns, 4.2 * rows))
    grid = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid[:count]


def panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one panel, of a size in inches."""
    figure, (axes,) = panels(1, 1, size=(width, height))
    return figure, axes


def ticks_at(axes: Axes, ticks: Mapping[float, str], **look: Any) -> None:
    """Ticks across at these places alone, with these texts; options of `Axes.set_xticks`."""
    axes.set_xticks(list(ticks), list(ticks.values()), **look)
    axes.minorticks_off()


def interval(
    axes: Axes, place: float, ends: tuple[float, float] | None, *, sideways: bool = False, **look: Any
) -> None:
    """A bar between the ends of an interval, where there is one."""
    if ends is not None:
        axes.plot(*((ends, [place, place]) if sideways else ([place, place], ends)), **look)


def _with_plain_numbers(figure: Figure) -> None:
    """Numbers at logarithmic axes as plain text: matplotlib writes them as formulas, which our style does not read."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:,.6g}" if super().__call__(x, pos) else ""

    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatter):
            scale: Any = axis.get_transform()
            axis.set_major_formatter(Plain(scale.base))
            axis.set_minor_formatter(Plain(scale.base))


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write one picture as NAME.png and NAME.svg, inside `drawing`."""
    _with_plain_numbers(figure)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    with replacing(paths[0]) as temporary:
        figure.savefig(temporary, format="png", dpi=150, facecolor="white")
    figure.set_layout_engine("none")  # the layout is found; computing it again would double the time
    with replacing(paths[1]) as temporary:
        figure.savefig(temporary, format="svg", facecolor="white", metadata={"Date": None})
    return paths
