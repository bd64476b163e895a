"""Intervals: paired bootstrap over contexts, shares, and Student's t over training seeds.

Examples that share a context are not independent, so contexts are drawn with replacement; every row (method and
bounds) is computed on the same draws, which makes differences and ratios paired.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import NormalDist

import numpy as np

from promptcomp.config import Measured
from promptcomp.evaluation.metrics import Array, Group, metric
from promptcomp.evaluation.predictions import LOWER_IS_BETTER, METRICS, TOKEN_METRICS, MetricName
from promptcomp.evaluation.results import Interval, finite

RESAMPLES = 2000
CONFIDENCE = 0.95
_ROUNDING = 1e-5  # of a score: closer ones are the same, summed in another order
_CHUNK_VALUES = 1_000_000  # bounds the memory of the drawn weights


@dataclass(frozen=True, slots=True)
class Samples:
    """Every metric on the examples themselves and on R resamples of their contexts."""

    values: dict[str, dict[str, Array]]
    """metric -> row -> [1 + R]; the first value is the estimate."""
    num_contexts: int

    def estimate(self, name: MetricName, row: str) -> float | None:
        """The metric on all examples; None where it has no meaning (no classification task, no finite loss)."""
        return finite(float(self.values[name][row][0]))

    def interval(self, name: MetricName, row: str) -> Interval | None:
        """Percentile interval of the metric; where every resample is equal, that of a share of so many contexts (for
        means over tokens there is none)."""
        values = self.values[name][row]
        if name in TOKEN_METRICS:
            return percentile_interval(values, self.num_contexts)
        if values[0] in (0.0, 1.0):
            return _at_the_edge(float(values[0]), self.num_contexts)
        return share_interval(values, self.num_contexts)

    def difference(self, name: MetricName, row: str, other: str) -> Array:
        """Metric of `row` less that of `other`, paired [1 + R]."""
        return self.values[name][row] - self.values[name][other]


class Retained(Measured):
    """How much of the gap between no prompt and full prompt a method keeps."""

    value: float | None = None
    """(method - no prompt) / (full prompt - no prompt); null without headroom."""
    ci: Interval | None = None
    headroom: float | None = None
    """full prompt - no prompt (for a loss the other way round)."""
    headroom_se: float | None = None
    """Its standard error."""
    no_headroom: bool = False
    """The two are closer than two standard errors (or than rounding, as with no demonstrations in the full context), or
    the wrong way round: a ratio would be noise."""


def context_weights(num_contexts: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each context is drawn: chunks [r, contexts], R resamples in all.

    The draws depend on the seed and the number of contexts alone, so runs over the same contexts are paired.
    """
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK_VALUES // max(1, num_contexts))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(num_contexts, size=(rows, num_contexts))
        flat = (drawn + num_contexts * np.arange(rows)[:, None]).ravel()
        yield np.bincount(flat, minlength=rows * num_contexts).reshape(rows, num_contexts).astype(np.float64)


def resample(
    groups: Sequence[Group],
    rows: Sequence[str],
    names: Sequence[MetricName] = METRICS,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Samples:
    """Compute metrics of every row on all examples and on `resamples` draws of contexts."""
    num_contexts = sum(g.num_contexts for g in groups)
    parts: dict[str, dict[str, list[Array]]] = {name: {row: [] for row in rows} for name in names}
    for weights in chain([np.ones((1, num_contexts))], context_weights(num_contexts, resamples, seed)):
        for name in names:
            for row in rows:
                parts[name][row].append(metric(groups, row, weights, name))
    values = {name: {row: np.concatenate(found) for row, found in own.items()} for name, own in parts.items()}
    return Samples(values, num_contexts)


def retained(
    samples: Samples, name: MetricName, *, method: str = "method", full: str = "full_prompt", none: str = "no_prompt"
) -> Retained:
    """Quality retained with a paired interval, by the names of the three rows.

    Resamples in which the bounds change places say nothing about a ratio and are left out of the interval; headroom of
    two standard errors makes them rare.
    """
    if any(row not in samples.values[name] for row in (method, full, none)):
        return Retained()
    sign = -1.0 if name in LOWER_IS_BETTER else 1.0
    gap = sign * samples.difference(name, full, none)
    gained = sign * samples.difference(name, method, none)
    headroom, error = finite(float(gap[0])), standard_error(gap, samples.num_contexts)
    if headroom is None or not np.isfinite(gained[0]):
        return Retained(headroom=headroom, headroom_se=error)
    least = _ROUNDING * abs(float(samples.values[name][full][0]))
    if headroom <= least or (error is not None and headroom < 2 * error):
        return Retained(headroom=headroom, headroom_se=error, no_headroom=True)
    ratio = np.where(gap > 0, gained / np.where(gap > 0, gap, 1.0), np.nan)
    ci = percentile_interval(ratio, samples.num_contexts)
    return Retained(value=float(ratio[0]), ci=ci, headroom=headroom, headroom_se=error)


def standard_error(values: Array, num_contexts: int) -> float | None:
    """Standard deviation over the resamples (all but the first value); None when nothing varies."""
    drawn = values[1:][np.isfinite(values[1:])]
    return float(drawn.std(ddof=1)) if num_contexts > 1 and len(drawn) > 1 and np.ptp(drawn) > 0 else None


def percentile_interval(values: Array, num_contexts: int) -> Interval | None:
    """Interval that holds the share CONFIDENCE of the resamples (all but the first value).

    None for one context, and where every resample is equal: that says how few contexts there are, not that the value is
    certain.
    """
    drawn = values[1:][np.isfinite(values[1:])]
    if num_contexts < 2 or len(drawn) < 2 or np.ptp(drawn) <= 1e-9 * np.abs(drawn).max():
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def share_interval(values: Array, num_contexts: int) -> Interval | None:
    """The percentile interval of a share (0-1); where every resample is equal, Wilson's over contexts."""
    if num_contexts < 2 or not np.isfinite(values[0]):
        return None
    return percentile_interval(values, num_contexts) or wilson(float(values[0]) * num_contexts, num_contexts)


def wilson(hits: float, count: int, confidence: float = CONFIDENCE) -> Interval | None:
    """Wilson score interval of a share; None for a count of 0."""
    if count == 0:
        return None
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, z2 = hits / count, z**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = z / (1 + z2 / count) * math.sqrt(max(0.0, share * (1 - share)) / count + z2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _at_the_edge(value: float, num_contexts: int) -> Interval | None:
    """Exact binomial (Clopper-Pearson) limit over contexts when all or none is right: every resample is then equal."""
    if num_contexts < 2:
        return None
    limit = float(((1 - CONFIDENCE) / 2) ** (1 / num_contexts))
    return (limit, 1.0) if value == 1.0 else (0.0, 1.0 - limit)


# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond the table the normal quantile is near enough.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


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
    half = (_T[count - 2] if count - 2 < len(_T) else 1.96) * std / math.sqrt(count)
    is_certain = std <= 1e-9 * abs(mean)  # so few seeds do not make it so
    return Mean(mean=mean, ci=None if is_certain else (mean - half, mean + half), std=std, seeds=count)
