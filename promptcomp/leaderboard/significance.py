"""Intervals over contexts and seeds, paired tests over contexts, Holm's correction, non-inferiority.

A row's scores are [S, C]: training seeds and contexts, with a weight for each context (its examples). Whatever the
seeds, the contexts are the same, in all rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from promptcomp.evaluation.bootstrap import RESAMPLES, context_weights, percentile_interval
from promptcomp.evaluation.results import Interval

Array = NDArray[np.float64]
LEVEL = 0.05
"""Of the one-sided bound."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A mean on all contexts and seeds (first), and on draws of both [1 + R]."""

    values: Array
    num_contexts: int

    @property
    def ci(self) -> Interval | None:
        """95 % percentiles; None where nothing varies."""
        return percentile_interval(self.values, self.num_contexts)


def drawn(scores: Array, weights: Array, resamples: int = RESAMPLES) -> Drawn:
    """Weighted means over draws with replacement of contexts and, independently, of seeds (Owen 2007, "The pigeonhole
    bootstrap": wide rather than narrow). The draws of contexts are the same for all rows, so differences are paired.

    Args:
        scores: [S, C].
        weights: [C].
        resamples: R.
    """
    seeds, contexts = scores.shape
    of_contexts = np.concatenate([np.ones((1, contexts)), *context_weights(contexts, resamples, 0)]) * weights
    of_seeds = np.concatenate([np.ones((1, seeds)), *context_weights(seeds, resamples, 1)])
    above = ((of_seeds @ scores) * of_contexts).sum(1)
    return Drawn(above / (of_seeds.sum(1) * of_contexts.sum(1)), contexts)


def mean_and_error(differences: Array, weights: Array) -> tuple[float, float | None]:
    """Weighted mean of paired differences [C] and its standard error (linearised; the usual one for equal weights);
    None for one context."""
    count, share = len(differences), weights / weights.mean()
    mean = float((share * differences).mean())
    if count < 2:
        return mean, None
    return mean, math.sqrt(float(((share * (differences - mean)) ** 2).sum()) / (count * (count - 1)))


def paired_p(differences: Array, weights: Array) -> float | None:
    """Two-sided p of a paired t-test over contexts [C] that their mean is 0; None for one context."""
    mean, error = mean_and_error(differences, weights)
    if error is None:
        return None
    if error <= 1e-12:  # nothing varies
        return 1.0 if abs(mean) <= 1e-12 else 0.0
    return float(2 * student.sf(abs(mean) / error, len(differences) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        found[i] = largest
    return found


def lower_bound(differences: Array, weights: Array, level: float = LEVEL) -> float | None:
    """One-sided 1 - level lower bound of the mean over contexts [C], by Student's t; None for one context."""
    mean, error = mean_and_error(differences, weights)
    return None if error is None else mean - error * float(student.ppf(1 - level, len(differences) - 1))
