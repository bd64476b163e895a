"""The schema of a sweep file: which keys of which experiment, how they are searched, what is asked of the results.

Values have short forms: `2,4,8`, `1e-5..1e-3:log`, `1..8`, `0..1:steps=5`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from promptcomp.config import Config, parse_value
from promptcomp.errors import ConfigError

Scalar = bool | int | float | str | None

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE_START = re.compile(rf"\s*{_NUMBER}\s*\.\.")
_RANGE = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*((?::[^:]*)*)$")
_EXPONENT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)[eE][+-]?\d+$")
_OPENING, _CLOSING = "[{(", "]})"


def is_range(text: str) -> bool:
    """Whether a text is meant as `lo..hi...` (a path such as ../data is not)."""
    return _RANGE_START.match(text) is not None


def read_range(text: str) -> dict[str, Any]:
    """The keys of an interval: `lo..hi`, followed by any of `:log`, `:int`, `:steps=N`; whole ends stay whole numbers.

    Raises:
        ValueError: the ends are no numbers, or an unknown word follows them.
    """
    found = _RANGE.match(text)
    if found is None:
        raise ValueError(f"{text!r}: a range is written lo..hi, lo..hi:log or lo..hi:steps=5")
    low, high, rest = found.groups()
    whole = all(re.fullmatch(r"[+-]?\d+", end) for end in (low, high))
    tree: dict[str, Any] = {"low": float(low), "high": float(high), "integer": whole}
    for word in rest.split(":")[1:]:
        name, equals, value = word.strip().partition("=")
        if word.strip() == "log":
            tree["log"] = True
        elif word.strip() == "int":
            tree["integer"] = True
        elif name == "steps" and equals and value.strip().isdigit():
            tree["steps"] = int(value)
        else:
            raise ValueError(f"{text!r}: {word!r} is not known; a range takes :log, :int and :steps=N")
    return tree


def number_or_same(value: Any) -> Any:
    """A number for a text such as 1e-5, which YAML takes for a text; everything else unchanged."""
    return float(value) if isinstance(value, str) and _EXPONENT.match(value) else value


def is_below(key: str, others: Iterable[str]) -> bool:
    """Whether a dotted key is one of the others or a part of one."""
    return any(key == other or key.startswith(f"{other}.") for other in others)


def name_of_value(value: Any) -> Scalar:
    """How a value is kept in a trial's parameters: itself if it is a scalar, otherwise its JSON text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, sort_keys=True, default=str)


def split_values(text: str) -> list[str]:
    """The parts of `a,b,c`; commas within brackets, braces and quotes do not part.

    Raises:
        ConfigError: a part is empty.
    """
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        if letter == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    if len(parts) > 1 and not all(part.strip() for part in parts):
        raise ConfigError(f"{text!r}: a value is empty; write a,b,c without a comma too many")
    return [part.strip() for part in parts]


def read_value(text: str, where: str) -> Any:
    """One value, read as YAML.

    Raises:
        ConfigError: it is not YAML.
    """
    return number_or_same(parse_value(text, where))


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
    """The lower end."""
    high: float
    """The upper end."""
    log: bool = False
    """Search (and space a grid) on a logarithmic scale."""
    integer: bool = False
    """Whole numbers only."""
    steps: int | None = Field(None, ge=2, le=1_000_000)
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


def keys_of(name: str, dimension: Dimension) -> list[str]:
    """The keys of the experiment that a dimension of this name sets."""
    chosen = dimension.choices.values() if isinstance(dimension, Choices) else [{name: None}]
    return list(dict.fromkeys(key for settings in chosen for key in settings))


def is_numeric(dimension: Dimension) -> bool:
    """Whether a dimension is an ordered axis of numbers."""
    if isinstance(dimension, Choices):
        return False
    if isinstance(dimension, Interval):
        return True
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in dimension.values)


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
    """Which way is better. maximize: more; minimize: less."""
    split: str | None = None
    """Null: the first split of the results; metrics of size and cost have none."""

    @property
    def sign(self) -> float:
        """1 if more is better, else -1."""
        return 1.0 if self.direction == "maximize" else -1.0


class Constraint(Config):
    """A bound on a number of results.json; points outside are kept, but are never the best."""

    metric: str
    """A name of the split's results (retained, method, exact_match, ...), or size.KEY, cost.KEY."""
    split: str | None = None
    """Null: the first split of the results; metrics of size and cost have none."""
    at_most: float | None = None
    """Points above it are never the best."""
    at_least: float | None = None
    """Points below it are never the best."""


class Pruning(Config):
    """Stopping trials whose dev results are clearly worse than others'; for one objective only."""

    pruner: Literal["none", "median", "successive_halving", "hyperband"] = "none"
    """Which trials are stopped. none: no trial; median: those below the median of others at the same step;
    successive_halving: all but one in `reduction` at every rung; hyperband: the same with several first rungs."""
    metric: Literal["dev/accuracy", "dev/loss", "dev/exact_match"] | None = None
    """Column of metrics.csv that is looked at; null: dev/accuracy where there is one, otherwise dev/loss. dev/accuracy:
    of the likeliest options; dev/loss: of the right answers; dev/exact_match: of generated answers."""
    warmup_steps: int = Field(0, ge=0)
    """No trial is stopped before this training step."""
    startup_trials: int = Field(4, ge=0)
    """No trial is stopped before so many have finished (median)."""
    reduction: int = Field(3, ge=2)
    """Share of trials that each rung keeps: one in `reduction` (successive halving, hyperband)."""


class Dropping(Config):
    """Leaving out the remaining seeds of a point whose first ones are clearly worse than others'."""

    after: int = Field(1, ge=1)
    """Seeds that every point gets."""
    margin: float = Field(ge=0)
    """A point is dropped when its mean is worse than the best point's mean by more than this (first objective)."""


class Budget(Config):
    """When no further trial is started; null: never."""

    trials: int | None = Field(None, ge=1)
    """Trials, retries not counted."""
    hours: float | None = Field(None, gt=0)
    """Wall time since the sweep was first started."""
    device_hours: float | None = Field(None, gt=0)
    """Sum over trials of duration times devices."""


class SweepConfig(Config):
    """A sweep file: which keys of an experiment are tried, how, and what is asked of the results."""

    title: str = ""
    """The question that it answers."""
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
    """Seed of the first trial of every point."""
    objectives: tuple[Objective, ...] = Field((Objective(metric="retained"),), min_length=1)
    """One, or several for a Pareto front."""
    constraints: tuple[Constraint, ...] = ()
    """Bounds on results; points outside are kept, but are never the best."""
    sampler: Literal["grid", "random", "tpe", "nsga2"] = "grid"
    """How points are chosen; all but grid draw `points` of them. grid: every combination of values; random: at random;
    tpe: where earlier trials were good (one objective); nsga2: by evolution (several objectives)."""
    sampler_seed: int = 0
    """Seed of what a sampler draws."""
    points: int | None = Field(None, ge=1)
    """Points of random, tpe and nsga2."""
    pruning: Pruning = Pruning()
    """Stopping trials whose dev results are clearly worse than others'."""
    dropping: Dropping | None = None
    """Leaving out the remaining seeds of a point that is clearly worse than others; null: never."""
    budget: Budget = Budget()
    """When no further trial is started."""
    controls: bool = False
    """Also train full_prompt and no_prompt with every seed, as references in tables and plots."""
    retries: int = Field(2, ge=0)
    """Further attempts at a trial that failed or whose worker died; they continue from its last checkpoint."""

    @model_validator(mode="after")
    def _consistent(self) -> SweepConfig:
        if self.sampler == "grid" and self.points is not None:
            raise ValueError("points is for the other samplers; a grid has one for each combination of its values")
        if self.sampler != "grid" and self.points is None:
            raise ValueError(f"sampler {self.sampler!r} needs points, the number of points to draw")
        if self.pruning.pruner != "none" and len(self.objectives) > 1:
            raise ValueError("a pruner needs a single objective (Optuna cannot prune several)")
        return self
