"""From a finished sweep to the rows of a leaderboard; learning rates are chosen on dev alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from promptcomp import __version__
from promptcomp.errors import ConfigError
from promptcomp.evaluation.flops import break_even
from promptcomp.evaluation.metrics import group
from promptcomp.evaluation.predictions import TEXT_METRICS, TOKEN_METRICS, Prediction, read_predictions
from promptcomp.evaluation.results import FILE_NAME, Cost, Results, SplitResult, finite, read_results
from promptcomp.forecast.estimate import estimate
from promptcomp.leaderboard.board_row import BoardRow, ContextScores
from promptcomp.leaderboard.track import DIMENSION, PlannedRow, TrackPlan
from promptcomp.sweeps.planning import Trial
from promptcomp.sweeps.space import experiment_of
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.values import dev_reports, is_lower_better, metric_rows

Trials = Mapping[tuple[str, int], Trial]
_BOUNDS = ("no_prompt", "full_prompt")
_PLANNED = ("method", "title", "paper", "budget", "is_trained", "is_control", "query_aware")


def rows_of_sweep(plan: TrackPlan, state: SweepState, command: str) -> Iterator[BoardRow]:
    """Every row of a plan with every seed; what has failed says why.

    Args:
        plan: what was run.
        state: of the sweep that has run it.
        command: what made it, for the files.

    Raises:
        ConfigError: no trial has finished, a finished one's run is gone, or the results have no such split.
    """
    trials = {(str(trial.params[DIMENSION]), trial.seed): trial for trial in state.trials}
    wanted = {choice for row in plan.rows for choice in row.choices}
    done = [trial for (choice, _), trial in trials.items() if trial.status == "finished" and choice in wanted]
    if not done:
        problems = [trial.problem for trial in trials.values() if trial.problem]
        raise ConfigError(f"no trial has finished{f': {problems[0]}' if problems else ''}")
    if gone := [trial.run for trial in done if not (trial.run / FILE_NAME).is_file()]:  # dev results would be, too
        again = f"put it back, or remove {state.directory.path} to have all runs made again (rows stay as they are)"
        raise ConfigError(f"{gone[0]}: the run of a finished trial is gone; {again}")
    first = read_results(done[0].run)
    split = plan.track.split or next(iter(first.splits))
    if split not in first.splits:
        raise ConfigError(f"the results have no split {split!r}; there are {', '.join(first.splits)}")
    known = {
        "board": plan.track.title,
        "data": first.data,
        "lm": first.lm,
        "split": split,
        "metric": plan.track.metric or _metric(first.splits[split].metric),
        "examples_sha256": first.splits[split].examples_sha256,
        "shares": plan.track.bytes,
        "command": command,
        "version": __version__,
    }
    for row in plan.rows:
        yield from _of_row(plan, row, trials, known)


def _metric(headline: str) -> str:
    """What is scored: the data's metric where it is a mean over examples or tokens, otherwise accuracy."""
    return headline if headline in ("accuracy", *TEXT_METRICS, *TOKEN_METRICS) else "accuracy"


def _of_row(plan: TrackPlan, row: PlannedRow, trials: Trials, known: Mapping[str, Any]) -> Iterator[BoardRow]:
    seeds = range(plan.sweep.first_seed, plan.sweep.first_seed + plan.sweep.seeds)
    select_by = plan.experiment.trainer.select_by
    column = None if select_by == "auto" else f"dev/{select_by}"
    chosen, dev, metric = None, dict[str, float | None](), None
    if row.choices and not row.failure:
        chosen, dev, metric = choose_rate(row.choices, trials, seeds, column)
    common = {
        **known,
        "row": row.name,
        **{name: getattr(row, name) for name in _PLANNED},
    }
    if chosen is not None and row.choices[chosen] is not None:
        common |= {"rate": row.choices[chosen], "rates": dev, "dev_metric": metric}
    if row.is_trained and chosen is not None:
        common["train_flops"] = _train_flops(plan, chosen)
    for seed in seeds:
        trial = trials.get((chosen or "", seed))
        failure = row.failure
        if not failure and (trial is None or trial.status != "finished"):
            failure = (trial and (trial.problem or f"its trial is {trial.status}")) or "its trial was not run"
        found: dict[str, Any] = {}
        if trial is not None and not failure:
            results = read_results(trial.run)
            predictions = [p for p in read_predictions(trial.run / "predictions.jsonl") if p.split == known["split"]]
            found = _measured(row, results, predictions, known["split"], known["metric"])
        yield BoardRow.model_validate({**common, "seed": seed, "failure": failure, **found})


def choose_rate(
    choices: Mapping[str, float | None], trials: Trials, seeds: range, column: str | None
) -> tuple[str, dict[str, float | None], str | None]:
    """The choice whose best dev result, mean over seeds, is the best; test results are not looked at.

    A rate with a seed that has not finished has no mean. Where none has one, the most finished seeds decide.

    Args:
        choices: choice of the sweep -> learning rate.
        trials: by choice and seed.
        seeds: all of them.
        column: of metrics.csv; None: accuracy where there is one, otherwise the loss.

    Returns:
        The choice; learning rate -> mean; the name of the dev metric.
    """
    means, metric, finished = dict[str, float | None](), None, dict[str, int]()
    for choice in choices:
        own = [trial for seed in seeds if (trial := trials.get((choice, seed))) and trial.status == "finished"]
        finished[choice], means[choice], values = len(own), None, []
        for trial in own:
            rows = metric_rows(trial.run)  # of exact matches there are none where all answers are chosen
            name, reports = dev_reports(rows, column if any(column in row for row in rows) else None)
            metric = metric or name
            if reports and name is not None:
                values.append((min if is_lower_better(name) else max)(reports.values()))
        if len(values) == len(seeds):
            means[choice] = fmean(values)
    metric = metric or column
    sign = -1.0 if metric is not None and is_lower_better(metric) else 1.0
    complete = [(sign * mean, choice) for choice, mean in means.items() if mean is not None]
    best = max(complete, key=lambda each: each[0])[1] if complete else max(finished, key=finished.__getitem__)
    return best, {f"{rate:g}": means[choice] for choice, rate in choices.items() if rate is not None}, metric


def _measured(
    row: PlannedRow, results: Results, predictions: list[Prediction], split: str, metric: str
) -> dict[str, Any]:
    """What the results of a run say of a row."""
    part = results.splits[split]
    if row.result not in part.rows:
        missing = part.rivals[row.result].missing if row.result in part.rivals else ""
        return {"failure": missing or f"the results have no row {row.result}"}
    found = {
        "examples_sha256": part.examples_sha256,
        "bounds": results.bounds,
        "contexts": _contexts(predictions, row.result, metric),
        "context_bytes": results.size.context_bytes,
        **{name: _value(part, row.result, name) for name in ("kl", "top1")},
    }
    if row.result != "method":
        rival = part.rivals[row.result]
        names = ("slots", "kv_bytes", "stored_bytes", "compress_flops")  # some of them of rivals that measure them
        return {**found, **{name: getattr(rival, name, None) for name in names}}
    size, cost = results.size, results.cost
    return {
        **found,
        "slots": size.memory_slots,
        "stored_bytes": size.memory_bytes,
        "kv_bytes": size.memory_kv_bytes,
        "compress_flops": cost.compress_flops,
        "break_even": against_prefix_cache(cost),
        "train_seconds": cost.train_seconds,
        "train_steps": cost.steps,
    }


def _value(part: SplitResult, row: str, metric: str) -> float | None:
    return part.rows[row][metric].value if metric in part.rows[row] else None


def _contexts(predictions: list[Prediction], row: str, metric: str) -> ContextScores:
    """The score of every context of a split that has some, in the order of the groups (task and data seed)."""
    groups = group(predictions, (row, *_BOUNDS))
    weights, means = list[float](), {name: list[float | None]() for name in (row, *_BOUNDS)}
    for each in groups:
        for name, values in means.items():
            counts = each.rows[name]
            if metric in TOKEN_METRICS:
                above, below = counts.tokens[metric], each.tokens
            elif metric in TEXT_METRICS:
                above, below = counts.texts[metric]
            else:
                above, below = counts.correct, each.count
            asked = below > 0
            means_of = above[asked] / below[asked]
            values += [None if finite(value) is None else round(float(value), 9) for value in means_of]
        weights += below[asked].tolist()
    return ContextScores(
        weights=tuple(weights), row=tuple(means[row]), **{name: tuple(means[name]) for name in _BOUNDS}
    )


def against_prefix_cache(cost: Cost) -> int | None:
    """From how many queries on one context compressing it once and keeping the memory's keys and values takes fewer
    FLOPs than reading it once and keeping its own."""
    ours = cost.prefill_flops, cost.cached_prefill_flops
    theirs = cost.full_prefill_flops, cost.cached_full_prefill_flops
    if cost.compress_flops is None or None in (*ours, *theirs):
        return None
    once, each = cost.compress_flops + ours[0] - ours[1], ours[1]  # type: ignore[operator]
    first, last = break_even(once, each, theirs[0] - theirs[1], theirs[1])  # type: ignore[operator, arg-type]
    return first if last is None else None


def _train_flops(plan: TrackPlan, choice: str) -> float | None:
    try:
        return estimate(experiment_of(plan.sweep, {DIMENSION: choice}, plan.sweep.first_seed)).train_flops
    except ConfigError:
        return None
