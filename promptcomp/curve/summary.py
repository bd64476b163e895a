"""What a curve says: means with intervals over seeds, differences, and the share at which the baseline is reached.

Intervals of means are Student's t over seeds (95 %); the interval of the share comes from resampling the seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from promptcomp.config import Measured
from promptcomp.evaluation.seeds import CONFIDENCE, Mean, mean_of

LOWER_IS_BETTER = ("loss",)
_RESAMPLES = 2000
_ALL_DRAWS = 3200
"""Up to so many, all draws of seeds are taken instead of random ones (5 seeds have 3125)."""


class PointResult(Measured):
    """One finished run."""

    method: str
    size: str
    fraction: float
    seed: int
    value: float
    """The curve's metric."""
    run: str
    steps: int | None = None


class Cell(Measured):
    """A method at a size and a share of the data."""

    method: str
    size: str
    fraction: float
    rows: int | None = None
    """Training rows at this share (the number of seed 0)."""
    value: Mean
    against: dict[str, Mean] = Field(default_factory=dict)
    """Baseline -> the method minus the baseline at the same share, seed by seed (the method's own cells only)."""


class Reached(Measured):
    """The share of the data at which the method is as good as a baseline with all of it."""

    size: str
    baseline: str
    target: Mean
    """The baseline at the largest share."""
    target_fraction: float
    first: float | None
    """Smallest share that was run whose mean reaches the target; null: none does."""
    fraction: float | None
    """The same between the shares that were run (straight lines over the logarithm of the share)."""
    at_most: bool = False
    """Already the smallest share reaches it, so the true share may be smaller."""
    ci: tuple[float, float | None] | None = None
    """95 % interval over draws of seeds; null at its end: not reached; null: one seed, or all draws say the same."""
    resampled: float | None = None
    """Share of the draws in which it is reached."""


class Curve(Measured):
    """Everything that a curve found (curve.json)."""

    version: int = 1
    method: str
    baselines: tuple[str, ...]
    data: str
    split: str
    metric: str
    fractions: tuple[float, ...]
    seeds: int
    sizes: tuple[str, ...]
    size_key: str
    parameters: dict[str, int | None]
    """Size -> parameters of the student ("" where there is one size)."""
    points: tuple[PointResult, ...]
    cells: tuple[Cell, ...]
    reached: tuple[Reached, ...]
    missing: tuple[str, ...] = ()
    """Points without a result, and why."""


class Table:
    """The values of a curve by method, size, share and seed."""

    def __init__(self, points: Sequence[PointResult]) -> None:
        self._values: dict[tuple[str, str, float], dict[int, float]] = {}
        for point in points:
            self._values.setdefault((point.method, point.size, point.fraction), {})[point.seed] = point.value

    def at(self, method: str, size: str, fraction: float) -> dict[int, float]:
        """Seed -> value."""
        return self._values.get((method, size, fraction), {})

    def cells(
        self,
        methods: Sequence[str],
        sizes: Sequence[str],
        fractions: Sequence[float],
        rows: Mapping[float, int],
    ) -> list[Cell]:
        """A cell for every method, size and share that has a value; the first method is held against the others."""
        found = []
        for method, size, fraction in itertools.product(methods, sizes, fractions):
            own = self.at(method, size, fraction)
            if not own:
                continue
            against = {}
            for baseline in methods[1:] if method == methods[0] else ():
                theirs = self.at(baseline, size, fraction)
                both = sorted(own.keys() & theirs.keys())
                if both:
                    against[baseline] = mean_of([own[seed] - theirs[seed] for seed in both])
            value = mean_of(list(own.values()))
            found.append(
                Cell(method=method, size=size, fraction=fraction, rows=rows.get(fraction), value=value, against=against)
            )
        return found

    def reached(
        self, method: str, baseline: str, size: str, fractions: Sequence[float], lower_is_better: bool
    ) -> Reached | None:
        """Where the method reaches the baseline at the largest share; None: some point has no value.

        Only seeds with all values count.
        """
        full = fractions[-1]
        columns = [self.at(method, size, fraction) for fraction in fractions] + [self.at(baseline, size, full)]
        seeds = sorted(set.intersection(*(set(column) for column in columns)))
        if not seeds:
            return None
        sign = -1.0 if lower_is_better else 1.0
        values = sign * np.array([[column[seed] for column in columns] for seed in seeds])  # [seeds, shares + 1]
        means = values.mean(0)
        share = crossing(fractions, means[:-1], float(means[-1]))
        draws = [crossing(fractions, drawn[:-1], float(drawn[-1])) for drawn in _draws(values)]
        ci = None
        if draws:
            inside = np.array([math.inf if draw is None else draw for draw in draws])
            tail = (1 - CONFIDENCE) / 2
            low, high = np.quantile(inside, [tail, 1 - tail], method="inverted_cdf")
            if math.isfinite(low) and low != high:
                ci = (float(low), float(high) if math.isfinite(high) else None)
        return Reached(
            size=size,
            baseline=baseline,
            target=mean_of(list((sign * values[:, -1]).tolist())),
            target_fraction=full,
            first=next((f for f, m in zip(fractions, means[:-1], strict=True) if m >= means[-1]), None),
            fraction=share,
            at_most=share is not None and share == fractions[0],
            ci=ci,
            resampled=sum(draw is not None for draw in draws) / len(draws) if draws else None,
        )


def crossing(fractions: Sequence[float], values: Sequence[float] | np.ndarray, target: float) -> float | None:
    """The smallest share at which a curve reaches `target`, with straight lines over the logarithm of the share.

    Args:
        fractions: shares, rising.
        values: the curve there; higher is better.
        target: what is to be reached.

    Returns:
        None: it is not reached.
    """
    for i, (fraction, value) in enumerate(zip(fractions, values, strict=True)):
        if value >= target:
            if i == 0:
                return fraction
            before = float(values[i - 1])
            part = (target - before) / (float(value) - before)
            low, high = math.log(fractions[i - 1]), math.log(fraction)
            return math.exp(low + part * (high - low))
    return None


def _draws(values: np.ndarray) -> list[np.ndarray]:
    """Mean rows over draws of seeds with replacement; none for one seed."""
    count = len(values)
    if count < 2:
        return []
    if count**count <= _ALL_DRAWS:
        index = np.array(list(itertools.product(range(count), repeat=count)))
    else:
        index = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
    return list(values[index].mean(1))
