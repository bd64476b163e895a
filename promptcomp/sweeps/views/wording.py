"""Readable names and numbers of sweeps, and how a dimension is laid out on an axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from promptcomp.evaluation.bootstrap import Mean
from promptcomp.evaluation.formatting import bytes_text, flops_text, ms_text, number_text
from promptcomp.sweeps.space import scalars
from promptcomp.sweeps.sweep_config import Choices, Interval, Scalar, SweepConfig, Values
from promptcomp.sweeps.values import Goal
from promptcomp.sweeps.views.numbers import Progress, is_of_run

STATUS_STYLES = {
    "finished": "green",
    "pruned": "magenta",
    "failed": "red",
    "stale": "yellow",
    "running": "cyan",
    "waiting": "dim",
}
"""Every status, in the order of bars and counts."""


def scalar_text(value: Scalar) -> str:
    """A parameter's value, short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted key, with as many more parts as tell it from the others."""
    short = {}
    for name in names:
        parts = name.split(".")
        endings = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        alone = (e for e in endings if sum(f".{other}".endswith(f".{e}") for other in names) == 1)
        short[name] = next(alone, name)
    return short


def params_text(params: Mapping[str, Scalar], shown: Sequence[str] | None = None) -> str:
    """`num_slots=4, lr=0.001`: the dimensions `shown` (all, if there are none)."""
    short = short_names(list(params))
    names = [name for name in (shown or params) if name in params]
    return ", ".join(f"{short[name]}={scalar_text(params[name])}" for name in names)


def number(value: float, sign: str = "") -> str:
    """Three decimals for what is about 1; large and tiny numbers short."""
    size = abs(value)
    if size >= 1000:
        return f"{value:{sign},.0f}"
    if size >= 10:
        return f"{value:{sign}.0f}" if value == round(value) else f"{value:{sign}.2f}"
    if 0 < size < 0.001:
        return f"{value:{sign}.2e}"
    return f"{value:{sign}.3f}"


def amount(metric: str, value: float, sign: str = "") -> str:
    """A value in the unit of its metric: bytes, milliseconds, FLOPs, counts, or a plain number."""
    if not is_of_run(metric):
        return number(value, sign)
    ending = metric.rpartition("_")[2]
    texts = {"bytes": bytes_text, "ms": ms_text, "flops": flops_text}
    text = texts.get(ending, number_text)(abs(value))
    return ("-" if value < 0 else sign) + text


def mean_text(mean: Mean | None, metric: str = "", sign: str = "") -> str:
    """A mean with its interval: `0.512 [0.431, 0.593]`."""
    if mean is None:
        return "-"
    text = amount(metric, mean.mean, sign)
    if mean.ci is None:
        return text
    return f"{text} [{amount(metric, mean.ci[0], sign)}, {amount(metric, mean.ci[1], sign)}]"


def objective_text(objective: Goal, split: str | None = None) -> str:
    """The metric in words, with its split: `retained (test)`."""
    name = objective.metric if not is_of_run(objective.metric) else objective.metric.replace(".", " ")
    where = split or objective.split
    return f"{name.replace('_', ' ')} ({where})" if where else name.replace("_", " ")


def values_text(values: Mapping[str, Mean], objectives: Sequence[Goal]) -> str:
    """Every objective with its mean."""
    return ", ".join(f"{objective_text(o)} {mean_text(values.get(o.name), o.name)}" for o in objectives)


def direction_text(objective: Goal) -> str:
    """Which way is better."""
    return "higher is better" if objective.direction == "maximize" else "lower is better"


def time_text(seconds: float | None) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`, `3 d 04 h`."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def hours_text(hours: float) -> str:
    """Device hours with what is visible of them."""
    return f"{hours:.3f}" if hours < 1 else f"{hours:.1f}"


def device_hours_text(progress: Progress) -> str:
    """All device hours, and the controls' part where there are controls."""
    part = f", {hours_text(progress.control_hours)} of them for the controls" if progress.controls else ""
    return f"{hours_text(progress.device_hours)} device hours{part}"


def short(text: str, length: int = 22) -> str:
    """At most `length` characters; a leading underscore would hide an entry of a picture's legend."""
    text = text if len(text) <= length else text[: length - 1] + "…"
    return f" {text}" if text.startswith("_") else text


Kind = Literal["linear", "log2", "log10", "category"]
_MAX_TICKS = 9
_EQUAL = 1e-6


@dataclass(frozen=True, slots=True)
class Axis:
    """Places of a dimension's values."""

    name: str
    """The dimension."""
    title: str
    """Shown in tables: the last part of the key."""
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
            return float([repr(other) for other in self.values].index(repr(value)))
        assert isinstance(value, int | float)
        return float(value)

    def holds(self, params: Mapping[str, Scalar], value: Scalar) -> bool:
        """Whether a point has this value of the dimension."""
        return self.name in params and repr(params[self.name]) == repr(value)

    def share(self, value: Scalar) -> float:
        """Where a value is between the ends of the axis, 0 to 1."""
        ends = self.place(self.values[0]), self.place(self.values[-1])
        place = self.place(value)
        if self.kind in ("log2", "log10"):
            ends, place = (math.log(ends[0]), math.log(ends[1])), math.log(place)
        return (place - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.5


def axis_of(config: SweepConfig, name: str, params: Sequence[Mapping[str, Scalar]]) -> Axis:
    """The axis of a dimension for the points that there are."""
    # By their texts: True and 1 are equal, but not the same choice.
    values = list({repr(each[name]): each[name] for each in params if name in each}.values())
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
    listed = () if dimension is None or isinstance(dimension, Interval) else scalars(dimension) or ()
    place = next((i for i, other in enumerate(listed) if str(other) == str(value)), len(listed))
    return place, scalar_text(value)
