"""The state of a sweep, as read from its storage and run directories: the only input of views."""

from __future__ import annotations

import functools
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from promptcomp.config import ConfigError
from promptcomp.documents import YAML_LIMIT
from promptcomp.files import read_text
from promptcomp.lease import disk_time, grace_of, is_live, read_lease
from promptcomp.sweeps.planning import (
    Trial,
    TrialStatus,
    device_hours,
    dropped,
    groups,
    missing,
    next_attempt,
    points_of,
    standing,
    used_up,
)
from promptcomp.sweeps.space import CONTROLS, grid_size, planned_controls
from promptcomp.sweeps.sweep_config import SweepConfig
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.values import dev_reports, known_values, last_step, metric_rows


@dataclass(frozen=True, slots=True)
class SweepState:
    """A snapshot."""

    directory: SweepDirectory
    config: SweepConfig
    trials: tuple[Trial, ...]
    """In the order in which they were planned."""
    controls: tuple[Trial, ...] = ()
    planned: int = 0
    """Trials that there will be (dropped and not yet drawn points included)."""
    planned_controls: int = 0
    """Controls that there will be."""
    dropped: tuple[str, ...] = ()
    """Points whose remaining seeds are left out."""
    left_out: tuple[str, ...] = ()
    """Points with results whose values the sweep no longer has."""
    started: datetime | None = None
    workers: int = 0
    """Workers with a live lease."""
    stopped_by: str | None = None
    """The budget that ended the sweep early."""
    base: Mapping[str, Any] | None = None
    """Its experiment with `set` as it was when the sweep was begun; None: it was not."""


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

    def has(self, record: Trial) -> bool:
        """Whether anybody is at work on a running attempt: its trainer, or the worker that has taken it."""
        return record.cell in self._notes or self._is_live(self._directory.lease_of(record.cell))


def state_of(
    directory: SweepDirectory, config: SweepConfig, records: Sequence[Trial], started: datetime | None, place: str = ""
) -> SweepState:
    """A snapshot.

    Args:
        directory: the sweep's.
        config: the sweep.
        records: all attempts at trials and controls.
        started: when the sweep was begun.
        place: identity of the directory; attempts of other places are believed to be running.
    """
    leases = Leases(directory)
    trials = [record for record in records if not record.is_control]
    found = groups(trials)

    def status(attempts: Sequence[Trial]) -> TrialStatus:
        record = standing(attempts)
        if record.status == "running":
            elsewhere = bool(record.place) and record.place != place
            return "running" if elsewhere or leases.has(record) else "stale"
        if record.is_over:
            return record.status
        return "failed" if next_attempt(attempts, config.retries) is None else "waiting"

    points, seeds = points_of(config, trials), range(config.first_seed, config.first_seed + config.seeds)

    def latest(of: Iterable[Trial], wanted: Container[str]) -> tuple[Trial, ...]:
        """Of what is no longer wanted only what runs or has results."""
        every = (_latest(directory, config, attempts, status(attempts)) for attempts in groups(of).values())
        left = ("waiting", "failed")
        return tuple(each for each in every if each.status not in left or (each.point in wanted and each.seed in seeds))

    shown = latest(trials, points)
    if found:  # what is still to be begun
        left = [each for each in missing(config, points, trials) if each.key not in found]
        shown += tuple(replace(each, run=directory.runs) for each in left)
    controls = latest((record for record in records if record.is_control), CONTROLS if config.controls else ())
    now = datetime.now(UTC)
    planned = grid_size(config) * config.seeds
    stopped = used_up(config, records, started, now)
    limit = config.budget.trials
    if stopped is None and limit is not None and len(found) >= limit and planned > limit:
        stopped = f"trials ({limit})"
    planned_controls = config.seeds * _controls_of_a_seed(directory, config.model_dump_json())
    begun = sum(control.status not in ("waiting", "stale") for control in controls)
    is_left = any(trial.status == "waiting" for trial in shown) or begun < planned_controls
    return SweepState(
        directory=directory,
        config=config,
        trials=shown,
        controls=controls,
        planned=planned,
        planned_controls=planned_controls,
        dropped=tuple(sorted(dropped(config, tuple(points), trials))),
        left_out=tuple(sorted({point for point, _ in found} - points.keys())),
        started=started,
        workers=leases.workers,
        stopped_by=stopped if len(found) < planned or is_left else None,
    )


def _latest(directory: SweepDirectory, config: SweepConfig, attempts: Sequence[Trial], status: TrialStatus) -> Trial:
    """A trial as its attempts and its run directory say."""
    record = standing(attempts)
    run = directory.path / record.run
    rows = metric_rows(run)
    _, reports = dev_reports(rows, config.pruning.metric)
    problem = next((each.problem for each in reversed(attempts) if each.problem), None)
    return replace(
        record,
        status=status,
        run=run,
        values=known_values(config, run) if record.is_control else record.values,
        # a run that is gone, or on another machine's disk, has told Optuna; none of these metrics is below 0
        reports=tuple(sorted(reports.items())) or tuple((step, abs(value)) for step, value in record.reports),
        step=last_step(rows),
        max_steps=_max_steps(run),
        started=min((each.started for each in attempts if each.started is not None), default=None),
        ended=None if status in ("waiting", "running", "stale") else record.ended,
        device_seconds=device_hours(attempts, datetime.now(UTC)) * 3600,
        problem=problem if status in ("failed", "waiting") else None,
    )


@functools.cache
def _controls_of_a_seed(directory: SweepDirectory, config: str) -> int:
    """Two; none for a method that trains nothing of the LM. Found once for a sweep: a live view takes a snapshot every
    few seconds, and experiments take a while to build."""
    try:
        return len(planned_controls(SweepConfig.model_validate_json(config).model_copy(update={"seeds": 1}), directory))
    except ConfigError:  # a file that the sweep was begun from is gone: what there is can be shown all the same
        return 2


def _max_steps(run: Path) -> int:
    """A run's trainer.max_steps: found as `dump` writes it, since parsing thousands of files takes a minute."""
    try:
        found = _MAX_STEPS.search(read_text(run / "config.yaml", "configuration file", YAML_LIMIT))
    except ConfigError:
        return 0
    return int(found[1]) if found else 0
