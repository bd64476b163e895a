"""A sweep as pictures (matplotlib, the extra "plots"): PNG and SVG files, and SVG for the page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptcomp.plotting import INK
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.views.axes import axis_of
from promptcomp.sweeps.views.efficiency import efficiency_of
from promptcomp.sweeps.views.efficiency_text import heading
from promptcomp.sweeps.views.numbers import Runs
from promptcomp.sweeps.views.points import Summary, summarize
from promptcomp.sweeps.views.wording import direction_text, objective_text, short_names, slug

if TYPE_CHECKING:
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


def figures(state: SweepState, summary: Summary | None = None) -> list[Plot]:
    """All pictures that the state has something for; none before the first value. Call it inside `drawing`."""
    from promptcomp.sweeps.views.plot_efficiency import draw_efficiency
    from promptcomp.sweeps.views.plot_overviews import draw_curves, draw_front, draw_importances, draw_parallel
    from promptcomp.sweeps.views.plot_parameters import draw_parameter

    summary, runs = summary or summarize(state), Runs(state)
    plots: list[Plot] = []
    efficiency = efficiency_of(state)
    if efficiency is not None:
        plots.append(Plot("efficiency", "efficiency", heading(efficiency), draw_efficiency(efficiency)))
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
