"""From the predictions of a split to its entry in results.json."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from promptcomp.config import ConfigError
from promptcomp.evaluation.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    Samples,
    percentile_interval,
    resample,
    retained,
)
from promptcomp.evaluation.metrics import METRICS, Group, MetricName, group, metric
from promptcomp.evaluation.predictions import ROWS, TEXT_METRICS, Prediction
from promptcomp.evaluation.results import Estimate, SplitResult, TaskResult


def summarise(
    predictions: Sequence[Prediction],
    metric_name: MetricName,
    *,
    examples_sha256: str = "",
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> SplitResult:
    """Metrics of one split with paired bootstrap intervals over contexts.

    Args:
        predictions: all predictions of the split.
        metric_name: the headline metric; where no example has what it needs (options, generated texts) another is
            taken instead: see `headline`.
        examples_sha256: identity of the examples (`scoring.examples_sha256`).
        resamples: bootstrap resamples.
        seed: seed of the bootstrap.
        confidence: of the intervals.

    Raises:
        ConfigError: there is no prediction.
    """
    if not predictions:
        raise ConfigError("a split without examples cannot be evaluated; check the data section's splits and limits")
    metric_name = headline(predictions, metric_name)
    rows = rows_of(predictions)
    groups = group(predictions, rows)
    samples = resample(groups, rows, resamples=resamples, seed=seed)
    kept = retained(samples, metric_name, confidence)
    gap = samples.difference(metric_name, "method", "full_prompt") if {"method", "full_prompt"} <= set(rows) else None
    value = {row: samples.estimate(metric_name, row) if row in rows else None for row in ROWS}
    interval = {row: samples.interval(metric_name, row, confidence) if row in rows else None for row in ROWS}
    return SplitResult(
        metric=metric_name,
        count=len(predictions),
        method=value["method"],
        full_prompt=value["full_prompt"],
        no_prompt=value["no_prompt"],
        retained=kept.value,
        retained_ci=kept.interval,
        others={name: samples.estimate(name, "method") if "method" in rows else None for name in METRICS},
        method_ci=interval["method"],
        full_prompt_ci=interval["full_prompt"],
        no_prompt_ci=interval["no_prompt"],
        headroom=kept.headroom,
        headroom_se=kept.standard_error,
        no_headroom=kept.no_headroom,
        gap_to_full=None if gap is None else _finite(gap[0]),
        gap_to_full_ci=None if gap is None else percentile_interval(gap, samples.num_contexts, confidence),
        rows=_estimates(groups, rows, samples, confidence),
        tasks=_tasks(groups, rows, metric_name),
        seeds=_seeds(groups, rows, metric_name),
        num_tasks=len({g.task for g in groups}),
        num_contexts=samples.num_contexts,
        confidence=confidence,
        resamples=resamples,
        examples_sha256=examples_sha256,
        generated=sum(p.is_generated for p in predictions),
        unfinished=_unfinished(predictions, rows),
    )


def headline(predictions: Sequence[Prediction], wanted: MetricName) -> MetricName:
    """The wanted metric if it means something for these predictions, otherwise the nearest one that does.

    Free-form examples have no choice: exact match if texts were generated, otherwise the loss. Without texts there is
    the accuracy of choices, or the loss.
    """
    has_choice = any(p.kind != "free_form" for p in predictions)
    has_texts = any(p.is_generated for p in predictions)
    if wanted in TEXT_METRICS:
        return wanted if has_texts else "accuracy" if has_choice else "loss"
    if wanted == "loss" or has_choice:
        return wanted
    return "exact_match" if has_texts else "loss"


def _unfinished(predictions: Sequence[Prediction], rows: Sequence[str]) -> dict[str, int]:
    generated = [p.unfinished for p in predictions if p.unfinished is not None]
    return {row: sum(cut.get(row, False) for cut in generated) for row in rows} if generated else {}


def rows_of(predictions: Sequence[Prediction]) -> tuple[str, ...]:
    """The rows that were scored."""
    return tuple(row for row in ROWS if predictions[0].scores.get(row) is not None)


def _estimates(
    groups: Sequence[Group], rows: Sequence[str], samples: Samples, confidence: float
) -> dict[str, dict[str, Estimate]]:
    found: dict[str, dict[str, Estimate]] = {row: {} for row in rows}
    for row in rows:
        for name in METRICS:
            value = samples.estimate(name, row)
            if value is None:
                continue
            per_seed = [v for v in _per_seed(groups, row, name).values() if np.isfinite(v)]
            several = len(per_seed) > 1
            found[row][name] = Estimate(
                value=value,
                ci=samples.interval(name, row, confidence),
                std=float(np.std(per_seed, ddof=1)) if several else None,
                worst=(max(per_seed) if name == "loss" else min(per_seed)) if several else None,
            )
    return found


def _tasks(groups: Sequence[Group], rows: Sequence[str], chosen: MetricName) -> tuple[TaskResult, ...]:
    results = []
    for task in dict.fromkeys(g.task for g in groups):
        own = [g for g in groups if g.task == task]
        kind = own[0].kind
        name: MetricName = _task_metric(own, rows, chosen)
        values = {row: _finite(_plain(own, row, name)) for row in rows}
        per_seed = [v for v in _per_seed(own, "method", name).values() if np.isfinite(v)] if "method" in rows else []
        results.append(
            TaskResult(
                task=task,
                kind=kind,
                count=sum(g.num_examples for g in own),
                seeds=len(own),
                metric={"classification": "macro_f1", "multi_choice": "accuracy"}[kind] if name == "task" else name,
                method=values.get("method"),
                full_prompt=values.get("full_prompt"),
                no_prompt=values.get("no_prompt"),
                method_std=float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None,
            )
        )
    return tuple(results)


def _task_metric(own: Sequence[Group], rows: Sequence[str], chosen: MetricName) -> MetricName:
    """task, or what a free-form task is measured by: a metric of its texts, or the loss."""
    if own[0].kind != "free_form":
        return "task"
    generated = any("exact_match" in g.rows[row].texts for g in own for row in rows)
    if not generated:
        return "loss"
    return chosen if chosen in TEXT_METRICS or chosen == "loss" else "exact_match"


def _seeds(groups: Sequence[Group], rows: Sequence[str], name: MetricName) -> dict[str, dict[str, float | None]]:
    if all(g.seed is None for g in groups):
        return {}
    table: dict[str, dict[str, float | None]] = {}
    for row in rows:
        for seed, value in _per_seed(groups, row, name).items():
            table.setdefault(str(seed), {})[row] = _finite(value)
    return table


def _per_seed(groups: Sequence[Group], row: str, name: MetricName) -> dict[int | None, float]:
    seeds = dict.fromkeys(g.seed for g in groups)
    return {seed: _plain([g for g in groups if g.seed == seed], row, name) for seed in seeds}


def _plain(groups: Sequence[Group], row: str, name: MetricName) -> float:
    """A metric on the examples of some groups, without resampling."""
    width = max(g.clusters.stop for g in groups)
    return float(metric(groups, row, np.ones((1, width)), name)[0])


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
