"""Handing out trials: under the planning lock, dead workers' trials are taken back, the plan is brought up to date, and
one trial is given to the worker that asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from promptcomp.lease import Keeper
from promptcomp.sweeps.planning import Record, dropped, groups, is_double, missing, used_up
from promptcomp.sweeps.queue import Queue
from promptcomp.sweeps.reaping import Say, controls_of, devices_of, is_ours, planned_of_record, reap, relative
from promptcomp.sweeps.sampling import draw_point
from promptcomp.sweeps.snapshot import note_of
from promptcomp.sweeps.space import PlannedTrial, base_tree, distributions, grid, planned_trial, point_id
from promptcomp.sweeps.storage import exclusive
from promptcomp.sweeps.study import Sweep
from promptcomp.sweeps.sweep_config import Budget, Scalar


@dataclass(frozen=True, slots=True)
class Claim:
    """A trial that a worker has taken."""

    queue: Queue
    number: int
    attempt: int
    cell: PlannedTrial
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
            reap(sweep, self.say)
            records = [*sweep.trials.records(), *sweep.controls.records()]
            over = used_up(sweep.config, records, sweep.started, datetime.now(UTC))
            claim = None if over else self._claim_trial() or self._claim_control()
            if claim is not None:
                return claim
            if over:
                return Nothing("budget", over)
            records = [*sweep.trials.records(), *sweep.controls.records()]
            return Nothing("wait" if any(is_ours(sweep, each) for each in records) else "done")

    def _controls(self) -> dict[tuple[str, int], PlannedTrial]:
        return controls_of(self.sweep)

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
        cell = planned_trial(config, sweep.directory, params, config.first_seed)
        queue.note(number, **self._notes(cell, 1), started=datetime.now(UTC).isoformat(), cell=cell.cell)
        self.keeper.note(note_of(number, False))
        self._plan_trials()
        return Claim(queue, number, 1, cell, is_control=False)

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
        cell = planned_of_record(self.sweep, record, is_control)
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
