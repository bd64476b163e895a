"""What a sweep has done so far, as read from its storage and run directories: the only thing that views look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from promptcomp.sweeps.sweep_config import Scalar, SweepConfig
from promptcomp.sweeps.sweep_directory import SweepDirectory

TrialStatus = Literal["waiting", "running", "stale", "finished", "pruned", "failed"]
"""stale: counted as running, but its trainer's lease has run out; the next worker takes it up again."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One point with one seed: its latest attempt."""

    number: int
    """Optuna's number of the attempt."""
    cell: str
    """Identity of point, seed and everything else of the experiment; names the run directory."""
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
