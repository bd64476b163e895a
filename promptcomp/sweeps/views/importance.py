"""Which dimensions matter: PED-ANOVA over the points' means."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

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
    from optuna.trial import create_trial

    distributions = {name: _distribution(config, name, [params[name] for params, _ in usable]) for name in varying}
    trials = [
        create_trial(
            params={name: _coded(distributions[name], params[name]) for name in varying},
            distributions=distributions,
            value=value,
        )
        for params, value in usable
    ]
    found = _ped_anova(trials, objective.direction)
    return {name: value for name, value in found.items() if math.isfinite(value)} if any(found.values()) else {}


@contextlib.contextmanager
def _without_sklearn() -> Iterator[None]:
    """Leave scikit-learn out of what is imported: it takes two seconds, and only Optuna's other evaluators use it."""
    is_there = "sklearn" in sys.modules
    if not is_there:
        sys.modules["sklearn"] = None  # type: ignore[assignment]  # the import system's way to say: not installed
    try:
        yield
    finally:
        if not is_there:
            del sys.modules["sklearn"]


def _ped_anova(trials: Sequence[Any], direction: Literal["maximize", "minimize"]) -> dict[str, float]:
    """On a study in memory, without Optuna's line about its creation."""
    import optuna

    with _without_sklearn():
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    evaluator = PedAnovaImportanceEvaluator(target_quantile=_SHARE_OF_FEW if len(trials) < _FEW else _SHARE)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction=direction)
        study.add_trials(trials)
        return get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(before)


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


def _coded(distribution: Any, value: Scalar) -> Any:
    from optuna.distributions import CategoricalDistribution

    return _word(value) if isinstance(distribution, CategoricalDistribution) else value


def _word(value: Scalar) -> str:
    """True and 1 are equal for Optuna, but not for us."""
    return f"{type(value).__name__} {value}"
