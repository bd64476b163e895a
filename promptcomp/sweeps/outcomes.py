"""What becomes of attempts: those of dead workers are taken back, finished runs are adopted, dev metrics passed on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from promptcomp.config import ConfigError
from promptcomp.run.configured import find
from promptcomp.sweeps.planning import Trial
from promptcomp.sweeps.space import PlannedTrial, planned_controls, planned_trial
from promptcomp.sweeps.state import Leases
from promptcomp.sweeps.study import Sweep
from promptcomp.sweeps.values import constraint_values, dev_reports, is_lower_better, metric_rows, objective_values

Say = Callable[[str], None]


def is_ours(sweep: Sweep, record: Trial) -> bool:
    """Whether an attempt is running in this directory (machines that share only a database have others)."""
    return record.status == "running" and record.place in ("", sweep.place)


def abandoned(sweep: Sweep) -> list[Trial]:
    """Running attempts whose worker and trainer are gone."""
    leases = Leases(sweep.directory)
    return [record for record in sweep.records() if is_ours(sweep, record) and not leases.has(record)]


def take_back(sweep: Sweep, record: Trial, say: Say) -> None:
    """Take back an abandoned trial, or adopt its results. For holders of the planning lock."""
    what, study = f"{title_of(record)} ({record.cell or 'no cell'})", sweep.study_of(record)
    if not record.cell:
        study.fail(record.number, "void")  # killed between drawing a point and noting it
        return
    spent = _spent(sweep, record)
    if is_finished(sweep, record):
        say(f"{what}: its worker has died, but its run is finished: its results are recorded")
        adopt(sweep, record, sweep.directory.path / record.run, spent)
    else:
        say(f"{what}: its worker and its own process have died; attempt {record.attempt} is over")
        study.fail(record.number, "lost", f"worker {record.worker} and the trial's process died", spent)
    sweep.directory.lease_of(record.cell).unlink(missing_ok=True)


def title_of(record: Trial) -> str:
    """An attempt, for people."""
    return f"{'control' if record.is_control else 'trial'} {record.number}"


def is_finished(sweep: Sweep, record: Trial) -> bool:
    """Whether the run directory of an attempt holds a finished run of its trial."""
    run = sweep.directory.path / record.run
    if not (run / "results.json").is_file():
        return False
    try:
        cell = cell_of(sweep, record)
    except ConfigError:
        return False
    return cell is not None and find(cell.experiment, run)[0] == "finished"


def _spent(sweep: Sweep, record: Trial) -> float:
    """Device seconds of a dead attempt: from its beginning to its lease's last touch."""
    if record.started is None:
        return 0.0
    try:
        last = sweep.directory.lease_of(record.cell).stat().st_mtime
    except OSError:
        return 0.0
    return max(0.0, last - record.started.timestamp()) * record.devices


def cell_of(sweep: Sweep, attempt: Trial, base: Mapping[str, Any] | None = None) -> PlannedTrial | None:
    """The cell of an attempt; None for a control that the sweep no longer has.

    Its run is where the attempt has it, if that is a run of the same trial: another version, with keys that this one
    lacked, would name it otherwise.

    Args:
        sweep: the sweep.
        attempt: at a trial or control.
        base: `sweep.base`, where it is there already.

    Raises:
        ConfigError: the sweep no longer has the point, or its values contradict each other.
    """
    base = sweep.base if base is None else base
    if attempt.is_control:
        found = planned_controls(sweep.config, sweep.directory, base)
        cell = next((each for each in found if (each.point, each.seed) == attempt.key), None)
    else:
        cell = planned_trial(sweep.config, sweep.directory, attempt.params, attempt.seed, base)
    run = sweep.directory.path / attempt.run
    if cell is None or attempt.cell in ("", cell.cell) or find(cell.experiment, run)[0] == "missing":
        return cell
    named = cell.experiment.model_copy(update={"name": attempt.cell})
    return replace(cell, cell=attempt.cell, experiment=named, run=run)


def adopt(sweep: Sweep, trial: Trial, run: Path, device_seconds: float) -> str | None:
    """Tell the results of a finished run.

    Returns:
        Why it has no value; None: it has been told (by this worker, or by another one before).
    """
    study, number = sweep.study_of(trial), trial.number
    study.note(number, run=os.path.relpath(run, sweep.directory.path))
    if trial.is_control:
        study.complete(number, [0.0], {}, device_seconds)  # its values are read from its run
        return None
    try:
        values = list(objective_values(sweep.config, run).values())
        constraints = constraint_values(sweep.config, run)
    except ConfigError as error:
        study.fail(number, "value", str(error), device_seconds)
        return str(error)
    report(sweep, trial, run)
    study.complete(number, values, constraints, device_seconds)
    return None


def report(sweep: Sweep, trial: Trial, run: Path) -> tuple[str | None, dict[int, float]]:
    """Tell Optuna the dev metric of a run so far, better ones in the direction of the objective.

    Returns:
        The metric and its values.
    """
    metric, found = dev_reports(metric_rows(run), sweep.config.pruning.metric)
    if metric is None or len(sweep.config.objectives) > 1:  # Optuna takes reports for one objective only
        return metric, found
    sign = sweep.config.objectives[0].sign
    sweep.trials.report(trial.number, found, -sign if is_lower_better(metric) else sign)
    return metric, found
