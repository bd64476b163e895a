"""The trial that a sweep recommends."""

from __future__ import annotations

from collections.abc import Sequence

from promptcomp.errors import ConfigError
from promptcomp.sweeps.state import SweepState, Trial
from promptcomp.sweeps.views.numbers import Goal
from promptcomp.sweeps.views.points import Point, Summary, sign_of, summarize
from promptcomp.sweeps.views.wording import mean_text, params_text

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
    summary = summarize(state, with_importances=False)
    chosen = _objective(summary, objective)
    if point is not None:
        found = _named(summary, point)
    elif summary.several and objective is None:
        raise ConfigError(_choose(state, summary))
    elif summary.several:
        if not summary.front:
            raise ConfigError(f"{state.directory.path}: no point of the sweep has a value of every objective yet")
        found = max(summary.front, key=lambda p: sign_of(chosen) * p.values[chosen.name].mean)
    elif summary.best is None:
        choice = f"; --point names one of: {_list(summary)}" if any(p.values for p in summary.points) else ""
        raise ConfigError(f"{state.directory.path}: {summary.why_no_best}{choice}")
    else:
        found = summary.best
    values = found.by_seed.get(chosen.name, {})
    if not values:
        raise ConfigError(f"{state.directory.path}: point {found.point} has no finished trial with a value")
    seed = max(values, key=lambda seed: sign_of(chosen) * values[seed])
    return next(trial for trial in found.trials if trial.seed == seed)


def _objective(summary: Summary, name: str | None) -> Goal:
    if name is None:
        return summary.objectives[0]
    for objective in summary.objectives:
        if objective.name == name:
            return objective
    known = ", ".join(objective.name for objective in summary.objectives)
    raise ConfigError(f"--objective {name}: the sweep has no such objective; it has {known}")


def _named(summary: Summary, name: str) -> Point:
    found = [point for point in summary.points if point.point == name]
    found = found or [point for point in summary.points if name and point.point.startswith(name)]
    if len(found) == 1:
        return found[0]
    what = "several points start with it" if found else "the sweep has no such point"
    raise ConfigError(f"--point {name}: {what}; points: {_list(summary)}")


def _choose(state: SweepState, summary: Summary) -> str:
    start = f"{state.directory.path}: the sweep has several objectives; choose with --objective or --point"
    if not summary.front:
        return f"{start} (no point has a value of every objective yet)"
    lines = [f"  {p.point}  {params_text(p.params, summary.varying)}: {_values(p)}" for p in summary.front[:_LISTED]]
    more = len(summary.front) - _LISTED
    return "\n".join([f"{start}; Pareto front:", *lines, *([f"  and {more} more"] if more > 0 else [])])


def _values(point: Point) -> str:
    return ", ".join(f"{metric} {mean_text(mean, metric)}" for metric, mean in point.values.items())


def _list(summary: Summary) -> str:
    names: Sequence[str] = [point.point for point in summary.points]
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more if names else "none"
