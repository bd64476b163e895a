"""What a sweep has found: points with means over seeds, the best one and its trial, the Pareto front.

Intervals are Student's t over seeds (95 %). Points are compared seed by seed: the seeds that both have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from promptcomp.errors import ConfigError
from promptcomp.evaluation.bootstrap import Mean, mean_of
from promptcomp.evaluation.results import finite
from promptcomp.sweeps.state import SweepState, Trial
from promptcomp.sweeps.sweep_config import Scalar
from promptcomp.sweeps.views.importance import MIN_POINTS, importances
from promptcomp.sweeps.views.numbers import Goal, Progress, goals_of, progress_of
from promptcomp.sweeps.views.wording import params_text, values_text


@dataclass(frozen=True, slots=True)
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
    """All seeds that it should have are finished, with a value of every objective."""
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


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that tables, plots and the page show."""

    objectives: tuple[Goal, ...]
    dimensions: tuple[str, ...]
    """All of the space."""
    varying: tuple[str, ...]
    """Those with several values among the points."""
    seeds: int
    """That every point should have."""
    points: tuple[Point, ...]
    """Best first; without a value last."""
    best: Point | None
    """None while no point has all its seeds, when no point meets the constraints, and for several objectives."""
    why_no_best: str | None
    leading: Point | None
    """The best of the points so far, whatever their seeds (one objective); ahead of `best` while it lacks seeds."""
    front: tuple[Point, ...]
    """Pareto front over means (several objectives), by the first objective."""
    importances: Mapping[str, Mapping[str, float]]
    """Goal -> dimension -> share."""
    why_no_importances: str | None
    progress: Progress
    failures: tuple[Trial, ...]

    @property
    def ahead(self) -> Point | None:
        """A point that would be the best if its missing seeds came out like those that it has."""
        waits = self.best is not None and self.leading is not None and self.leading.point != self.best.point
        return self.leading if waits else None

    @property
    def several(self) -> bool:
        """Whether there are several objectives."""
        return len(self.objectives) > 1


def summarize(state: SweepState, now: datetime | None = None, *, with_importances: bool = True) -> Summary:
    """Compute a summary.

    Args:
        state: as read.
        now: an aware time, for tests.
        with_importances: False saves the time, and the import of Optuna, where they are not shown.
    """
    objectives = goals_of(state.config)
    grouped: dict[str, list[Trial]] = {}
    for trial in state.trials:
        grouped.setdefault(trial.point, []).append(trial)
    points = [_point(state, name, trials) for name, trials in grouped.items()]
    found = {name: {repr(p.params[name]) for p in points if name in p.params} for name in state.config.space}
    varying = tuple(name for name, values in found.items() if len(values) > 1)
    first = objectives[0]
    sign = sign_of(first)
    ranked = sorted(points, key=lambda p: -sign * p.values[first.name].mean if first.name in p.values else 0.0)
    ranked.sort(key=lambda p: (first.name not in p.values, not p.feasible))
    several = len(objectives) > 1
    usable = [point for point in ranked if point.feasible and len(point.values) == len(objectives)]
    complete = [point for point in usable if point.complete]
    best = complete[0] if complete and not several else None
    front = _front(complete or usable, objectives) if several else []
    marked = tuple(_marked(point, best, front, first) for point in ranked)
    shares = {}
    for goal in objectives if with_importances else ():
        rows = [(p.params, p.values[goal.name].mean) for p in points if goal.name in p.values]
        if each := importances(state.config, varying, rows, goal):
            shares[goal.name] = each
    return Summary(
        objectives=objectives,
        dimensions=tuple(state.config.space),
        varying=varying,
        seeds=state.config.seeds,
        points=marked,
        best=next((point for point in marked if point.is_best), None),
        why_no_best=None if best else _why_no_best(points, several),
        leading=None if several or not usable else next(p for p in marked if p.point == usable[0].point),
        front=tuple(point for point in marked if point.on_front),
        importances=shares,
        why_no_importances=None if shares else _why_no_importances(points, varying, objectives),
        progress=progress_of(state, now or datetime.now(UTC)),
        failures=tuple(trial for trial in state.trials if trial.status == "failed"),
    )


def _point(state: SweepState, name: str, trials: Sequence[Trial]) -> Point:
    goals = goals_of(state.config)
    finished = [trial for trial in trials if trial.status == "finished"]
    by_seed: dict[str, dict[int, float]] = {}
    for objective in goals:
        found = {trial.seed: finite(trial.values.get(objective.name)) for trial in finished}
        values = {seed: value for seed, value in sorted(found.items()) if value is not None}
        if values:
            by_seed[objective.name] = values
    outside: dict[str, list[float]] = {}
    for trial in finished:
        for constraint, amount in trial.constraints.items():
            # An unknown amount (not measured, not finite) cannot be called inside.
            known = finite(amount)
            outside.setdefault(constraint, []).append(float("inf") if known is None else known)
    means = {constraint: sum(amounts) / len(amounts) for constraint, amounts in outside.items()}
    enough = all(len(by_seed.get(objective.name, ())) >= state.config.seeds for objective in goals)
    return Point(
        point=name,
        params=trials[0].params,
        trials=tuple(sorted(trials, key=lambda trial: trial.seed)),
        by_seed=by_seed,
        values={metric: mean_of(list(values.values())) for metric, values in by_seed.items()},
        violated={constraint: mean for constraint, mean in means.items() if mean > 0},
        complete=enough,
        dropped=name in state.dropped,
    )


def sign_of(objective: Goal) -> float:
    """1 if more is better, else -1."""
    return 1.0 if objective.direction == "maximize" else -1.0


def _front(points: Sequence[Point], objectives: Sequence[Goal]) -> list[Point]:
    """Those that no other equals in all objectives and beats in one."""
    rows = {p.point: [sign_of(o) * p.values[o.name].mean for o in objectives] for p in points}

    def beats(one: list[float], other: list[float]) -> bool:
        return one != other and all(a >= b for a, b in zip(one, other, strict=True))

    return [p for p in points if not any(beats(row, rows[p.point]) for row in rows.values())]


def _marked(point: Point, best: Point | None, front: Sequence[Point], objective: Goal) -> Point:
    versus = None
    is_best = best is not None and point.point == best.point
    if best is not None and not is_best:
        own, theirs = point.by_seed.get(objective.name, {}), best.by_seed[objective.name]
        common = sorted(own.keys() & theirs.keys())
        versus = mean_of([own[seed] - theirs[seed] for seed in common]) if common else None
    return replace(point, is_best=is_best, on_front=any(p.point == point.point for p in front), versus_best=versus)


def _why_no_importances(points: Sequence[Point], varying: Sequence[str], objectives: Sequence[Goal]) -> str:
    if len(varying) < 2:
        return "only one dimension varies" if varying else "no dimension varies yet"
    having = sum(objectives[0].name in point.values for point in points)
    if having < MIN_POINTS:
        return f"too few trials ({having} of {MIN_POINTS} points)"
    return "all points are equally good"


def _why_no_best(points: Sequence[Point], several: bool) -> str:
    if several:
        return "several objectives have no single best point; see the Pareto front"
    valued = [point for point in points if point.values]
    if not valued:
        return "no trial has finished with a value"
    if not any(point.feasible for point in valued):
        return "no point meets the constraints"
    if not any(point.complete for point in valued):
        return "no point has finished all its seeds yet"
    return "no point that meets the constraints has finished all its seeds yet"


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
    summary, where = summarize(state, with_importances=False), state.directory.path
    names = [goal.name for goal in summary.objectives]
    if objective is not None and objective not in names:
        raise ConfigError(f"--objective {objective}: the sweep has no such objective; it has {', '.join(names)}")
    chosen = summary.objectives[0 if objective is None else names.index(objective)]
    if point is not None:
        found = [each for each in summary.points if each.point == point]
        found = found or [each for each in summary.points if point and each.point.startswith(point)]
        if len(found) != 1:
            what = "several points start with it" if found else "the sweep has no such point"
            raise ConfigError(f"--point {point}: {what}; points: {_list(summary)}")
        best = found[0]
    elif summary.several:
        if objective is None:
            raise ConfigError(_choose(state, summary))
        if not summary.front:
            raise ConfigError(f"{where}: no point of the sweep has a value of every objective yet")
        best = max(summary.front, key=lambda p: sign_of(chosen) * p.values[chosen.name].mean)
    elif summary.best is None:
        choice = f"; --point names one of: {_list(summary)}" if any(p.values for p in summary.points) else ""
        raise ConfigError(f"{where}: {summary.why_no_best}{choice}")
    else:
        best = summary.best
    values = best.by_seed.get(chosen.name, {})
    if not values:
        raise ConfigError(f"{where}: point {best.point} has no finished trial with a value")
    seed = max(values, key=lambda seed: sign_of(chosen) * values[seed])
    return next(trial for trial in best.trials if trial.seed == seed)


def _choose(state: SweepState, summary: Summary) -> str:
    start = f"{state.directory.path}: the sweep has several objectives; choose with --objective or --point"
    if not summary.front:
        return f"{start} (no point has a value of every objective yet)"
    lines = [
        f"  {p.point}  {params_text(p.params, summary.varying)}: {values_text(p.values, summary.objectives)}"
        for p in summary.front[:_LISTED]
    ]
    more = len(summary.front) - _LISTED
    return "\n".join([f"{start}; Pareto front:", *lines, *([f"  and {more} more"] if more > 0 else [])])


def _list(summary: Summary) -> str:
    names: Sequence[str] = [point.point for point in summary.points]
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more if names else "none"
