"""What the page of a sweep says, as plain values for its template."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from typing import Any

from promptcomp import __version__
from promptcomp.config import ConfigError
from promptcomp.documents import YAML_LIMIT, read_json
from promptcomp.errors import command
from promptcomp.evaluation.seeds import Mean
from promptcomp.files import read_text
from promptcomp.sweeps.state import SweepState, Trial
from promptcomp.sweeps.views.axes import Axis, axis_of
from promptcomp.sweeps.views.efficiency import Efficiency
from promptcomp.sweeps.views.efficiency_text import cells, columns, heading, sentences
from promptcomp.sweeps.views.importance import ROUGH_BELOW
from promptcomp.sweeps.views.numbers import Runs, finite, log_tail
from promptcomp.sweeps.views.overview import failure_title, overview, remarks
from promptcomp.sweeps.views.pace import duration
from promptcomp.sweeps.views.points import Point, Summary, sign_of
from promptcomp.sweeps.views.tables import remark
from promptcomp.sweeps.views.wording import (
    amount,
    device_hours_text,
    many,
    mean_text,
    objective_text,
    params_text,
    scalar_text,
    short_names,
    time_text,
)

_TAIL = 40
_BAR = ("finished", "pruned", "failed", "stale", "running", "waiting")


def content(
    state: SweepState, summary: Summary, plot_sections: Sequence[tuple[str, str]], now: datetime
) -> dict[str, Any]:
    """All variables of the template but pictures, style and script."""
    progress = summary.progress
    names = list(summary.varying or summary.dimensions)
    short = short_names(summary.dimensions)
    against = ["minus best"] if summary.best else []
    parallel = _parallel(state, summary)
    failures = [_failure(state, summary, trial) for trial in reversed(summary.failures)]
    counts = [(status, progress.counts[status]) for status in _BAR if progress.counts[status]]
    return {
        "title": state.config.title or f"Sweep of {state.config.experiment}",
        "experiment": f"{state.config.experiment}, {state.config.sampler}, {many(state.config.seeds, 'seed')} a point",
        "written": f"written {now:%Y-%m-%d %H:%M} UTC",
        "sections": _sections(parallel is not None, plot_sections, bool(failures)),
        "best": _best(summary),
        "done": f"{progress.done} of {progress.planned}",
        "counts": ", ".join(f"{count} {status}" for status, count in counts),
        "bar": [{"status": status, "count": count} for status, count in counts],
        "elapsed": time_text(progress.elapsed),
        "device_hours": device_hours_text(progress),
        "remarks": [*overview(state, summary)[2:], *remarks(state, summary, legend=False)],
        "columns": ["", *(short[n] for n in names), "seeds", *_metrics(summary), *against],
        "rows": [_row(point, summary, names) for point in summary.points],
        "controls": _controls(state, summary, len(names)),
        "parallel": parallel is not None,
        "importances_note": _importances_note(summary),
        "failures": failures,
        "trial_columns": ["cell", *(short[n] for n in names), "seed", "status", "attempts", *_metrics(summary), "time"],
        "trials": [_trial(trial, summary, names) for trial in state.trials],
        "commands": _commands(state, summary),
        "sweep_yaml": _sweep_yaml(state),
        "versions": _versions(state),
        "data": parallel or {},
    }


def _sections(parallel: bool, plots: Sequence[tuple[str, str]], failures: bool) -> list[tuple[str, str]]:
    found = [("summary", "Summary"), ("points", "Points")]
    found += [("parallel", "All dimensions")] if parallel else []
    found += [*plots, *([("failures", "Failures")] if failures else [])]
    return [*found, ("trials", "Trials"), ("commands", "Commands"), ("versions", "Versions")]


def _best(summary: Summary) -> dict[str, Any]:
    if summary.several:
        text = f"{len(summary.front)} points" if summary.front else "none yet"
        shown = [f"{params_text(p.params, summary.varying)}: {_values(p, summary)}" for p in summary.front[:6]]
        return {"heading": "Pareto front", "text": text, "lines": shown}
    point = summary.best
    if point is None:
        return {"heading": "Best point", "text": "none", "lines": [summary.why_no_best]}
    near = sum(bool(other.within_noise) for other in summary.points)
    noise = [f"{near} other points are within noise of it" if near > 1 else "one other point is within noise of it"]
    lines = [f"{_values(point, summary)} over {many(point.seeds, 'seed')}", *(noise if near else [])]
    return {"heading": "Best point", "text": params_text(point.params, summary.varying), "lines": lines}


def _values(point: Point, summary: Summary) -> str:
    shown = [(o, point.values.get(o.name)) for o in summary.objectives]
    return ", ".join(f"{objective_text(o)} {mean_text(mean, o.name)}" for o, mean in shown)


def _row(point: Point, summary: Summary, names: Sequence[str]) -> dict[str, Any]:
    means = [_mean_cell(point.values.get(o.name), o.name) for o in summary.objectives]
    first = summary.objectives[0].name
    style = "top" if point.is_best or point.on_front else "" if point.feasible and point.values else "out"
    return {
        "point": point.point,
        "style": style,
        "mark": remark(point),
        "params": [_cell(point.params.get(name)) if name in point.params else _cell("") for name in names],
        "seeds": point.seeds,
        "means": [*means, *([_mean_cell(point.versus_best, first, "+")] if summary.best else [])],
    }


def _cell(value: Any) -> dict[str, Any]:
    """A cell with what it is sorted by."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"text": scalar_text(value), "sort": value if number else scalar_text(value)}


def _mean_cell(mean: Mean | None, metric: str, sign: str = "") -> dict[str, Any]:
    return {"text": mean_text(mean, metric, sign), "sort": "" if mean is None else mean.mean}


def efficiency_content(found: Efficiency) -> dict[str, Any]:
    """The table of methods and shares of the training data, and what it says."""
    table = {"columns": columns(found), "rows": cells(found)}
    return {"heading": heading(found), **table, "sentences": sentences(found)}


def _controls(state: SweepState, summary: Summary, span: int) -> list[dict[str, Any]]:
    found = []
    for line in Runs(state).lines(summary.objectives):
        cells = [_mean_cell(mean, o.name) for mean, o in zip(line.means, summary.objectives, strict=True)]
        cells += [{"text": "", "sort": ""}] if summary.best else []
        found.append({"title": line.title, "span": span, "seeds": line.seeds, "means": cells})
    return found


def _parallel(state: SweepState, summary: Summary) -> dict[str, Any] | None:
    """Columns and points for the script; None: fewer than two dimensions vary, or nothing has a value."""
    first = summary.objectives[0]
    points = [p for p in summary.points if first.name in p.values]
    if len(summary.varying) < 2 or not points:
        return None
    columns = [axis_of(state.config, name, [p.params for p in points]) for name in summary.varying]
    measured = []
    for objective in summary.objectives:
        values = sorted({p.values[objective.name].mean for p in points if objective.name in p.values})
        if values:
            measured.append((objective, Axis(objective.name, objective_text(objective), "linear", tuple(values))))
    scale = {o.name: axis for o, axis in measured}[first.name]
    drawn = []
    for point in points:
        shares = [axis.share(point.params[axis.name]) if axis.name in point.params else None for axis in columns]
        means = [(axis, point.values.get(o.name)) for o, axis in measured]
        shares += [None if mean is None else axis.share(mean.mean) for axis, mean in means]
        good = scale.share(point.values[first.name].mean)
        drawn.append(
            {
                "id": point.point,
                "shares": shares,
                "good": good if sign_of(first) > 0 else 1 - good,
                "top": point.is_best or point.on_front,
                "text": f"{params_text(point.params, summary.varying)}: {_values(point, summary)}",
            }
        )
    titled = [{"title": axis.title, "ticks": _ticks(axis, "")} for axis in columns]
    titled += [{"title": axis.title, "ticks": _ticks(axis, o.name)} for o, axis in measured]
    return {"columns": titled, "points": drawn}


def _ticks(axis: Axis, metric: str) -> list[tuple[float, str]]:
    values = axis.values if axis.discrete and not metric else (axis.values[0], axis.values[-1])
    texts = [amount(metric, value) if metric and isinstance(value, float) else scalar_text(value) for value in values]
    return [(axis.share(value), text) for value, text in zip(values, texts, strict=True)]


def _importances_note(summary: Summary) -> str:
    having = sum(bool(point.values) for point in summary.points)
    rough = f" {having} points are few: take the shares as a hint." if having < ROUGH_BELOW else ""
    return f"PED-ANOVA over the means of {having} points: what separates the best points from all.{rough}"


def _failure(state: SweepState, summary: Summary, trial: Trial) -> dict[str, str]:
    log = state.directory.log_of(trial.cell)
    tail = "\n".join(log_tail(log, _TAIL)) or "(no log)"
    return {"title": failure_title(trial, summary), "tail": tail, "log": str(log)}


def _metrics(summary: Summary) -> list[str]:
    return [objective_text(objective) for objective in summary.objectives]


def _trial(trial: Trial, summary: Summary, names: Sequence[str]) -> list[dict[str, Any]]:
    cells = [_cell(trial.cell), *(_cell(trial.params.get(name, "")) for name in names)]
    cells += [_cell(trial.seed), _cell(trial.status), _cell(trial.attempt)]
    for objective in summary.objectives:
        value = finite(trial.values.get(objective.name))
        cells.append(
            {"text": "-" if value is None else amount(objective.name, value), "sort": "" if value is None else value}
        )
    seconds = duration(trial)
    cells.append({"text": time_text(seconds), "sort": "" if seconds is None else seconds})
    return cells


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


def _versions(state: SweepState) -> list[tuple[str, str]]:
    """Of what wrote the page, and of the first trial that has recorded its own."""
    found = [("promptcomp (this page)", __version__), ("Python", platform.python_version())]
    found += [(name, metadata.version(name)) for name in ("optuna",)]
    for trial in state.trials:
        try:
            record = read_json(trial.run / "environment.json", "record of the environment")["history"][-1]
        except (ConfigError, KeyError, IndexError, TypeError):
            continue
        if isinstance(record, dict):
            return [*found, *_recorded(record)]
    return found


def _recorded(record: dict[str, Any]) -> list[tuple[str, str]]:
    packages = record.get("packages")
    lines = [(f"{name} (trials)", str(version)) for name, version in packages.items()] if packages else []
    for key in ("promptcomp", "platform", "git_commit", "gpus"):
        value = record.get(key)
        if value:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            lines.append((f"{key.replace('_', ' ')} (trials)", text))
    return lines
