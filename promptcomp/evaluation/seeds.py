"""Means over training seeds, with Student's t intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from promptcomp.config import Measured

CONFIDENCE = 0.95
# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond the table the normal quantile is near enough.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

Interval = tuple[float, float]


class Mean(Measured):
    """A mean over seeds."""

    mean: float
    ci: Interval | None = None
    """Student's t interval; null for one seed, and where all seeds have the same value (it would have no width)."""
    std: float | None = None
    """Sample standard deviation over seeds; null for one seed."""
    seeds: int


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of one value for each seed."""
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Mean(mean=mean, seeds=count)
    std = float(np.std(values, ddof=1))
    if std <= 1e-9 * abs(mean):  # so few seeds do not make a value certain
        return Mean(mean=mean, std=std, seeds=count)
    quantile = _T[count - 2] if count - 2 < len(_T) else 1.96
    half = quantile * std / math.sqrt(count)
    return Mean(mean=mean, ci=(mean - half, mean + half), std=std, seeds=count)
