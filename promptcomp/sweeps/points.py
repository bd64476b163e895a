"""What a sweep tries of each key, and the combinations of it; what Optuna is told of each dimension."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from promptcomp.errors import ConfigError
from promptcomp.sweeps.shorthand import name_of_value
from promptcomp.sweeps.sweep_config import Choices, Dimension, Interval, Scalar, SweepConfig, Values
from promptcomp.sweeps.sweep_file import is_numeric

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SHARE = "data.train_share"
"""The key of a sweep over shares of the training data."""
_POINT_ID = 16
"""Hexadecimal digits."""


def scalars(dimension: Dimension) -> tuple[Scalar, ...] | None:
    """What a grid tries of a dimension, in its own order; None for a continuous interval."""
    if isinstance(dimension, Choices):
        return tuple(dimension.choices)
    if isinstance(dimension, Values):
        return tuple(name_of_value(value) for value in dimension.values)
    return _of_interval(dimension)


def _of_interval(interval: Interval) -> tuple[Scalar, ...] | None:
    low, high, steps = interval.low, interval.high, interval.steps
    if steps is None:
        whole = interval.integer and not interval.log  # on a logarithmic scale someone has to say how many
        return tuple(range(int(low), int(high) + 1)) if whole else None
    shares = [i / (steps - 1) for i in range(steps)]
    if interval.log:
        found = [low * (high / low) ** share for share in shares]
    else:
        found = [low + (high - low) * share for share in shares]
    found[0], found[-1] = low, high
    if interval.integer:
        return tuple(dict.fromkeys(round(value) for value in found))
    return tuple(float(f"{value:.6g}") for value in found)  # 0.3 and not 0.30000000000000004


def grid_size(config: SweepConfig) -> int:
    """Points of the sweep: of its grid, or the number to draw.

    Raises:
        ConfigError: a grid over a continuous interval.
    """
    if config.sampler != "grid":
        assert config.points is not None
        return config.points
    return math.prod(len(_grid_values(name, dimension)) for name, dimension in config.space.items())


def _grid_values(name: str, dimension: Dimension) -> tuple[Scalar, ...]:
    values = scalars(dimension)
    if values is None:
        assert isinstance(dimension, Interval)
        scale = " on a logarithmic scale" if dimension.log else ""
        raise ConfigError(
            f"space {name}: a grid over {dimension.low:g} to {dimension.high:g}{scale} needs steps (for example "
            f"{dimension.low:g}..{dimension.high:g}{':log' if dimension.log else ''}:steps=5), or a sampler that draws "
            "(sweep.sampler=tpe)"
        )
    return values


def grid(config: SweepConfig) -> list[dict[str, Scalar]]:
    """Every combination. The order is mixed: corners first, then ever finer, so that early results cover the space.

    Raises:
        ConfigError: a continuous interval without steps.
    """
    axes = [list(enumerate(_coarse_first(_grid_values(name, dim)))) for name, dim in config.space.items()]
    combinations = sorted(
        itertools.product(*axes),
        key=lambda found: (max(rank for rank, _ in found), sum(rank for rank, _ in found), [rank for rank, _ in found]),
    )
    return [dict(zip(config.space, (value for _, value in found), strict=True)) for found in combinations]


def _coarse_first(values: tuple[Scalar, ...]) -> list[Scalar]:
    """Both ends, then the middle, the quarters, ..."""
    order = dict.fromkeys([0, len(values) - 1])
    parts = [(0, len(values) - 1)]
    while parts:
        finer = []
        for low, high in parts:
            if high - low > 1:
                middle = (low + high) // 2
                order[middle] = None
                finer += [(low, middle), (middle, high)]
        parts = finer
    return [values[i] for i in order]


def distributions(config: SweepConfig) -> dict[str, BaseDistribution]:
    """What Optuna is told of each dimension.

    A grid's numbers are an interval there, so that values can be added to a study; a sampler that draws must keep to
    the listed values, which are then categories unless they are whole numbers at equal distances.
    """
    return {name: _distribution(dim, config.sampler == "grid") for name, dim in config.space.items()}


def _distribution(dimension: Dimension, is_grid: bool) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    values = scalars(dimension)
    if isinstance(dimension, Interval) and (dimension.steps is None or is_grid):
        if dimension.integer:
            return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    assert values is not None
    if isinstance(dimension, Values) and is_numeric(dimension):
        numbers = sorted(value for value in values if isinstance(value, int | float))
        whole = [number for number in numbers if isinstance(number, int)]
        if is_grid:
            if len(whole) == len(numbers):
                return IntDistribution(whole[0], whole[-1])
            return FloatDistribution(float(numbers[0]), float(numbers[-1]))
        gaps = {b - a for a, b in itertools.pairwise(whole)}
        if len(whole) == len(numbers) and len(gaps) == 1:
            return IntDistribution(whole[0], whole[-1], step=gaps.pop())
    return CategoricalDistribution(values)


def point_id(params: Mapping[str, Scalar]) -> str:
    """Identity of a point: equal for equal parameters in any order; 2 and 2.0 are the same value."""
    plain = {name: _plain(value) for name, value in params.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:_POINT_ID]


def _plain(value: Scalar) -> Scalar:
    return int(value) if isinstance(value, float) and value.is_integer() else value
