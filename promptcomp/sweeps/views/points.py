"""The results of a sweep: points with means over seeds, the best one and its trial, the Pareto front.

Intervals are Student's t over seeds (95 %). Points are compared seed by seed: the seeds that both have.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from promptcomp.errors import ConfigError
from promptcomp.evaluation.bootstrap import Mean, mean_of
from promptcomp.evaluation.results import finite
from promptcomp.sweeps.planning import Trial
from promptcomp.sweeps.space import distribution
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.sweep_config import Interval, Scalar, SweepConfig
from promptcomp.sweeps.values import Goal, goals_of
from promptcomp.sweeps.views.numbers import Progress, Runs, mean_difference
from promptcomp.sweeps.views.wording import params_text, values_text

MIN_POINTS = 4
ROUGH_BELOW = 12
"""With fewer points the shares are a hint at most."""
_FEW, _SHARE_OF_FEW, _SHARE = 40, 0.25, 0.1


@dataclass(slots=True)
class Point:
    """One choice of the swept keys, all seeds together."""

    point: str
    params: Mapping[str, Scalar]
    trials: tuple[Trial, ...]
    by_seed: Mapping[str, Mapping[int, float]]
    """Goal -> seed -> value, of finished trials with a finite value."""
    values: Mapping[str, Mean]
    """Goal -> mean over seeds."""
    violated: Mapping[str, float]
    """Constraint -> how far its mean over seeds is outside; only those that are not met."""
    complete: bool
    """The sweep has it still, and all its seeds are finished, with a value of every objective."""
    dropped: bool
    is_best: bool = False
    on_front: bool = False
    versus_best: Mean | None = None
    """Mean of the differences to the best point over common seeds (one objective only)."""

    @property
    def feasible(self) -> bool:
        """Whether its means meet all constraints."""
        return not self.violated

    @property
    def seeds(self) -> int:
        """Finished seeds."""
        return max((len(values) for values in self.by_seed.values()), default=0)

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval of the difference to the best point holds 0; None: not known (fewer than two seeds, or
        the same difference in all of them)."""
        versus = self.versus_best
        if versus is None or versus.ci is None:
            return True if versus is not None and versus.seeds > 1 and versus.mean == 0 else None
        low, high = versus.ci
        return low <= 0 <= high


class Summary:
    """Everything that tables, plots and the page show.

    Args:
        state: as read.
        now: an aware time, for tests.
    """

    def __init__(self, state: SweepState, now: datetime | None = None) -> None:
        self.state, self.runs = state, Runs(state)
        self.objectives = goals_of(state.config)
        self.several = len(self.objectives) > 1
        self.dimensions = tuple(state.config.space)
        """All of the space."""
        self.seeds = state.config.seeds
        """That every point should have."""
        self.progress = Progress(state, now or datetime.now(UTC))
        self.failures = tuple(each for each in (*state.trials, *state.controls) if each.status == "failed")
        """Trials, then controls."""
        grouped: dict[str, list[Trial]] = {}
        for trial in state.trials:
            grouped.setdefault(trial.point, []).append(trial)
        self._planned = [_point(state, self.objectives, name, trials) for name, trials in grouped.items()]
        chosen = {name: {repr(p.params[name]) for p in self._planned if name in p.params} for name in self.dimensions}
        self.varying = tuple(name for name, values in chosen.items() if len(values) > 1)
        """Dimensions with several values among the points."""
        self.points = tuple(sorted(self._planned, key=self._rank))
        """Best first; without a value last."""
        wanted = [point for point in self.points if point.point not in state.left_out]
        usable = [point for point in wanted if point.feasible and len(point.values) == len(self.objectives)]
        complete = [point for point in usable if point.complete]
        self.best = complete[0] if complete and not self.several else None
        """None while no point has all its seeds, when no point meets the constraints, and for several objectives."""
        self.leading = usable[0] if usable and not self.several else None
        """The best of the points so far, whatever their seeds (one objective); ahead of `best` while it lacks seeds."""
        self.front = _front(complete or usable, self.objectives) if self.several else []
        """Pareto front over means (several objectives), by the first objective."""
        for point in self.front:
            point.on_front = True
        if self.best is not None:
            self.best.is_best = True
            name = self.objectives[0].name
            for point in self.points:
                if point is not self.best:
                    point.versus_best = mean_difference(point.by_seed.get(name, {}), self.best.by_seed[name])

    def _rank(self, point: Point) -> tuple[bool, bool, float]:
        mean = point.values.get(self.objectives[0].name)
        return mean is None, not point.feasible, 0.0 if mean is None else -self.objectives[0].sign * mean.mean

    @functools.cached_property
    def importances(self) -> dict[str, dict[str, float]]:
        """Goal -> dimension -> share. Computed where they are shown: it takes time, and the import of Optuna."""
        found = {}
        for goal in self.objectives:
            rows = [(p.params, p.values[goal.name].mean) for p in self._planned if goal.name in p.values]
            found[goal.name] = importances(self.state.config, self.varying, rows, goal)
        return {name: shares for name, shares in found.items() if shares}

    @property
    def why_no_importances(self) -> str | None:
        """None: there are some."""
        if self.importances:
            return None
        if len(self.varying) < 2:
            return "only one dimension varies" if self.varying else "no dimension varies yet"
        having = sum(self.objectives[0].name in point.values for point in self.points)
        few = having < MIN_POINTS
        return f"too few trials ({having} of {MIN_POINTS} points)" if few else "all points are equally good"

    @property
    def why_no_best(self) -> str | None:
        """None: there is one."""
        if self.best is not None:
            return None
        valued = [point for point in self.points if point.values]
        if self.several:
            return "several objectives have no single best point; see the Pareto front"
        if not valued:
            return "no trial has finished with a value"
        if not any(point.feasible for point in valued):
            return "no point meets the constraints"
        which = "that meets the constraints " if any(point.complete for point in valued) else ""
        return f"no point {which}has finished all its seeds{'' if self.progress.over else ' yet'}"

    @property
    def ahead(self) -> Point | None:
        """A point that would be the best if its missing seeds came out like those that it has."""
        return self.leading if self.best is not None and self.leading is not self.best else None


def _point(state: SweepState, goals: Sequence[Goal], name: str, trials: Sequence[Trial]) -> Point:
    finished = [trial for trial in trials if trial.status == "finished"]
    seeds = set(range(state.config.first_seed, state.config.first_seed + state.config.seeds))
    by_seed = {}
    for goal in goals:
        found = {trial.seed: finite(trial.values.get(goal.name)) for trial in finished}
        if values := {seed: value for seed, value in sorted(found.items()) if value is not None}:
            by_seed[goal.name] = values
    outside: dict[str, list[float]] = {}
    for trial in finished:
        for constraint, amount in trial.constraints.items():
            # An unknown amount (not measured, not finite) cannot be called inside.
            known = finite(amount)
            outside.setdefault(constraint, []).append(float("inf") if known is None else known)
    means = {constraint: sum(amounts) / len(amounts) for constraint, amounts in outside.items()}
    return Point(
        point=name,
        params=trials[0].params,
        trials=tuple(sorted(trials, key=lambda trial: trial.seed)),
        by_seed=by_seed,
        values={metric: mean_of(list(values.values())) for metric, values in by_seed.items()},
        violated={constraint: mean for constraint, mean in means.items() if mean > 0},
        complete=name not in state.left_out and all(seeds <= by_seed.get(goal.name, {}).keys() for goal in goals),
        dropped=name in state.dropped,
    )


def _front(points: Sequence[Point], objectives: Sequence[Goal]) -> list[Point]:
    """Those that no other equals in all objectives and beats in one."""
    rows = {p.point: [o.sign * p.values[o.name].mean for o in objectives] for p in points}

    def beats(one: list[float], other: list[float]) -> bool:
        return one != other and all(a >= b for a, b in zip(one, other, strict=True))

    return [p for p in points if not any(beats(row, rows[p.point]) for row in rows.values())]


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
    from optuna.distributions import CategoricalDistribution

    dimension = config.space.get(name)
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if isinstance(dimension, Interval) and dimension.steps is None and len(numbers) == len(values):
        # Bounds of a reopened sweep may have been narrower than old points.
        wide = {"low": min(dimension.low, *numbers), "high": max(dimension.high, *numbers)}
        return distribution(dimension.model_copy(update=wide))
    return CategoricalDistribution(sorted({_word(value) for value in values}))


def _word(value: Scalar) -> str:
    """True and 1 are equal for Optuna, but not for us."""
    return f"{type(value).__name__} {value}"


_LISTED = 12


def best_cell(state: SweepState, objective: str | None = None, point: str | None = None) -> Trial:
    """The best seed of the best point; by which seed of several is a matter of luck, by which point is not.

    Args:
        state: of the sweep.
        objective: which of several objectives decides; on a Pareto front it must be named (or a point).
        point: a point's identity, or the start of it, instead of the best one.

    Raises:
        ConfigError: there is none; the message says why and, for several objectives, lists the Pareto front.
    """
    summary, where = Summary(state), state.directory.path
    goals = {goal.name: goal for goal in summary.objectives}
    if objective is not None and objective not in goals:
        raise ConfigError(f"--objective {objective}: the sweep has no such objective; it has {', '.join(goals)}")
    chosen = summary.objectives[0] if objective is None else goals[objective]
    names: Sequence[str] = [each.point for each in summary.points]
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    listed = ", ".join(names[:_LISTED]) + more or "none"
    if point is not None:
        found = [each for each in summary.points if each.point == point]
        found = found or [each for each in summary.points if point and each.point.startswith(point)]
        if len(found) != 1:
            what = "several points start with it" if found else "the sweep has no such point"
            raise ConfigError(f"--point {point}: {what}; points: {listed}")
        best = found[0]
    elif summary.several:
        if objective is None:
            raise ConfigError(f"{where}: {_choose(summary)}")
        if not summary.front:
            raise ConfigError(f"{where}: no point of the sweep has a value of every objective yet")
        best = max(summary.front, key=lambda p: chosen.sign * p.values[chosen.name].mean)
    elif summary.best is None:
        choice = f"; --point names one of: {listed}" if any(p.values for p in summary.points) else ""
        raise ConfigError(f"{where}: {summary.why_no_best}{choice}")
    else:
        best = summary.best
    values = best.by_seed.get(chosen.name, {})
    if not values:
        raise ConfigError(f"{where}: point {best.point} has no finished trial with a value")
    seed = max(values, key=lambda seed: chosen.sign * values[seed])
    return next(trial for trial in best.trials if trial.seed == seed)


def _choose(summary: Summary) -> str:
    start = "the sweep has several objectives; choose with --objective or --point"
    if not summary.front:
        return f"{start} (no point has a value of every objective yet)"
    lines = [
        f"  {p.point}  {params_text(p.params, summary.varying)}: {values_text(p.values, summary.objectives)}"
        for p in summary.front[:_LISTED]
    ]
    more = len(summary.front) - _LISTED
    return "\n".join([f"{start}; Pareto front:", *lines, *([f"  and {more} more"] if more > 0 else [])])
