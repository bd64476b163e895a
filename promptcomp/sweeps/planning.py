"""The remaining work of a sweep, computed from the existing trials.

Nothing here is stored: whatever is killed between two writes, the next worker computes the same plan. No Optuna, no
disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from promptcomp.sweeps.space import CONTROLS, grid, point_id
from promptcomp.sweeps.sweep_config import Scalar, SweepConfig

Kind = Literal["", "void", "interrupted", "preempted", "disk", "lost", "failed", "memory", "nan", "config", "value"]
"""Why an attempt ended without a result.

void: planned twice or no longer wanted, never run; interrupted, preempted, disk: to be continued, no attempt counted;
lost: its worker and trainer died; memory: out of memory; nan: a loss that is not finite; config: a mistake of the
user's; value: finished, but without the objective.
"""
UNCOUNTED: tuple[Kind, ...] = ("interrupted", "preempted", "disk")
_AGAIN: tuple[Kind, ...] = ("lost", "failed", "memory", "")
Key = tuple[str, int]
"""A point's identity and a seed."""


TrialStatus = Literal["waiting", "running", "stale", "finished", "pruned", "failed"]
"""waiting: an attempt that is to be begun; stale: counted as running, but its trainer's lease has run out; the next
worker takes it up again."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One point with one seed: an attempt that is to be begun or is stored; in a `SweepState` its latest one."""

    number: int = -1
    """Optuna's number of the attempt; -1 before the first."""
    cell: str = ""
    """Identity of point, seed and everything else of the experiment, which names the run directory; empty before the
    first attempt."""
    point: str = ""
    """Identity of the point; a control's name for controls."""
    params: Mapping[str, Scalar] = field(default_factory=dict)
    """Dimension -> value (the name, for choices; text, for values that are no scalars); empty for controls."""
    seed: int = 0
    status: TrialStatus = "waiting"
    attempt: int = 1
    """From 1."""
    run: Path = Path()
    """Of an attempt in the storage: from the sweep's directory."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Objective (its metric's name) -> value; empty until it has finished."""
    constraints: Mapping[str, float] = field(default_factory=dict)
    """Constraint -> how far outside its bound; 0 or less: inside."""
    reports: tuple[tuple[int, float], ...] = ()
    """(training step, dev metric), oldest first; in the storage as Optuna was told (times -1 where its direction is the
    other one)."""
    step: int = 0
    """Last training step logged."""
    max_steps: int = 0
    worker: str = ""
    """host:pid (or the SLURM job) that has it."""
    started: datetime | None = None
    ended: datetime | None = None
    device_seconds: float = 0.0
    """Duration times devices; in a `SweepState` of all attempts."""
    problem: str | None = None
    """Why the last attempt failed, in one line."""
    kind: Kind = ""
    place: str = ""
    """Identity of the sweep directory that it runs in."""
    devices: int = 1

    @property
    def key(self) -> Key:
        """Point and seed."""
        return self.point, self.seed

    @property
    def is_control(self) -> bool:
        """Whether it is one of the controls' runs."""
        return self.point in CONTROLS

    @property
    def is_over(self) -> bool:
        """Finished or pruned: never to be run again."""
        return self.status in ("finished", "pruned")


def groups(records: Iterable[Trial]) -> dict[Key, list[Trial]]:
    """The attempts of every trial, oldest first; void ones left out."""
    found: dict[Key, list[Trial]] = {}
    for record in sorted(records, key=lambda each: each.number):
        if record.kind != "void" and record.point:
            found.setdefault(record.key, []).append(record)
    return found


def standing(attempts: Sequence[Trial]) -> Trial:
    """The attempt that stands for its trial: the first that is over, otherwise a running one, otherwise the last."""
    over = [record for record in attempts if record.is_over]
    running = [record for record in attempts if record.status == "running"]
    return (over or running or list(attempts[-1:]))[0]


def next_attempt(attempts: Sequence[Trial], retries: int) -> int | None:
    """The number of the attempt that should be begun, None for none.

    Args:
        attempts: of one trial, oldest first.
        retries: further attempts after the first one.
    """
    if any(record.status != "failed" for record in attempts):
        return None
    last = attempts[-1]
    if last.kind in UNCOUNTED:
        return last.attempt
    if last.kind not in _AGAIN or last.attempt > retries:
        return None
    if last.kind == "memory" and sum(record.kind == "memory" for record in attempts) > 1:
        return None  # it will not fit the third time either
    return last.attempt + 1


def is_settled(attempts: Sequence[Trial], retries: int) -> bool:
    """Whether nothing more will come of a trial."""
    return standing(attempts).is_over or (
        all(record.status == "failed" for record in attempts) and next_attempt(attempts, retries) is None
    )


def dropped(config: SweepConfig, points: Sequence[str], records: Iterable[Trial]) -> set[str]:
    """Points whose remaining seeds are left out, by their first `dropping.after` seeds.

    A grid decides when the first seeds of all its points are settled, so that the order of trials does not matter; a
    sampler's points are compared with the best point so far.
    """
    rule = config.dropping
    if rule is None or rule.after >= config.seeds:
        return set()
    found = groups(records)
    first = range(config.first_seed, config.first_seed + rule.after)
    settled = {point for point in points if _has_first_seeds(config, point, found)}
    if config.sampler == "grid" and len(settled) < len(points):
        return set()
    sign = config.objectives[0].sign
    means: dict[str, float] = {}
    for point in settled:
        ends = [standing(found[point, seed]) for seed in first]
        values = [sign * next(iter(record.values.values())) for record in ends if record.values]
        if len(values) == rule.after:
            means[point] = sum(values) / len(values)
    best = max(means.values(), default=None)
    return {
        point for point in settled if best is not None and (point not in means or means[point] < best - rule.margin)
    }


def points_of(config: SweepConfig, records: Iterable[Trial]) -> dict[str, Mapping[str, Scalar]]:
    """Identity -> parameters of the points that a sweep has now, in the order in which they should run."""
    if config.sampler == "grid":
        return {point_id(params): params for params in grid(config)}
    return {record.point: record.params for record in records if record.point}


def missing(config: SweepConfig, points: Mapping[str, Mapping[str, Scalar]], records: Sequence[Trial]) -> list[Trial]:
    """Attempts that are to be begun, in their order: those of trials that were begun before, then new points and seeds.

    Args:
        config: the sweep.
        points: identity -> parameters, in the order in which they should run.
        records: what there is.
    """
    found = groups(records)
    out = dropped(config, tuple(points), records)
    after = config.seeds if config.dropping is None else config.dropping.after
    fair = config.sampler != "grid" or all(_has_first_seeds(config, point, found) for point in points)
    limit = config.budget.trials
    begun = len(found)
    planned: list[Trial] = []
    for offset in range(config.seeds):
        seed = config.first_seed + offset
        for point, params in points.items():
            attempts = found.get((point, seed))
            if attempts is not None:
                number = next_attempt(attempts, config.retries)
                if number is not None:
                    last = Trial(cell=attempts[-1].cell, run=attempts[-1].run)
                    planned.append(replace(last, point=point, params=params, seed=seed, attempt=number))
                continue
            if offset >= after and (point in out or not fair or not _has_first_seeds(config, point, found)):
                continue
            if limit is None or begun < limit:
                planned.append(Trial(point=point, params=params, seed=seed))
                begun += 1
    return sorted(planned, key=lambda each: each.key not in found)


def _has_first_seeds(config: SweepConfig, point: str, found: Mapping[Key, Sequence[Trial]]) -> bool:
    if config.dropping is None:
        return True
    first = range(config.first_seed, config.first_seed + config.dropping.after)
    return all((point, seed) in found and is_settled(found[point, seed], config.retries) for seed in first)


def is_double(record: Trial, records: Iterable[Trial]) -> bool:
    """Whether another attempt at the same trial is over, or is running with a lower number."""
    return any(
        other.key == record.key
        and other.number != record.number
        and other.kind != "void"
        and (other.is_over or (other.status == "running" and other.number < record.number))
        for other in records
    )


def device_hours(records: Iterable[Trial], now: datetime) -> float:
    """Duration times devices over all attempts, running ones up to now."""
    total = 0.0
    for record in records:
        if record.status == "running" and record.started is not None:
            total += (now - record.started).total_seconds() * record.devices
        else:
            total += record.device_seconds
    return total / 3600


def used_up(config: SweepConfig, records: Sequence[Trial], started: datetime | None, now: datetime) -> str | None:
    """The budget of time that is used up, in words; None: no trial need wait for one."""
    budget = config.budget
    if budget.hours is not None and started is not None:
        hours = (now - started).total_seconds() / 3600
        if hours >= budget.hours:
            return f"hours ({budget.hours:g})"
    if budget.device_hours is not None and device_hours(records, now) >= budget.device_hours:
        return f"device_hours ({budget.device_hours:g})"
    return None
