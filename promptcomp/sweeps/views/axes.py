"""How a dimension is laid out: numbers on a linear or logarithmic axis, everything else as categories."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from promptcomp.sweeps.sweep_config import Choices, Interval, Scalar, SweepConfig, Values
from promptcomp.sweeps.views.wording import scalar_text, short_names

Kind = Literal["linear", "log2", "log10", "category"]
_MAX_TICKS = 9
_EQUAL = 1e-6


@dataclass(frozen=True, slots=True)
class Axis:
    """Places of a dimension's values."""

    name: str
    """The dimension."""
    title: str
    """For people: the last part of the key."""
    kind: Kind
    values: tuple[Scalar, ...]
    """Distinct values, in order."""

    @property
    def discrete(self) -> bool:
        """Whether each value has a tick of its own."""
        return self.kind == "category" or len(self.values) <= _MAX_TICKS

    def place(self, value: Scalar) -> float:
        """Where a value is, in the axis' own unit (the value itself, or its number among the categories)."""
        if self.kind == "category":
            return float(next(i for i, other in enumerate(self.values) if _same(other, value)))
        assert isinstance(value, int | float)
        return float(value)

    def share(self, value: Scalar) -> float:
        """Where a value is between the ends of the axis, 0 to 1."""
        ends = self.place(self.values[0]), self.place(self.values[-1])
        place = self.place(value)
        if self.kind in ("log2", "log10"):
            ends, place = (math.log(ends[0]), math.log(ends[1])), math.log(place)
        return (place - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.5


def axis_of(config: SweepConfig, name: str, params: Sequence[Mapping[str, Scalar]]) -> Axis:
    """The axis of a dimension for the points that there are."""
    values: list[Scalar] = []
    for each in params:
        if name in each and not any(_same(each[name], value) for value in values):
            values.append(each[name])
    title = short_names(list(config.space)).get(name, name)
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    dimension = config.space.get(name)
    if values and len(numbers) == len(values) and not isinstance(dimension, Choices):
        return Axis(name, title, _scale(dimension, sorted(numbers)), tuple(sorted(numbers)))
    return Axis(name, title, "category", tuple(sorted(values, key=lambda value: _order(dimension, value))))


def _scale(dimension: Interval | Values | None, numbers: Sequence[float]) -> Kind:
    if numbers[0] <= 0 or numbers[-1] == numbers[0]:
        return "linear"
    if all(abs(math.log2(number) - round(math.log2(number))) < _EQUAL for number in numbers):
        return "log2"
    if isinstance(dimension, Interval):
        return "log10" if dimension.log else "linear"
    ratios = [b / a for a, b in itertools.pairwise(numbers)]
    even = len(ratios) > 1 and max(ratios) - min(ratios) < _EQUAL * max(ratios)
    return "log10" if even or numbers[-1] / numbers[0] >= 50 else "linear"


def _order(dimension: Interval | Values | Choices | None, value: Scalar) -> tuple[int, str]:
    """As in the sweep file; what is not there any more comes last."""
    listed: list[Scalar] = []
    if isinstance(dimension, Values):
        listed = list(dimension.values)
    elif isinstance(dimension, Choices):
        listed = list(dimension.choices)
    text = scalar_text(value)
    place = next((i for i, other in enumerate(listed) if _same(other, value) or str(other) == str(value)), len(listed))
    return place, text


def _same(a: Scalar, b: Scalar) -> bool:
    return type(a) is type(b) and a == b
