"""The report of a sweep: one page that needs nothing else, and its pictures and tables as files."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from promptcomp import __version__, plotting
from promptcomp.documents import YAML_LIMIT, read_json
from promptcomp.errors import ConfigError, command
from promptcomp.evaluation.bootstrap import Mean
from promptcomp.evaluation.formatting import many
from promptcomp.evaluation.results import finite
from promptcomp.files import read_text, unwritable, write_atomic
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.views import plots, wording
from promptcomp.sweeps.views.efficiency import efficiency_of
from promptcomp.sweeps.views.numbers import duration, log_tail
from promptcomp.sweeps.views.overview import BEST_AND_FIT, failure_title, note, notes, overview
from promptcomp.sweeps.views.plot_overviews import parallel
from promptcomp.sweeps.views.points import ROUGH_BELOW, Summary
from promptcomp.sweeps.views.tables import efficiency_csv, points_csv, state_json, trials_csv
from promptcomp.webpage import web_page

PAGE = "index.html"
_HALF = 7.5
"""Inches; wider pictures get a line of their own."""
_TAIL = 40
_RECORDED = ("promptcomp", "platform", "git_commit", "gpus")
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

    Returns:
        The page.

    Raises:
        ConfigError: the folder cannot be written.
    """
    folder = state.directory.report
    summary, efficiency = Summary(state), efficiency_of(state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = _pictures(summary, folder)
    except OSError as error:
        raise unwritable(folder, error) from None
    files = {
        "trials.csv": trials_csv(state),
        "points.csv": points_csv(state),
        "points.json": json.dumps(state_json(state), indent=2, allow_nan=False) + "\n",
    }
    if efficiency is not None:
        files["efficiency.csv"] = efficiency_csv(efficiency)
        files["efficiency.json"] = efficiency.model_dump_json(indent=2) + "\n"
    sections = [(key, title, pictures[key]) for key, title in _SECTIONS.items() if key in pictures]
    files[PAGE] = _page(summary, sections=sections, efficiency=efficiency)
    for name, text in files.items():
        write_atomic(folder / name, text)
    return folder / PAGE


def _pictures(summary: Summary, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Save the pictures; those of each section of the page, as SVG."""
    from markupsafe import Markup

    found: dict[str, list[dict[str, Any]]] = {}
    with plotting.drawing():
        for plot in plots.figures(summary):
            plotting.save(plot.figure, folder, plot.name)
            if plot.section in _SECTIONS:  # the page has parallel coordinates of its own, which answer to the mouse
                # Drawn by matplotlib, all words as outlines: there is no text of the user's in it.
                drawn = Markup(plots.page_svg(plot, folder))
                wide = plot.figure.get_size_inches()[0] > _HALF
                found.setdefault(plot.section, []).append({"title": plot.title, "svg": drawn, "wide": wide})
    return found


def _page(summary: Summary, **more: Any) -> str:
    """The page; everything that comes from the sweep is escaped."""
    from markupsafe import Markup

    state, config = summary.state, summary.state.config
    short = wording.short_names(summary.dimensions)
    names = summary.varying or summary.dimensions
    having = sum(bool(point.values) for point in summary.points)
    rough = f" {having} points are few: take the shares as a hint." if having < ROUGH_BELOW else ""
    return web_page(
        "promptcomp.sweeps.views",
        "page/page.html.j2",
        state=state,
        summary=summary,
        wording=wording,
        progress=summary.progress,
        objectives=summary.objectives,
        names=names,
        metrics=[wording.objective_text(goal) for goal in summary.objectives],
        titles=[short[name] for name in names],
        title=config.title or f"Sweep of {config.experiment}",
        experiment=f"{config.experiment}, {config.sampler}, {many(config.seeds, 'seed')} a point",
        written=f"written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        counts=[(status, n) for status in wording.STATUS_STYLES if (n := summary.progress.counts[status])],
        notes=[*overview(summary)[2:], *notes(summary, on_page=True)],
        controls=_controls(summary),
        rough=f"PED-ANOVA over the means of {having} points: what separates the best points from all.{rough}",
        folder=state.directory.path,
        finished=[trial for trial in state.trials if trial.status == "finished"],
        best_and_fit=BEST_AND_FIT,
        sweep_yaml=_sweep_yaml(state),
        versions=_versions(state),
        data=parallel(summary) or {},
        js=Markup((resources.files("promptcomp.sweeps.views") / "page" / "page.js").read_text(encoding="utf-8")),
        tail_of=lambda log: "\n".join(log_tail(log, _TAIL)) or "(no log)",
        **{each.__name__: each for each in (command, duration, failure_title, finite, many, note)},
        **more,
    )


def _controls(summary: Summary) -> dict[str, dict[str, Mean]]:
    """The last lines of the table of points: title -> objective -> mean."""
    found: dict[str, dict[str, Mean]] = {}
    for objective in summary.objectives:
        for band in summary.runs.measured_bands(objective):
            found.setdefault(band.title, {})[objective.name] = band.value
    return found


def _sweep_yaml(state: SweepState) -> str:
    try:
        return read_text(state.directory.config, "sweep", YAML_LIMIT)
    except ConfigError:
        return ""


def _versions(state: SweepState) -> dict[str, Any]:
    """Of what wrote the page, and of the first trial that has recorded its own."""
    found = {"promptcomp (this page)": __version__, "Python": platform.python_version()}
    found["optuna"] = metadata.version("optuna")
    for trial in state.trials:
        try:
            record = read_json(trial.run / "environment.json", "record of the environment")["history"][-1]
            own = {**(record.get("packages") or {}), **{name: record.get(name) for name in _RECORDED}}
        except (ConfigError, KeyError, IndexError, TypeError, AttributeError):
            continue
        for name, value in own.items():
            if value:
                text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
                found[f"{name.replace('_', ' ')} (trials)"] = text
        break
    return found
