"""The state of a sweep, as read from its storage and run directories: the only input of views."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from promptcomp.config import ConfigError
from promptcomp.documents import YAML_LIMIT
from promptcomp.files import read_text
from promptcomp.lease import disk_time, grace_of, is_live, read_lease
from promptcomp.sweeps.planning import (
    TrialRecord,
    device_hours,
    dropped,
    groups,
    missing,
    next_attempt,
    points_of,
    standing,
    used_up,
)
from promptcomp.sweeps.space import grid_size, planned_controls
from promptcomp.sweeps.sweep_config import Scalar, SweepConfig
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.values import dev_reports, known_values, last_step, metric_rows, objective_names

TrialStatus = Literal["waiting", "running", "stale", "finished", "pruned", "failed"]
"""stale: counted as running, but its trainer's lease has run out; the next worker takes it up again."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One point with one seed: its latest attempt."""

    number: int
    """Optuna's number of the attempt; -1 before the first."""
    cell: str
    """Identity of point, seed and everything else of the experiment, which names the run directory; empty before the
    first attempt."""
    point: str
    """Identity of the point."""
    params: Mapping[str, Scalar]
    """Dimension -> value (the name, for choices; text, for values that are no scalars)."""
    seed: int
    status: TrialStatus
    attempt: int
    """From 1."""
    run: Path
    values: Mapping[str, float] = field(default_factory=dict)
    """Objective (its metric's name) -> value; empty until it has finished."""
    constraints: Mapping[str, float] = field(default_factory=dict)
    """Constraint -> how far outside its bound; 0 or less: inside."""
    reports: tuple[tuple[int, float], ...] = ()
    """(training step, dev metric), oldest first."""
    step: int = 0
    """Last training step logged."""
    max_steps: int = 0
    worker: str = ""
    """host:pid (or the SLURM job) that has it."""
    started: datetime | None = None
    ended: datetime | None = None
    device_seconds: float = 0.0
    """Duration times devices, all attempts."""
    problem: str | None = None
    """Why the last attempt failed, in one line."""


@dataclass(frozen=True, slots=True)
class Control:
    """A control's run of one seed."""

    name: Literal["full_prompt", "no_prompt"]
    seed: int
    status: TrialStatus
    run: Path
    values: Mapping[str, float] = field(default_factory=dict)
    """As a trial's."""
    ended: datetime | None = None
    device_seconds: float = 0.0
    """Duration times devices, all attempts."""


@dataclass(frozen=True, slots=True)
class SweepState:
    """A snapshot."""

    directory: SweepDirectory
    config: SweepConfig
    trials: tuple[Trial, ...]
    """In the order in which they were planned."""
    controls: tuple[Control, ...] = ()
    planned: int = 0
    """Trials that there will be (dropped and not yet drawn points included)."""
    planned_controls: int = 0
    """Controls that there will be."""
    dropped: tuple[str, ...] = ()
    """Points whose remaining seeds are left out."""
    started: datetime | None = None
    workers: int = 0
    """Workers with a live lease."""
    stopped_by: str | None = None
    """The budget that ended the sweep early."""


_MAX_STEPS = re.compile(r"^trainer:\n(?:  .*\n)*?  max_steps: (\d{1,18})$", re.MULTILINE)


class Leases:
    """Which leases of a sweep are live, at one moment.

    Args:
        directory: the sweep's.
    """

    def __init__(self, directory: SweepDirectory) -> None:
        self._directory = directory
        self._now = disk_time(directory.leases)
        self._grace = grace_of(directory.leases)
        files = sorted(directory.worker_leases.glob("*.json"))
        live = [found for path in files if self._is_live(path) and (found := read_lease(path)) is not None]
        self.workers = len(live)
        self._notes = {lease.note for lease in live} - {""}

    def _is_live(self, path: Path) -> bool:
        return is_live(path, self._now, self._grace)

    def has(self, record: TrialRecord) -> bool:
        """Whether anybody is at work on a running attempt: its trainer, or the worker that has taken it."""
        return record.cell in self._notes or self._is_live(self._directory.lease_of(record.cell))


def state_of(
    directory: SweepDirectory,
    config: SweepConfig,
    trials: Sequence[TrialRecord],
    controls: Sequence[TrialRecord],
    started: datetime | None,
    place: str = "",
) -> SweepState:
    """A snapshot.

    Args:
        directory: the sweep's.
        config: the sweep.
        trials: all attempts at trials.
        controls: all attempts at controls.
        started: when the sweep was begun.
        place: identity of the directory; attempts of other places are believed to be running.
    """
    leases = Leases(directory)
    found = groups(trials)
    view = _View(directory, config, leases, place)
    shown = tuple(view.trial(attempts) for attempts in found.values())
    points = points_of(config, trials)
    if found:  # what is still to be begun
        left = [each for each in missing(config, points, trials) if (each.point, each.seed) not in found]
        shown += tuple(Trial(-1, "", each.point, each.params, each.seed, "waiting", 1, directory.runs) for each in left)
    shown_controls = tuple(view.control(attempts) for attempts in groups(controls).values())
    now = datetime.now(UTC)
    planned = grid_size(config) * config.seeds
    stopped = used_up(config, [*trials, *controls], started, now)
    limit = config.budget.trials
    if stopped is None and limit is not None and len(found) >= limit and planned > limit:
        stopped = f"trials ({limit})"
    planned_controls = _planned_controls(directory, config)
    begun = sum(control.status not in ("waiting", "stale") for control in shown_controls)
    is_left = any(trial.status == "waiting" for trial in shown) or begun < planned_controls
    return SweepState(
        directory=directory,
        config=config,
        trials=shown,
        controls=shown_controls,
        planned=planned,
        planned_controls=planned_controls,
        dropped=tuple(sorted(dropped(config, tuple(points), trials))),
        started=started,
        workers=leases.workers,
        stopped_by=stopped if len(found) < planned or is_left else None,
    )


class _View:
    def __init__(self, directory: SweepDirectory, config: SweepConfig, leases: Leases, place: str) -> None:
        self.directory, self.config, self.leases, self.place = directory, config, leases, place

    def status(self, attempts: Sequence[TrialRecord]) -> TrialStatus:
        record = standing(attempts)
        if record.state == "running":
            elsewhere = bool(record.place) and record.place != self.place
            return "running" if elsewhere or self.leases.has(record) else "stale"
        if record.is_over:
            return "pruned" if record.state == "pruned" else "finished"
        return "failed" if next_attempt(attempts, self.config.retries) is None else "waiting"

    def trial(self, attempts: Sequence[TrialRecord]) -> Trial:
        record = standing(attempts)
        run = record.run_in(self.directory, is_control=False)
        status = self.status(attempts)
        rows = metric_rows(run)
        _, reports = dev_reports(rows, self.config.pruning.metric)  # a run on another machine's disk has told Optuna
        return Trial(
            number=record.number,
            cell=record.cell,
            point=record.point,
            params=record.params,
            seed=record.seed,
            status=status,
            attempt=record.attempt,
            run=run,
            values=dict(zip(objective_names(self.config), record.values, strict=False)),
            constraints=record.constraints,
            reports=tuple(sorted((reports or record.reports).items())),
            step=last_step(rows),
            max_steps=_max_steps(run),
            worker=record.worker,
            started=min((each.started for each in attempts if each.started is not None), default=None),
            ended=None if status in ("waiting", "running", "stale") else record.ended,
            device_seconds=_device_seconds(attempts),
            problem=next((each.problem for each in reversed(attempts) if each.problem), None)
            if status in ("failed", "waiting")
            else None,
        )

    def control(self, attempts: Sequence[TrialRecord]) -> Control:
        record = standing(attempts)
        run = record.run_in(self.directory, is_control=True)
        name: Literal["full_prompt", "no_prompt"] = "full_prompt" if record.point == "full_prompt" else "no_prompt"
        status = self.status(attempts)
        return Control(
            name,
            record.seed,
            status,
            run,
            values=known_values(self.config, run),
            ended=None if status in ("waiting", "running", "stale") else record.ended,
            device_seconds=_device_seconds(attempts),
        )


def _planned_controls(directory: SweepDirectory, config: SweepConfig) -> int:
    """Two for each seed; none for a method that trains nothing of the LM."""
    try:
        return config.seeds * _controls_of_a_seed(directory, config.model_dump_json())
    except ConfigError:  # a file that the sweep was begun from is gone: what there is can be shown all the same
        return config.seeds * 2


@functools.cache
def _controls_of_a_seed(directory: SweepDirectory, config: str) -> int:
    """Once for a sweep: a live view takes a snapshot every few seconds, and experiments take a while to build."""
    return len(planned_controls(SweepConfig.model_validate_json(config).model_copy(update={"seeds": 1}), directory))


def _device_seconds(attempts: Sequence[TrialRecord]) -> float:
    return device_hours(attempts, datetime.now(UTC)) * 3600


def _max_steps(run: Path) -> int:
    """A run's trainer.max_steps: found as `dump` writes it, since parsing thousands of files takes a minute."""
    try:
        found = _MAX_STEPS.search(read_text(run / "config.yaml", "configuration file", YAML_LIMIT))
    except ConfigError:
        return 0
    return int(found[1]) if found else 0
