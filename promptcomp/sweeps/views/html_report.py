"""The report of a sweep: one page that needs nothing else; pictures, tables (CSV) and everything (JSON) as files."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import fields
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
from promptcomp.plain import csv_text
from promptcomp.sweeps.planning import Trial
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.views import plots, wording
from promptcomp.sweeps.views.efficiency import Efficiency, efficiency_of
from promptcomp.sweeps.views.numbers import duration, log_tail
from promptcomp.sweeps.views.overview import BEST_AND_FIT, failure_title, note, notes, overview
from promptcomp.sweeps.views.plot_overviews import parallel
from promptcomp.sweeps.views.points import ROUGH_BELOW, Point, Summary
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
VERSION = 1
_NOT_SHOWN = ("reports", "kind", "place", "devices")
_MEAN = ("", "_low", "_high", "_std", "_seeds")
"""Endings of a mean's columns."""


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


def points_csv(state: SweepState) -> str:
    """One line for each point, best first."""
    summary = Summary(state)
    names = [objective.name for objective in summary.objectives]
    marks = ("complete", "feasible", "best", "front", "within_noise")
    header = ["point", *summary.dimensions, "seeds", *marks, *(name + end for name in names for end in _MEAN[:-1])]
    lines = []
    for point in summary.points:
        means = [cell for name in names for cell in _cells(point.values.get(name))[:-1]]
        own = map(_point_record(point).get, marks)
        lines.append([point.point, *map(point.params.get, summary.dimensions), point.seeds, *own, *means])
    return _csv(header, lines)


def trials_csv(state: SweepState) -> str:
    """One line for each trial, in the order in which they were planned."""
    summary = Summary(state)
    metrics = [objective.name for objective in summary.objectives]
    constraints = sorted({name for trial in state.trials for name in trial.constraints})
    first, last = ("number", "cell", "point"), ("device_seconds", "worker", "run", "problem")
    header = [*first, *summary.dimensions, "seed", "status", "attempt", *metrics]
    header += [*(f"outside_{name}" for name in constraints), "step", "max_steps", "started", "ended", *last]
    lines = []
    for t in state.trials:
        line = [t.number, t.cell, t.point, *map(t.params.get, summary.dimensions), t.seed, t.status, t.attempt]
        line += [finite(t.values.get(name)) for name in metrics]
        line += [finite(t.constraints.get(name)) for name in constraints]
        times = [time.isoformat(timespec="seconds") if time else None for time in (t.started, t.ended)]
        lines.append([*line, t.step, t.max_steps, *times, *(getattr(t, name) for name in last)])
    return _csv(header, lines)


def efficiency_csv(found: Efficiency) -> str:
    """One line for each size and share of the training data: every method's mean, the differences to the baselines."""
    names = (*found.methods, *(f"minus_{name}" for name in found.baselines))
    lines = []
    for row in found.rows:
        means = (*map(row.values.get, found.methods), *map(row.minus.get, found.baselines))
        lines.append([row.size, found.sizes[row.size], row.share, *(c for mean in means for c in _cells(mean))])
    return _csv(["size", "parameters", "share", *(name + end for name in names for end in _MEAN)], lines)


def _cells(mean: Mean | None) -> list[float | None]:
    return [None] * 5 if mean is None else [mean.mean, *(mean.ci or (None, None)), mean.std, mean.seeds]


def _csv(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    return csv_text(header, ([str(v).lower() if isinstance(v, bool) else v for v in line] for line in lines))


def state_json(state: SweepState) -> dict[str, Any]:
    """Everything as JSON values; numbers that are not finite are null."""
    summary, efficiency = Summary(state), efficiency_of(state)
    p = summary.progress
    progress = {
        **p.counts,
        "planned": p.planned,
        "left_out": p.left_out,
        "controls": p.controls,
        "controls_done": p.controls_done,
        "device_hours": p.device_hours,
        "control_hours": p.control_hours,
        "elapsed_seconds": p.elapsed,
        "eta_seconds": p.eta,
        "workers": state.workers,
        "stopped_by": state.stopped_by,
    }
    return {
        "version": VERSION,
        "directory": str(state.directory.path),
        "title": state.config.title,
        "config": state.config.model_dump(mode="json"),
        "progress": progress,
        "best": summary.best.point if summary.best else None,
        "why_no_best": summary.why_no_best,
        "front": [point.point for point in summary.front],
        "points": [_point_record(point) for point in summary.points],
        "controls": {
            objective.name: {
                band.name: {**band.value.model_dump(mode="json"), "trained": band.trained}
                for band in summary.runs.bands(objective, None)
            }
            for objective in summary.objectives
        },
        "importances": {metric: dict(found) for metric, found in summary.importances.items()},
        "importances_rough": sum(bool(point.values) for point in summary.points) < ROUGH_BELOW,
        "efficiency": efficiency and efficiency.model_dump(mode="json"),
        "trials": [_trial_record(trial) for trial in state.trials],
    }


def _point_record(point: Point) -> dict[str, Any]:
    return {
        "point": point.point,
        "params": dict(point.params),
        "seeds": point.seeds,
        "values": {metric: mean.model_dump(mode="json") for metric, mean in point.values.items()},
        "complete": point.complete,
        "feasible": point.feasible,
        "violated": {name: finite(value) for name, value in point.violated.items()},
        "dropped": point.dropped,
        "best": point.is_best,
        "front": point.on_front,
        "minus_best": point.versus_best and point.versus_best.model_dump(mode="json"),
        "within_noise": point.within_noise,
    }


def _trial_record(trial: Trial) -> dict[str, Any]:
    numbers = {key: {k: finite(v) for k, v in getattr(trial, key).items()} for key in ("values", "constraints")}
    times = {key: time and time.isoformat() for key, time in (("started", trial.started), ("ended", trial.ended))}
    own = {field.name: getattr(trial, field.name) for field in fields(trial) if field.name not in _NOT_SHOWN}
    return {**own, "params": dict(trial.params), "run": str(trial.run), **numbers, **times}


FORMATS: dict[str, Callable[[SweepState], str]] = {"csv": points_csv, "trials": trials_csv}
"""What `promptcomp sweep show --format` offers besides the table and JSON."""
