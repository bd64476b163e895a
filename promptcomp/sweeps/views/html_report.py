"""The report of a sweep: one page that needs nothing else, and its pictures and tables as files."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from promptcomp import plotting
from promptcomp.errors import ConfigError
from promptcomp.files import write_atomic
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.views import plots
from promptcomp.sweeps.views.efficiency import Efficiency, efficiency_of
from promptcomp.sweeps.views.page_content import content, efficiency_content
from promptcomp.sweeps.views.points import Summary, summarize
from promptcomp.sweeps.views.tables import efficiency_csv, points_csv, state_json, trials_csv

PAGE = "index.html"
Sections = list[tuple[str, str, list[dict[str, Any]]]]
"""(id, name, pictures as SVG) of each section of the page that has pictures."""
_HALF = 7.5
"""Inches; wider pictures get a line of their own."""
_SECTIONS = {
    "efficiency": "Data efficiency",
    "parameters": "Parameters",
    "front": "Pareto front",
    "importances": "Importances",
    "curves": "Learning curves",
}


def write_report(state: SweepState) -> Path:
    """Write report/: index.html, every plot as PNG and SVG, trials.csv, points.csv, points.json; for a sweep over
    shares of the training data efficiency.csv and efficiency.json.

    Without matplotlib there are no pictures, and the page says what to install.

    Returns:
        The page.

    Raises:
        ConfigError: the folder cannot be written.
    """
    folder = state.directory.report
    summary, efficiency = summarize(state), efficiency_of(state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sections = _plots(state, summary, folder) if plotting.can_plot() else []
    except OSError as error:
        raise ConfigError(f"{folder}: the report cannot be written ({error.strerror or error})") from None
    write_atomic(folder / "trials.csv", trials_csv(state))
    write_atomic(folder / "points.csv", points_csv(state))
    write_atomic(folder / "points.json", json.dumps(state_json(state), indent=2, allow_nan=False) + "\n")
    if efficiency is not None:
        write_atomic(folder / "efficiency.csv", efficiency_csv(efficiency))
        write_atomic(folder / "efficiency.json", efficiency.model_dump_json(indent=2) + "\n")
        if not plotting.can_plot():  # the table is there all the same
            sections = [("efficiency", _SECTIONS["efficiency"], [])]
    write_atomic(folder / PAGE, render(state, summary, efficiency, sections, datetime.now(UTC)))
    return folder / PAGE


def _plots(state: SweepState, summary: Summary, folder: Path) -> Sections:
    """Save the pictures; the sections of the page that have some."""
    from markupsafe import Markup

    found: dict[str, list[dict[str, Any]]] = {name: [] for name in _SECTIONS}
    with plotting.drawing():
        for plot in plots.figures(state, summary):
            plotting.save(plot.figure, folder, plot.name)
            if plot.section in found:  # the page has parallel coordinates of its own, which answer to the mouse
                # Drawn by matplotlib, all words as outlines: there is no text of the user's in it.
                drawn = Markup(plots.page_svg(plot, folder))
                wide = plot.figure.get_size_inches()[0] > _HALF
                found[plot.section].append({"title": plot.title, "svg": drawn, "wide": wide})
    return [(name, _SECTIONS[name], drawn) for name, drawn in found.items() if drawn]


def render(
    state: SweepState, summary: Summary, efficiency: Efficiency | None, sections: Sections, now: datetime
) -> str:
    """The page; everything that comes from the sweep is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(_text), trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment.get_template("page.html.j2").render(
        **content(state, summary, [(name, title) for name, title, _ in sections], now),
        plot_sections=sections,
        efficiency=None if efficiency is None else efficiency_content(efficiency),
        missing=None if plotting.can_plot() else plotting.MISSING,
        css=Markup(_text("page.css")),
        js=Markup(_text("page.js")),
    )


def _text(name: str) -> str:
    return (resources.files("promptcomp.sweeps.views") / "page" / name).read_text(encoding="utf-8")
