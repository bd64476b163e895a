"""The schema of a sweep file: which keys of which experiment, how they are searched, what is asked of the results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from promptcomp.config import Config
from promptcomp.sweeps.shorthand import Scalar, is_range, name_of_value, number_or_same, read_range


class Values(Config):
    """A list of values of one key."""

    values: tuple[Any, ...] = Field(min_length=1)
    """Whatever the key takes; numbers are an ordered axis in plots, everything else is a category."""

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, tree: Any) -> Any:
        """YAML reads 1e-5 (without a point) as a text; here it is the number that was meant."""
        if isinstance(tree, Mapping) and isinstance(tree.get("values"), list | tuple):
            return {**tree, "values": tuple(number_or_same(value) for value in tree["values"])}
        return tree

    @model_validator(mode="after")
    def _distinct(self) -> Values:
        seen: list[Scalar] = []
        for value in self.values:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{value} is not a finite number")
            name = name_of_value(value)
            if name in seen:
                raise ValueError(f"{name!r} is listed twice (each value once; repetitions are what seeds are for)")
            seen.append(name)
        return self


class Interval(Config):
    """An interval of one numeric key; a grid needs `steps`."""

    low: float
    high: float
    log: bool = False
    """Search (and space a grid) on a logarithmic scale."""
    integer: bool = False
    """Whole numbers only."""
    steps: int | None = Field(None, ge=2)
    """Number of grid values, ends included; null: continuous (whole numbers: every one)."""

    @model_validator(mode="after")
    def _consistent(self) -> Interval:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low:g} is not below high = {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic scale needs low > 0, not {self.low:g}")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"integer: {self.low:g} to {self.high:g} are not whole numbers")
        return self


class Choices(Config):
    """Named settings of one or several keys, for what one value cannot say (a distiller's size)."""

    choices: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name -> dotted key -> value."""


Dimension = Values | Interval | Choices


def _dimension(found: Any) -> Any:
    """What stands for one key of the space: a list, `lo..hi[:log][:steps=N]`, or one of the three mappings."""
    if isinstance(found, Values | Interval | Choices):
        return found
    if isinstance(found, str) and is_range(found):
        found = read_range(found)
    if isinstance(found, list | tuple):
        found = {"values": tuple(found)}
    if not isinstance(found, Mapping):
        raise ValueError("expected a list of values, lo..hi, or {choices: ...}; one value for all trials goes into set")
    kind = Values if "values" in found else Choices if "choices" in found else Interval
    try:
        return kind.model_validate(dict(found))
    except ValidationError as error:
        raise ValueError("; ".join(_told(dict(item), kind) for item in error.errors(include_url=False))) from None


def _told(item: dict[str, Any], kind: type[Config]) -> str:
    place = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = f"unknown key; known: {', '.join(kind.model_fields)}"
    if item["type"] == "missing":
        message = "missing"
    if item["type"] == "too_short":
        message = "empty; at least one is needed"
    return f"{place}: {message}" if place else message


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
    space: dict[str, Annotated[Dimension, Field(union_mode="left_to_right"), BeforeValidator(_dimension)]] = Field(
        min_length=1
    )
    """Dotted key (or a free name, for choices) -> what is tried: a list, `lo..hi[:log][:steps=N]`, or a mapping."""
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
