"""Handing out trials: under the planning lock, dead workers' trials are taken back, the plan is brought up to date, and
one trial is given to the worker that asks; finished runs are adopted, dev metrics are passed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from promptcomp.config import ConfigError
from promptcomp.lease import Keeper
from promptcomp.run.configured import find
from promptcomp.sweeps.planning import TrialRecord, dropped, groups, is_double, missing, used_up
from promptcomp.sweeps.queue import Queue, draw_point
from promptcomp.sweeps.space import (
    PlannedTrial,
    base_tree,
    distributions,
    grid,
    planned_controls,
    planned_trial,
    point_id,
)
from promptcomp.sweeps.state import Leases, note_of
from promptcomp.sweeps.storage import exclusive
from promptcomp.sweeps.study import Sweep
from promptcomp.sweeps.sweep_config import Budget, Scalar
from promptcomp.sweeps.values import constraint_values, dev_reports, is_lower_better, metric_rows, objective_values


@dataclass(frozen=True, slots=True)
class Claim:
    """A trial that a worker has taken."""

    queue: Queue
    number: int
    attempt: int
    cell: PlannedTrial


@dataclass(frozen=True, slots=True)
class Nothing:
    """No trial for this worker now."""

    why: Literal["done", "wait", "budget"]
    detail: str = ""


class Desk:
    """Hands out the trials of a sweep to one worker.

    Args:
        sweep: the sweep.
        keeper: the worker's lease.
        say: is told what happens to trials.
    """

    def __init__(self, sweep: Sweep, keeper: Keeper, say: Say) -> None:
        self.sweep, self.keeper, self.say = sweep, keeper, say

    def claim(self, stopped: Callable[[], bool]) -> Claim | Nothing:
        """The next trial, or why there is none.

        Raises:
            InterruptedError: `stopped` while waiting for the lock.
        """
        sweep = self.sweep
        with exclusive(sweep.directory, sweep.address, stopped):
            sweep.reload()
            reap(sweep, self.say)
            over = used_up(sweep.config, sweep.records(), sweep.started, datetime.now(UTC))
            claim = None if over else self._claim_trial() or self._claim_control()
            if claim is not None:
                return claim
            if over:
                return Nothing("budget", over)
            return Nothing("wait" if any(is_ours(sweep, each) for each in sweep.records()) else "done")

    def _claim_trial(self) -> Claim | None:
        sweep, queue = self.sweep, self.sweep.trials
        config = sweep.config
        self._plan_trials()
        claim = self._pop(queue)
        if claim is not None or config.sampler == "grid":
            return claim
        known = {record.point: record.params for record in queue.records() if record.point}
        limit = config.budget.trials
        if len(known) >= (config.points or 0) or (limit is not None and len(groups(queue.records())) >= limit):
            return None
        drawn = draw_point(queue, config, distributions(config), set(known))
        if drawn is None:
            queue.set_attribute("exhausted", len(known) * config.seeds)
            return None
        number, params = drawn
        cell = planned_trial(config, sweep.directory, params, config.first_seed)
        queue.note(number, **self._notes(cell, 1), started=datetime.now(UTC).isoformat(), cell=cell.cell)
        self.keeper.note(note_of(number, False))
        self._plan_trials()
        return Claim(queue, number, 1, cell)

    def _notes(self, cell: PlannedTrial, attempt: int) -> dict[str, object]:
        return {
            "point": cell.point,
            "seed": cell.seed,
            "attempt": attempt,
            "params": dict(cell.params),
            "worker": self.keeper.lease.name,
            "place": self.sweep.place,
            **self._run_notes(cell),
        }

    def _run_notes(self, cell: PlannedTrial) -> dict[str, object]:
        return {"run": relative(cell.run, self.sweep.directory.path), "devices": devices_of(cell)}

    def _points(self) -> dict[str, Mapping[str, Scalar]]:
        """Identity -> parameters of the points that the sweep has now."""
        config = self.sweep.config
        if config.sampler == "grid":
            return {point_id(params): params for params in grid(config)}
        return {record.point: record.params for record in self.sweep.trials.records() if record.point}

    def _plan_trials(self) -> None:
        sweep = self.sweep
        planned = missing(sweep.config, self._points(), sweep.trials.records())
        if not planned:
            return
        base = base_tree(sweep.config)
        for each in planned:
            cell = planned_trial(sweep.config, sweep.directory, each.params, each.seed, base)
            sweep.trials.enqueue(each, cell.cell)

    def _claim_control(self) -> Claim | None:
        sweep = self.sweep
        cells = controls_of(self.sweep)
        if not cells:
            return None
        config = sweep.config.model_copy(update={"dropping": None, "budget": Budget()})
        points: dict[str, Mapping[str, Scalar]] = {point: {} for point, _ in cells}
        for each in missing(config, points, sweep.controls.records()):
            sweep.controls.enqueue(each, cells[each.point, each.seed].cell)
        return self._pop(sweep.controls)

    def _pop(self, queue: Queue) -> Claim | None:
        """Take a waiting attempt, those that were begun before first; drop those that are no longer wanted."""
        while True:
            records = queue.records()
            begun = {record.key for record in records if record.state == "fail" and record.kind != "void"}
            waiting = [record for record in records if record.state == "waiting"]
            waiting.sort(key=lambda record: (record.key not in begun, record.number))
            wanted = self._wanted(queue, records)
            for record in waiting:
                if record.key not in wanted or is_double(record, records):
                    queue.drop(record.number)
                    continue
                claim = self._take(queue, record)
                if claim is not None:
                    return claim
                break  # another worker was faster (no working lock on this disk): look again
            else:
                return None

    def _wanted(self, queue: Queue, records: list[TrialRecord]) -> set[tuple[str, int]]:
        config = self.sweep.config
        seeds = range(config.first_seed, config.first_seed + config.seeds)
        if queue.is_control:
            return set(controls_of(self.sweep))
        points = self._points()
        out = dropped(config, tuple(points), records)
        after = config.dropping.after if config.dropping is not None else config.seeds
        return {
            (point, seed) for point in points for seed in seeds if point not in out or seed - config.first_seed < after
        }

    def _take(self, queue: Queue, record: TrialRecord) -> Claim | None:
        cell = planned_of_record(self.sweep, queue, record)
        if cell is None:
            return None
        self.keeper.note(note_of(record.number, queue.is_control))
        if not queue.take(record.number, self.keeper.lease.name, self.sweep.place):
            self.keeper.note("")
            return None
        queue.note(record.number, cell=cell.cell, **self._run_notes(cell))
        if not queue.is_control:
            queue.put_parameters(record.number, record.params, distributions(self.sweep.config))
        return Claim(queue, record.number, record.attempt, cell)


Say = Callable[[str], None]


def is_ours(sweep: Sweep, record: TrialRecord) -> bool:
    """Whether an attempt is running in this directory (machines that share only a database have others)."""
    return record.state == "running" and record.place in ("", sweep.place)


def abandoned(sweep: Sweep) -> list[tuple[Queue, TrialRecord]]:
    """Running attempts whose worker and trainer are gone, with their queue."""
    leases = Leases(sweep.directory)
    return [
        (queue, record)
        for queue in sweep.queues
        for record in queue.records()
        if is_ours(sweep, record) and not leases.has(record, queue.is_control)
    ]


def reap(sweep: Sweep, say: Say) -> None:
    """Take back abandoned trials; those that have results are adopted. For holders of the planning lock."""
    for queue, record in abandoned(sweep):
        _take_back(sweep, queue, record, say)


def _take_back(sweep: Sweep, queue: Queue, record: TrialRecord, say: Say) -> None:
    what = f"{note_of(record.number, queue.is_control)} ({record.cell or 'no cell'})"
    if not record.cell:
        queue.drop(record.number)  # killed between drawing a point and noting it
        return
    spent, run = _spent(sweep, record), record.run_in(sweep.directory, queue.is_control)
    if is_finished(sweep, queue, record):
        say(f"{what}: its worker is gone, its run is finished: adopted")
        adopt(sweep, queue, record.number, run, spent)
    elif not record.worker:
        queue.fail(record.number, "interrupted", "its worker died before it began")
    else:
        say(f"{what}: its worker and its trainer are gone; attempt {record.attempt} is over")
        queue.fail(record.number, "lost", f"worker {record.worker} and its trainer died", spent)
    sweep.directory.lease_of(record.cell).unlink(missing_ok=True)


def is_finished(sweep: Sweep, queue: Queue, record: TrialRecord) -> bool:
    """Whether the run directory of an attempt holds a finished run of its trial."""
    run = record.run_in(sweep.directory, queue.is_control)
    if not (run / "results.json").is_file():
        return False
    try:
        cell = planned_of_record(sweep, queue, record)
    except ConfigError:
        return False
    return cell is not None and find(cell.experiment, run)[0] == "finished"


def _spent(sweep: Sweep, record: TrialRecord) -> float:
    """Device seconds of a dead attempt: from its beginning to its lease's last touch."""
    if record.started is None:
        return 0.0
    try:
        last = sweep.directory.lease_of(record.cell).stat().st_mtime
    except OSError:
        return 0.0
    return max(0.0, last - record.started.timestamp()) * record.devices


def planned_of_record(sweep: Sweep, queue: Queue, record: TrialRecord) -> PlannedTrial | None:
    """The cell of an attempt; None for a control that the sweep no longer has.

    Raises:
        ConfigError: the sweep no longer has the point.
    """
    if queue.is_control:
        return controls_of(sweep).get(record.key)
    return planned_trial(sweep.config, sweep.directory, record.params, record.seed)


def controls_of(sweep: Sweep) -> dict[tuple[str, int], PlannedTrial]:
    """The controls: name and seed -> cell."""
    return {(each.point, each.seed): each for each in planned_controls(sweep.config, sweep.directory)}


def adopt(sweep: Sweep, queue: Queue, number: int, run: Path, device_seconds: float) -> str | None:
    """Tell the results of a finished run.

    Returns:
        Why it has no value; None: it has been told (by this worker, or by another one before).
    """
    queue.note(number, run=relative(run, sweep.directory.path))
    if queue.is_control:
        queue.complete(number, [0.0], {}, device_seconds)  # its values are read from its run
        return None
    try:
        values = list(objective_values(sweep.config, run).values())
        constraints = constraint_values(sweep.config, run)
    except ConfigError as error:
        queue.fail(number, "value", str(error), device_seconds)
        return str(error)
    report(sweep, queue, number, run)
    queue.complete(number, values, constraints, device_seconds)
    return None


def report(sweep: Sweep, queue: Queue, number: int, run: Path) -> tuple[str | None, dict[int, float]]:
    """Tell Optuna the dev metric of a run so far, better ones in the direction of the objective.

    Returns:
        The metric and its values.
    """
    metric, found = dev_reports(metric_rows(run), sweep.config.pruning.metric)
    if metric is None or len(sweep.config.objectives) > 1:  # Optuna takes reports for one objective only
        return metric, found
    lower = sweep.config.objectives[0].direction == "minimize"
    queue.report(number, found, 1.0 if is_lower_better(metric) == lower else -1.0)
    return metric, found


def devices_of(cell: PlannedTrial) -> int:
    """Devices (on CPU: processes) of a trial."""
    devices = cell.experiment.trainer.devices
    return devices if isinstance(devices, int) else 1


def relative(run: Path, folder: Path) -> str:
    """A run's place as noted: below the sweep's directory where it is there, so that the directory can be moved."""
    try:
        return str(run.resolve().relative_to(folder.resolve()))
    except ValueError:
        return str(run.resolve())
