"""Numbers of a run that a sweep looks at: objectives and constraints (results.json), dev metrics (metrics.csv)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from promptcomp.config import ConfigError
from promptcomp.evaluation.predictions import LOWER_IS_BETTER
from promptcomp.evaluation.results import Results, SplitResult, finite, read_results
from promptcomp.run.run_directory import RunDirectory, number_of, read_metrics
from promptcomp.sweeps.sweep_config import Constraint, Objective, SweepConfig

OF_SPLIT = ("method", "full_prompt", "no_prompt", "retained", "headroom", "gap_to_full")
"""Fields of a split of results.json that are one number each."""

OF_HEADLINE = ("method", "full_prompt", "no_prompt", "gap_to_full")
"""Those that are values of the metric that the split is summed up by."""


class Goal(Objective):
    """An objective, with the name that its values have."""

    name: str


def goals_of(config: SweepConfig) -> tuple[Goal, ...]:
    """The objectives of a sweep; they are named by their metrics, with the split in front where two have the same."""
    names = _names(config.objectives)
    return tuple(Goal(name=name, **dict(each)) for name, each in zip(names, config.objectives, strict=True))


def _names(wanted: Sequence[Objective] | Sequence[Constraint]) -> list[str]:
    metrics = [each.metric for each in wanted]
    return [
        f"{each.split or 'first'}/{each.metric}" if metrics.count(each.metric) > 1 else each.metric for each in wanted
    ]


def objective_values(config: SweepConfig, run: Path) -> dict[str, float]:
    """The objectives of a finished run.

    Raises:
        ConfigError: no results, or an objective that is not in them or has no value, or of which less is better than
            the configuration says (answers without options are summed up by their loss).
    """
    results = read_results(run)
    for goal in goals_of(config):
        split = _split_of(results, goal.split) if goal.metric in OF_HEADLINE else None
        if split is not None and split.metric in LOWER_IS_BETTER and goal.direction == "maximize":
            raise ConfigError(
                f"{run}: {goal.metric} is a {split.metric} here, of which less is better; start anew, elsewhere, with "
                f"sweep.objectives='[{{metric: {split.metric}, direction: minimize}}]'"
            )
    return {goal.name: _value(results, goal, run) for goal in goals_of(config)}


def known_values(config: SweepConfig, run: Path) -> dict[str, float]:
    """The objectives of a finished run that have a value (a control has no `retained`)."""
    try:
        results = read_results(run)
    except ConfigError:
        return {}
    found = {goal.name: metric_of(results, goal.metric, goal.split) for goal in goals_of(config)}
    return {name: value for name, value in found.items() if value is not None}


def constraint_values(config: SweepConfig, run: Path) -> dict[str, float]:
    """How far outside its bound a finished run is, for each constraint; 0 or less: inside.

    Raises:
        ConfigError: no results, or a metric that is not in them or has no value.
    """
    found: dict[str, float] = {}
    for name, constraint in zip(_names(config.constraints), config.constraints, strict=True):
        value = _value(read_results(run), constraint, run)
        if constraint.at_most is not None:
            found[f"{name} <= {constraint.at_most:g}"] = value - constraint.at_most
        if constraint.at_least is not None:
            found[f"{name} >= {constraint.at_least:g}"] = constraint.at_least - value
    return found


def _value(results: Results, wanted: Objective | Constraint, run: Path) -> float:
    value = metric_of(results, wanted.metric, wanted.split)
    if value is None:
        where = f" of split {wanted.split!r}" if wanted.split else ""
        raise ConfigError(f"{run}: {wanted.metric}{where} has no value in results.json")
    return value


def metric_of(results: Results, metric: str, split: str | None = None) -> float | None:
    """One number of results.json.

    Args:
        results: a run's.
        metric: a field of the split (retained, method, ...), one of its metrics for the method, size.KEY or cost.KEY.
        split: None: the first.

    Returns:
        None where there is no such number or it is null.
    """
    section, _, key = metric.partition(".")
    if key and section in ("size", "cost"):
        part = results.size if section == "size" else results.cost
        return _finite(part.model_dump().get(key))
    chosen = _split_of(results, split)
    return None if chosen is None else _of_split(chosen, metric)


def _split_of(results: Results, split: str | None) -> SplitResult | None:
    return results.splits.get(split) if split else next(iter(results.splits.values()), None)


def _of_split(split: SplitResult, metric: str) -> float | None:
    if metric in OF_SPLIT:
        return _finite(split.model_dump(include={metric})[metric])
    if metric == split.metric:
        return _finite(split.method)
    estimate = split.rows.get("method", {}).get(metric)
    return _finite(split.others.get(metric) if estimate is None else estimate.value)


def _finite(value: object) -> float | None:
    return None if isinstance(value, bool) or not isinstance(value, int | float) else finite(value)


def dev_reports(rows: Sequence[Mapping[str, str]], metric: str | None) -> tuple[str | None, dict[int, float]]:
    """The dev metric of a run so far.

    Args:
        rows: its `metric_rows`.
        metric: a column of metrics.csv; None: dev/accuracy where there is one, otherwise dev/loss.

    Returns:
        The column, None where there is none yet; training step -> value, finite ones only.
    """
    columns = {name for row in rows for name, value in row.items() if value}
    chosen = metric or next((name for name in ("dev/accuracy", "dev/loss") if name in columns), None)
    if chosen is None:
        return None, {}
    pairs = ((finite(number_of(row.get("step"))), finite(number_of(row.get(chosen)))) for row in rows)
    return chosen, {int(step): value for step, value in pairs if step is not None and value is not None}


def metric_rows(run: Path) -> Sequence[Mapping[str, str]]:
    """A run's metrics.csv as it is now."""
    return read_metrics(RunDirectory(run).metrics)


def last_step(rows: Sequence[Mapping[str, str]]) -> int:
    """Last training step in a run's `metric_rows`; 0 before the first."""
    return int((finite(number_of(rows[-1].get("step"))) if rows else None) or 0)


def is_lower_better(metric: str) -> bool:
    """Whether a metric of results or a dev metric is better when it is lower: losses and kl are."""
    return metric in LOWER_IS_BETTER or "loss" in metric
