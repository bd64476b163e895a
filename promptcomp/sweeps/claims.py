"""Handing out trials: under the planning lock, dead workers' trials are taken back, the plan is brought up to date, and
one trial is given to the worker that asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from promptcomp.config import ConfigError
from promptcomp.run.controls import find
from promptcomp.run.lease import Keeper
from promptcomp.sweeps.config import Budget, Scalar
from promptcomp.sweeps.planning import Record, dropped, groups, is_double, missing, used_up
from promptcomp.sweeps.queue import Queue
from promptcomp.sweeps.sampling import draw_point
from promptcomp.sweeps.snapshot import Leases, note_of
from promptcomp.sweeps.space import Cell, base_tree, cell_of, control_cells, distributions, grid, point_id
from promptcomp.sweeps.storage import exclusive
from promptcomp.sweeps.study import Sweep
from promptcomp.sweeps.values import constraint_values, dev_reports, is_lower_better, objective_values

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Claim:
    """A trial that a worker has taken."""

    queue: Queue
    number: int
    attempt: int
    cell: Cell
    is_control: bool


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
            self.reap()
            trials = sweep.trials.records()
            over = used_up(sweep.config, trials, sweep.started, datetime.now(UTC))
            claim = None if over else self._claim_trial() or self._claim_control()
            if claim is not None:
                return claim
            if over:
                return Nothing("budget", over)
            records = [*sweep.trials.records(), *sweep.controls.records()]
            return Nothing("wait" if any(self._is_ours(each) for each in records) else "done")

    def _is_ours(self, record: Record) -> bool:
        return record.state == "running" and record.place in ("", self.sweep.place)

    def reap(self) -> int:
        """Take back the trials whose worker and trainer are gone; those that have results are adopted.

        Returns:
            How many.
        """
        leases = Leases(self.sweep.directory)
        count = 0
        for queue, is_control in ((self.sweep.trials, False), (self.sweep.controls, True)):
            for record in queue.records():
                if self._is_ours(record) and not leases.has(record, is_control):
                    count += 1
                    self._take_back(queue, record, is_control)
        return count

    def _take_back(self, queue: Queue, record: Record, is_control: bool) -> None:
        what = f"{'control' if is_control else 'trial'} {record.number} ({record.cell or 'no cell'})"
        if not record.cell:
            queue.drop(record.number)  # killed between drawing a point and noting it
            return
        spent = self._spent(record)
        run = self._run_of(record, is_control)
        if (run / "results.json").is_file() and self._is_finished(record, run, is_control):
            self.say(f"{what}: its worker is gone, its run is finished: adopted")
            adopt(self.sweep, queue, record.number, run, spent, is_control)
        elif not record.worker:
            queue.fail(record.number, "interrupted", "its worker died before it began")
        else:
            self.say(f"{what}: its worker and its trainer are gone; attempt {record.attempt} is over")
            queue.fail(record.number, "lost", f"worker {record.worker} and its trainer died", spent)
        self.sweep.directory.lease_of(record.cell).unlink(missing_ok=True)

    def _run_of(self, record: Record, is_control: bool) -> Path:
        directory = self.sweep.directory
        folder = directory.controls if is_control else directory.runs
        return directory.path / record.run if record.run else folder / record.cell

    def _is_finished(self, record: Record, run: Path, is_control: bool) -> bool:
        try:
            cell = self._cell(record, is_control)
        except ConfigError:
            return False
        return cell is not None and find(cell.experiment, run)[0] == "finished"

    def _spent(self, record: Record) -> float:
        """Device seconds of a dead attempt: from its beginning to its lease's last touch."""
        if record.started is None:
            return 0.0
        try:
            last = self.sweep.directory.lease_of(record.cell).stat().st_mtime
        except OSError:
            return 0.0
        return max(0.0, last - record.started.timestamp()) * record.devices

    def _cell(self, record: Record, is_control: bool) -> Cell | None:
        if is_control:
            return self._controls().get((record.point, record.seed))
        return cell_of(self.sweep.config, self.sweep.directory, record.params, record.seed)

    def _controls(self) -> dict[tuple[str, int], Cell]:
        return {(each.point, each.seed): each for each in control_cells(self.sweep.config, self.sweep.directory)}

    def _claim_trial(self) -> Claim | None:
        sweep, queue = self.sweep, self.sweep.trials
        config = sweep.config
        self._plan_trials()
        claim = self._pop(queue, is_control=False)
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
        cell = cell_of(config, sweep.directory, params, config.first_seed)
        queue.note(number, **self._notes(cell, 1), started=datetime.now(UTC).isoformat(), cell=cell.cell)
        self.keeper.note(note_of(number, False))
        self._plan_trials()
        return Claim(queue, number, 1, cell, is_control=False)

    def _notes(self, cell: Cell, attempt: int) -> dict[str, object]:
        return {
            "point": cell.point,
            "seed": cell.seed,
            "attempt": attempt,
            "params": dict(cell.params),
            "worker": self.keeper.lease.name,
            "place": self.sweep.place,
            **self._run_notes(cell),
        }

    def _run_notes(self, cell: Cell) -> dict[str, object]:
        return {"run": _relative(cell.run, self.sweep.directory.path), "devices": devices_of(cell)}

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
            cell = cell_of(sweep.config, sweep.directory, each.params, each.seed, base)
            sweep.trials.enqueue(each, cell.cell)

    def _claim_control(self) -> Claim | None:
        sweep = self.sweep
        cells = self._controls()
        if not cells:
            return None
        config = sweep.config.model_copy(update={"dropping": None, "budget": Budget()})
        points: dict[str, Mapping[str, Scalar]] = {point: {} for point, _ in cells}
        for each in missing(config, points, sweep.controls.records()):
            sweep.controls.enqueue(each, cells[each.point, each.seed].cell)
        return self._pop(sweep.controls, is_control=True)

    def _pop(self, queue: Queue, is_control: bool) -> Claim | None:
        """Take a waiting attempt, those that were begun before first; drop those that are no longer wanted."""
        while True:
            records = queue.records()
            begun = {record.key for record in records if record.state == "fail" and record.kind != "void"}
            waiting = [record for record in records if record.state == "waiting"]
            waiting.sort(key=lambda record: (record.key not in begun, record.number))
            wanted = self._wanted(records, is_control)
            for record in waiting:
                if record.key not in wanted or is_double(record, records):
                    queue.drop(record.number)
                    continue
                claim = self._take(queue, record, is_control)
                if claim is not None:
                    return claim
                break  # another worker was faster (no working lock on this disk): look again
            else:
                return None

    def _wanted(self, records: list[Record], is_control: bool) -> set[tuple[str, int]]:
        config = self.sweep.config
        seeds = range(config.first_seed, config.first_seed + config.seeds)
        if is_control:
            return set(self._controls())
        points = self._points()
        out = dropped(config, tuple(points), records)
        after = config.dropping.after if config.dropping is not None else config.seeds
        return {
            (point, seed) for point in points for seed in seeds if point not in out or seed - config.first_seed < after
        }

    def _take(self, queue: Queue, record: Record, is_control: bool) -> Claim | None:
        cell = self._cell(record, is_control)
        if cell is None:
            return None
        self.keeper.note(note_of(record.number, is_control))
        if not queue.take(record.number, self.keeper.lease.name, self.sweep.place):
            self.keeper.note("")
            return None
        queue.note(record.number, cell=cell.cell, **self._run_notes(cell))
        if not is_control:
            queue.put_parameters(record.number, record.params, distributions(self.sweep.config))
        return Claim(queue, record.number, record.attempt, cell, is_control)


def adopt(sweep: Sweep, queue: Queue, number: int, run: Path, device_seconds: float, is_control: bool) -> str | None:
    """Tell the results of a finished run.

    Returns:
        Why it has no value; None: it has been told (by this worker, or by another one before).
    """
    queue.note(number, run=_relative(run, sweep.directory.path))
    if is_control:
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
    metric, found = dev_reports(run, sweep.config.pruning.metric)
    if metric is None or len(sweep.config.objectives) > 1:  # Optuna takes reports for one objective only
        return metric, found
    lower = sweep.config.objectives[0].direction == "minimize"
    queue.report(number, found, 1.0 if is_lower_better(metric) == lower else -1.0)
    return metric, found


def devices_of(cell: Cell) -> int:
    """Devices (on CPU: processes) of a trial."""
    devices = cell.experiment.trainer.devices
    return devices if isinstance(devices, int) else 1


def _relative(run: Path, folder: Path) -> str:
    """A run's place as noted: below the sweep's directory where it is there, so that the directory can be moved."""
    try:
        return str(run.resolve().relative_to(folder.resolve()))
    except ValueError:
        return str(run.resolve())
