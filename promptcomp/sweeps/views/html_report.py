"""The report of a sweep: one page that needs nothing else, and its pictures and tables as files."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
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
from promptcomp.files import read_text, write_atomic
from promptcomp.sweeps.state import SweepState, Trial
from promptcomp.sweeps.views import plots
from promptcomp.sweeps.views.efficiency import Efficiency, efficiency_of
from promptcomp.sweeps.views.importance import ROUGH_BELOW
from promptcomp.sweeps.views.numbers import Runs, duration, log_tail
from promptcomp.sweeps.views.overview import failure_title, note, notes, overview
from promptcomp.sweeps.views.plot_overviews import parallel
from promptcomp.sweeps.views.points import Summary, summarize
from promptcomp.sweeps.views.tables import efficiency_csv, points_csv, state_json, trials_csv
from promptcomp.sweeps.views.wording import (
    STATUS_STYLES,
    amount,
    device_hours_text,
    mean_text,
    objective_text,
    params_text,
    scalar_text,
    short_names,
    time_text,
    values_text,
)

PAGE = "index.html"
Sections = list[tuple[str, str, list[dict[str, Any]]]]
"""(id, name, pictures as SVG) of each section of the page that has pictures."""
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
    write_atomic(folder / PAGE, _render(state, summary, efficiency, sections))
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


def _render(state: SweepState, summary: Summary, efficiency: Efficiency | None, plot_sections: Sections) -> str:
    """The page; everything that comes from the sweep is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(_text), trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment.get_template("page.html.j2").render(
        **_content(state, summary),
        plot_sections=plot_sections,
        efficiency=efficiency,
        missing=None if plotting.can_plot() else plotting.MISSING,
        css=Markup(_text("page.css")),
        js=Markup(_text("page.js")),
    )


def _text(name: str) -> str:
    return (resources.files("promptcomp.sweeps.views") / "page" / name).read_text(encoding="utf-8")


def _content(state: SweepState, summary: Summary) -> dict[str, Any]:
    """What the page says, as plain values for its template."""
    progress, objectives = summary.progress, summary.objectives
    names = list(summary.varying or summary.dimensions)
    short = short_names(summary.dimensions)
    titles = [short[name] for name in names]
    metrics = [objective_text(objective) for objective in objectives]
    bar = [{"status": status, "count": progress.counts[status]} for status in STATUS_STYLES if progress.counts[status]]
    having = sum(bool(point.values) for point in summary.points)
    rough = f" {having} points are few: take the shares as a hint." if having < ROUGH_BELOW else ""
    rows = []
    for point in summary.points:
        means = [_mean_cell(point.values.get(objective.name), objective.name) for objective in objectives]
        means += [_mean_cell(point.versus_best, objectives[0].name, "+")] if summary.best else []
        rows.append(
            {
                "point": point.point,
                "style": "top" if point.is_best or point.on_front else "" if point.feasible and point.values else "out",
                "mark": note(point),
                "params": [_cell(point.params.get(name, "")) for name in names],
                "seeds": point.seeds,
                "means": means,
            }
        )
    return {
        "title": state.config.title or f"Sweep of {state.config.experiment}",
        "experiment": f"{state.config.experiment}, {state.config.sampler}, {many(state.config.seeds, 'seed')} a point",
        "written": f"written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "best": _best(summary),
        "done": f"{progress.done} of {progress.planned}",
        "counts": ", ".join(f"{part['count']} {part['status']}" for part in bar),
        "bar": bar,
        "elapsed": time_text(progress.elapsed),
        "device_hours": device_hours_text(progress),
        "notes": [*overview(state, summary)[2:], *notes(state, summary, legend=False)],
        "columns": ["", *titles, "seeds", *metrics, *(["minus best"] if summary.best else [])],
        "rows": rows,
        "controls": _controls(state, summary, len(names)),
        "importances_note": f"PED-ANOVA over the means of {having} points: what separates the best points from "
        f"all.{rough}",
        "failures": [_failure(state, summary, trial) for trial in reversed(summary.failures)],
        "trial_columns": ["cell", *titles, "seed", "status", "attempts", *metrics, "time"],
        "trials": [_trial(trial, summary, names) for trial in state.trials],
        "commands": _commands(state, summary),
        "sweep_yaml": _sweep_yaml(state),
        "versions": _versions(state),
        "data": parallel(state, summary) or {},
    }


def _best(summary: Summary) -> dict[str, Any]:
    if summary.several:
        text = f"{len(summary.front)} points" if summary.front else "none yet"
        shown = [
            f"{params_text(p.params, summary.varying)}: {values_text(p.values, summary.objectives)}"
            for p in summary.front[:6]
        ]
        return {"heading": "Pareto front", "text": text, "lines": shown}
    point = summary.best
    if point is None:
        return {"heading": "Best point", "text": "none", "lines": [summary.why_no_best]}
    near = sum(bool(other.within_noise) for other in summary.points)
    noise = [f"{near} other points are within noise of it" if near > 1 else "one other point is within noise of it"]
    lines = [f"{values_text(point.values, summary.objectives)} over {many(point.seeds, 'seed')}"]
    text = params_text(point.params, summary.varying)
    return {"heading": "Best point", "text": text, "lines": [*lines, *(noise if near else [])]}


def _cell(value: Any) -> dict[str, Any]:
    """A cell with what it is sorted by."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"text": scalar_text(value), "sort": value if number else scalar_text(value)}


def _mean_cell(mean: Mean | None, metric: str, sign: str = "") -> dict[str, Any]:
    return {"text": mean_text(mean, metric, sign), "sort": "" if mean is None else mean.mean}


def _controls(state: SweepState, summary: Summary, span: int) -> list[dict[str, Any]]:
    """The last lines of the table of points."""
    runs = Runs(state)
    # The ends of `retained` have no seeds: they are 1 and 0 by definition, no result.
    bands = [{b.title: b.value for b in runs.bands(o, None) if b.value.seeds} for o in summary.objectives]
    found = []
    for title in dict.fromkeys(title for own in bands for title in own):
        means = [own.get(title) for own in bands]
        cells = [_mean_cell(mean, o.name) for mean, o in zip(means, summary.objectives, strict=True)]
        cells += [_cell("")] if summary.best else []
        seeds = max(mean.seeds for mean in means if mean is not None)
        found.append({"title": title, "span": span, "seeds": seeds, "means": cells})
    return found


def _failure(state: SweepState, summary: Summary, trial: Trial) -> dict[str, str]:
    log = state.directory.log_of(trial.cell)
    tail = "\n".join(log_tail(log, _TAIL)) or "(no log)"
    return {"title": failure_title(trial, summary), "tail": tail, "log": str(log)}


def _trial(trial: Trial, summary: Summary, names: Sequence[str]) -> list[dict[str, Any]]:
    cells = [_cell(trial.cell), *(_cell(trial.params.get(name, "")) for name in names)]
    cells += [_cell(trial.seed), _cell(trial.status), _cell(trial.attempt)]
    for objective in summary.objectives:
        value = finite(trial.values.get(objective.name))
        text = "-" if value is None else amount(objective.name, value)
        cells.append({"text": text, "sort": "" if value is None else value})
    seconds = duration(trial)
    return [*cells, {"text": time_text(seconds), "sort": "" if seconds is None else seconds}]


def _commands(state: SweepState, summary: Summary) -> list[tuple[str, str]]:
    folder = state.directory.path
    found = [("continue it, or join it from another machine", command("sweep", folder))]
    found += [("see it in a terminal", command("sweep", "show", folder))]
    found += [("run it anew", command("sweep", state.directory.config, "-o", "NEW_DIRECTORY"))]
    if summary.best is not None or summary.front:
        choice = ("--objective", summary.objectives[0].name) if summary.several else ()
        best, fit = command("sweep", "best", folder, *choice), command("fit", "--config", "best.yaml")
        found.append(("train the best point", f"{best} > best.yaml && {fit}"))
    finished = [trial for trial in state.trials if trial.status == "finished"]
    if finished:
        again = command("fit", "--config", finished[0].run / "config.yaml")
        found.append(("repeat a single trial (here the first)", again))
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
