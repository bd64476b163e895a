"""The report of a sweep: one page that needs nothing else, and its pictures and tables as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from promptcomp.errors import ConfigError
from promptcomp.files import write_atomic
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.views import plots
from promptcomp.sweeps.views.page_content import content
from promptcomp.sweeps.views.summary import Summary, summarize
from promptcomp.sweeps.views.tables import points_csv, state_json, trials_csv

PAGE = "index.html"
_HALF = 7.5
"""Inches; wider pictures get a line of their own."""
_SECTIONS = {
    "parameters": "Parameters",
    "front": "Pareto front",
    "importances": "Importances",
    "curves": "Learning curves",
}


def write_report(state: SweepState) -> Path:
    """Write report/: index.html, every plot as PNG and SVG, trials.csv, points.csv, points.json.

    Without matplotlib there are no pictures, and the page says what to install.

    Returns:
        The page.

    Raises:
        ConfigError: the folder cannot be written.
    """
    folder = state.directory.report
    summary = summarize(state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sections = _plots(state, summary, folder) if plots.can_plot() else []
    except OSError as error:
        raise ConfigError(f"{folder}: the report cannot be written ({error.strerror or error})") from None
    write_atomic(folder / "trials.csv", trials_csv(state))
    write_atomic(folder / "points.csv", points_csv(state))
    write_atomic(folder / "points.json", json.dumps(state_json(state), indent=2, allow_nan=False) + "\n")
    write_atomic(folder / PAGE, render(state, summary, sections, datetime.now(UTC)))
    return folder / PAGE


def _plots(state: SweepState, summary: Summary, folder: Path) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Save the pictures; (id, name, pictures as SVG) of each section of the page."""
    from markupsafe import Markup

    found: dict[str, list[dict[str, Any]]] = {name: [] for name in _SECTIONS}
    with plots.drawing():
        for plot in plots.figures(state, summary):
            plots.save(plot, folder)
            if plot.section in found:  # the page has parallel coordinates of its own, which answer to the mouse
                # Drawn by matplotlib, all words as outlines: there is no text of the user's in it.
                drawn = Markup(plots.page_svg(plot, folder))
                wide = plot.figure.get_size_inches()[0] > _HALF
                found[plot.section].append({"title": plot.title, "svg": drawn, "wide": wide})
    return [(name, _SECTIONS[name], drawn) for name, drawn in found.items() if drawn]


def render(
    state: SweepState, summary: Summary, sections: Sequence[tuple[str, str, list[dict[str, Any]]]], now: datetime
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
        missing=None if plots.can_plot() else plots.MISSING,
        css=Markup(_text("page.css")),
        js=Markup(_text("page.js")),
    )


def _text(name: str) -> str:
    return (resources.files("promptcomp.sweeps.views") / "page" / name).read_text(encoding="utf-8")
