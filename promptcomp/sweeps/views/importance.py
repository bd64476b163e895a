"""Which dimensions matter: PED-ANOVA over the points' means."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from promptcomp.sweeps.sweep_config import Interval, Scalar, SweepConfig
from promptcomp.sweeps.views.numbers import Goal

MIN_POINTS = 4
ROUGH_BELOW = 12
"""With fewer points the shares are a hint at most."""
_FEW, _SHARE_OF_FEW, _SHARE = 40, 0.25, 0.1


def importances(
    config: SweepConfig,
    varying: Sequence[str],
    points: Sequence[tuple[Mapping[str, Scalar], float]],
    objective: Goal,
) -> dict[str, float]:
    """Share of each dimension in what separates the best points from all (PED-ANOVA, Watanabe et al. 2023).

    Args:
        config: of the sweep.
        varying: dimensions with at least two values among the points.
        points: parameters and mean of the objective of each point.
        objective: whose direction says what is best.

    Returns:
        Dimension -> share, largest first, summing to 1; empty with too few points (`MIN_POINTS`), fewer than two
        dimensions, or when all points are equally good.
    """
    usable = [(params, value) for params, value in points if all(name in params for name in varying)]
    if len(usable) < MIN_POINTS or len(varying) < 2 or len({value for _, value in usable}) < 2:
        return {}
    import optuna

    has_sklearn = "sklearn" in sys.modules
    if not has_sklearn:  # importing it takes two seconds, and only Optuna's other evaluators use it
        sys.modules["sklearn"] = None  # type: ignore[assignment]  # the import system's way to say: not installed
    try:
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    finally:
        if not has_sklearn:
            del sys.modules["sklearn"]

    distributions = {name: _distribution(config, name, [params[name] for params, _ in usable]) for name in varying}
    evaluator = PedAnovaImportanceEvaluator(target_quantile=_SHARE_OF_FEW if len(usable) < _FEW else _SHARE)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # no line about the study's creation
    try:
        study = optuna.create_study(direction=objective.direction)
    finally:
        optuna.logging.set_verbosity(before)
    words = {n for n, d in distributions.items() if isinstance(d, optuna.distributions.CategoricalDistribution)}
    for params, value in usable:
        coded = {name: _word(params[name]) if name in words else params[name] for name in varying}
        study.add_trial(optuna.create_trial(params=coded, distributions=distributions, value=value))
    found = get_param_importances(study, evaluator=evaluator)
    return {name: value for name, value in found.items() if math.isfinite(value)} if any(found.values()) else {}


def _distribution(config: SweepConfig, name: str, values: Sequence[Scalar]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    dimension = config.space.get(name)
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if isinstance(dimension, Interval) and dimension.steps is None and len(numbers) == len(values):
        # Bounds of a reopened sweep may have been narrower than old points.
        low, high = min(dimension.low, *numbers), max(dimension.high, *numbers)
        if dimension.integer:
            return IntDistribution(math.floor(low), math.ceil(high), log=dimension.log)
        return FloatDistribution(low, high, log=dimension.log)
    return CategoricalDistribution(sorted({_word(value) for value in values}))


def _word(value: Scalar) -> str:
    """True and 1 are equal for Optuna, but not for us."""
    return f"{type(value).__name__} {value}"
