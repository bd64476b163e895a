"""A sweep as pictures (matplotlib, the extra "plots"): PNG and SVG files, and SVG for the page."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptcomp.files import replacing
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.views.axes import axis_of
from promptcomp.sweeps.views.numbers import Runs
from promptcomp.sweeps.views.summary import Summary, summarize
from promptcomp.sweeps.views.wording import direction_text, objective_text, short_names, slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = 'no plots: matplotlib is not installed; pip install "promptcomp[plots]"'
INK = "#1b1f24"
"""Text and axes; on the page it becomes the text's own colour, so that dark mode works."""
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


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture."""

    name: str
    """File name without its ending."""
    section: str
    """parameters, front, parallel, importances or curves."""
    title: str
    figure: Figure


def can_plot() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def drawing() -> Iterator[None]:
    """Our style, for the time of drawing and saving; a missing glyph is a box in the picture, no reason to warn."""
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def figures(state: SweepState, summary: Summary | None = None) -> list[Plot]:
    """All pictures that the state has something for; none before the first value. Call it inside `drawing`."""
    from promptcomp.sweeps.views.plot_overviews import draw_curves, draw_front, draw_importances, draw_parallel
    from promptcomp.sweeps.views.plot_parameters import draw_parameter

    summary, runs = summary or summarize(state), Runs(state)
    plots: list[Plot] = []
    having = [point for point in summary.points if point.values]
    short = short_names(summary.dimensions)
    for objective in summary.objectives if having else ():
        for name in summary.varying or summary.dimensions[:1]:
            figure = draw_parameter(state, summary, runs, objective, axis_of(state.config, name, _params(summary)))
            if figure is not None:
                title = f"{objective_text(objective)} against {short[name]}"
                stem = f"{slug(objective.name)}_over_{slug(short[name])}"
                plots.append(Plot(_free(stem, plots), "parameters", title, figure))
    if summary.several and summary.front:
        for other in summary.objectives[1:]:
            first = summary.objectives[0]
            title = f"{objective_text(first)} against {objective_text(other)}, {direction_text(other)}"
            stem = f"front_{slug(first.name)}_{slug(other.name)}"
            plots.append(Plot(_free(stem, plots), "front", title, draw_front(summary, first, other)))
    if len(summary.varying) > 1 and having:
        plots.append(Plot("parallel", "parallel", "All dimensions at once", draw_parallel(state, summary)))
    if summary.importances:
        plots.append(Plot("importances", "importances", "Importances", draw_importances(summary)))
    curves = draw_curves(state, summary)
    if curves is not None:
        plots.append(Plot("curves", "curves", "Learning curves", curves))
    return plots


def write_plots(state: SweepState, folder: Path) -> list[Path]:
    """Write every picture as PNG and SVG; matplotlib must be there."""
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    with drawing():
        for plot in figures(state):
            paths += save(plot, folder)
    return paths


def save(plot: Plot, folder: Path) -> list[Path]:
    """Write one picture as PNG and SVG, inside `drawing`."""
    paths = [folder / f"{plot.name}.png", folder / f"{plot.name}.svg"]
    with replacing(paths[0]) as temporary:
        plot.figure.savefig(temporary, format="png", dpi=150, facecolor="white")
    plot.figure.set_layout_engine("none")  # the layout is found; working it out again would double the time
    with replacing(paths[1]) as temporary:
        plot.figure.savefig(temporary, format="svg", facecolor="white", metadata={"Date": None})
    return paths


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


def _params(summary: Summary) -> list[Any]:
    return [point.params for point in summary.points]


def _free(stem: str, plots: list[Plot]) -> str:
    """The stem, numbered where two names differ only in what file names cannot hold."""
    taken = {plot.name for plot in plots}
    names = [stem, *(f"{stem}_{number}" for number in range(2, len(plots) + 3))]
    return next(name for name in names if name not in taken)
