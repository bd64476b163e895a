"""The schema of a sweep file: which keys of which experiment, how they are searched, what is asked of the results."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from promptcomp.config import Config

Scalar = bool | int | float | str | None


class Values(Config):
    """A list of values of one key."""

    values: tuple[Any, ...] = Field(min_length=1)
    """Whatever the key takes; numbers are an ordered axis in plots, everything else is a category."""


class Interval(Config):
    """An interval of one numeric key; a grid needs `steps`."""

    low: float
    high: float
    log: bool = False
    """Search (and space a grid) on a logarithmic scale."""
    integer: bool = False
    """Whole numbers only."""
    steps: int | None = Field(None, ge=2)
    """Number of grid values, ends included; null: continuous."""


class Choices(Config):
    """Named settings of one or several keys, for what one value cannot say (a distiller's size)."""

    choices: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name -> dotted key -> value."""


Dimension = Values | Interval | Choices


class Objective(Config):
    """One number of results.json that the sweep looks at."""

    metric: str
    """A name of the split's results (retained, method, exact_match, ...), or size.KEY, cost.KEY."""
    direction: Literal["maximize", "minimize"] = "maximize"
    split: str | None = None
    """Null: the first split of the results; metrics of size and cost have none."""


class Constraint(Config):
    """A bound on a number of results.json; points outside are kept, but are never the best."""

    metric: str
    split: str | None = None
    at_most: float | None = None
    at_least: float | None = None


class Pruning(Config):
    """Stopping trials whose dev results are hopeless; for one objective only."""

    pruner: Literal["none", "median", "successive_halving", "hyperband"] = "none"
    metric: str | None = None
    """Column of metrics.csv; null: dev/accuracy where there is one, otherwise dev/loss."""
    warmup_steps: int = Field(0, ge=0)
    """No trial is stopped before this training step."""
    startup_trials: int = Field(4, ge=0)
    """No trial is stopped before so many have finished (median)."""
    reduction: int = Field(3, ge=2)
    """Share of trials that each rung keeps: one in `reduction` (successive halving, hyperband)."""


class Dropping(Config):
    """Leaving out the remaining seeds of a point whose first ones are hopeless."""

    after: int = Field(1, ge=1)
    """Seeds that every point gets."""
    margin: float = Field(ge=0)
    """A point is dropped when its mean is worse than the best point's mean by more than this (first objective)."""


class Budget(Config):
    """When no further trial is begun; null: never."""

    trials: int | None = Field(None, ge=1)
    """Trials, retries not counted."""
    hours: float | None = Field(None, gt=0)
    """Wall time since the sweep was first started."""
    device_hours: float | None = Field(None, gt=0)
    """Sum over trials of duration times devices."""


class SweepConfig(Config):
    """A sweep."""

    title: str = ""
    """What it answers, for people."""
    experiment: str
    """A shipped experiment (gist, mend, ...) or a YAML file."""
    set: dict[str, Any] = {}
    """Dotted key -> value, for every trial."""
    space: dict[str, Annotated[Dimension, Field(union_mode="left_to_right")]] = Field(min_length=1)
    """Dotted key (or a free name, for choices) -> what is tried."""
    seeds: int = Field(1, ge=1)
    """Trials of every point, with seeds first_seed, first_seed + 1, ..."""
    first_seed: int = Field(0, ge=0)
    objectives: tuple[Objective, ...] = Field((Objective(metric="retained"),), min_length=1)
    """One, or several for a Pareto front."""
    constraints: tuple[Constraint, ...] = ()
    sampler: Literal["grid", "random", "tpe", "nsga2"] = "grid"
    """grid: every combination of values; the others draw `points` points."""
    sampler_seed: int = 0
    points: int | None = Field(None, ge=1)
    """Points of random, tpe and nsga2."""
    pruning: Pruning = Pruning()
    dropping: Dropping | None = None
    budget: Budget = Budget()
    controls: bool = False
    """Also train full_prompt and no_prompt with every seed: the bands in tables and plots."""
    retries: int = Field(2, ge=0)
    """Further attempts at a trial that failed or whose worker died; they continue from its last checkpoint."""

    @model_validator(mode="after")
    def _consistent(self) -> SweepConfig:
        if self.sampler == "grid" and self.points is not None:
            raise ValueError("points is for samplers that draw; a grid has as many as its values make")
        if self.sampler != "grid" and self.points is None:
            raise ValueError(f"sampler {self.sampler!r} needs points, the number of points to draw")
        if self.pruning.pruner != "none" and len(self.objectives) > 1:
            raise ValueError("a pruner needs a single objective (Optuna cannot prune several)")
        return self
