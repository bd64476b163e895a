"""A sweep as files: points, trials and shares of the training data as CSV, everything as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from promptcomp.evaluation.bootstrap import Mean
from promptcomp.evaluation.results import finite
from promptcomp.plain import csv_text
from promptcomp.sweeps.planning import Trial
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.views.efficiency import Efficiency, efficiency_of
from promptcomp.sweeps.views.points import ROUGH_BELOW, Point, Summary

VERSION = 1
_NOT_SHOWN = ("reports", "kind", "place", "devices")
_MEAN = ("", "_low", "_high", "_std", "_seeds")
"""Endings of a mean's columns."""


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
