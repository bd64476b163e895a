"""From the predictions of a split to its entry in results.json, or in controls.json.

controls.json has a method between its four reference points: no prompt and full prompt, each untrained and trained. The
trained controls saw the same data, steps and seeds as the method; the untrained ones are the LM as it was. All figures
come from the runs' predictions on the same examples, resampled together, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from promptcomp.config import ConfigError, Measured
from promptcomp.evaluation.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    Retained,
    Samples,
    percentile_interval,
    resample,
    retained,
)
from promptcomp.evaluation.metrics import Group, group, kind_among, metric
from promptcomp.evaluation.predictions import (
    BEHAVIOUR,
    LOWER_IS_BETTER,
    METRICS,
    ROWS,
    TEXT_METRICS,
    TOKEN_METRICS,
    MetricName,
    Prediction,
    joined,
)
from promptcomp.evaluation.results import Estimate, KeptShare, RivalResult, SplitResult, TaskResult, finite
from promptcomp.evaluation.texts import agreement


def summarise(
    predictions: Sequence[Prediction],
    metric_name: MetricName,
    *,
    examples_sha256: str = "",
    resamples: int = RESAMPLES,
    rivals: Mapping[str, RivalResult] | None = None,
) -> SplitResult:
    """Metrics of one split with paired bootstrap intervals over contexts; where no example has what `metric_name` needs
    (options, generated texts) another is the headline: see `headline`. `rivals`: row -> what is known of each but its
    scores.

    Raises:
        ConfigError: there is no prediction.
    """
    if not predictions:
        raise ConfigError("a split without examples cannot be evaluated; check the data section's splits and limits")
    metric_name = headline(predictions, metric_name)
    scored = predictions[0].scores
    rows = tuple(row for row in dict.fromkeys((*ROWS, *scored)) if scored.get(row) is not None)
    groups = group(predictions, rows)
    samples = resample(groups, rows, resamples=resamples)
    kept = retained(samples, metric_name)
    gap = samples.difference(metric_name, "method", "full_prompt") if {"method", "full_prompt"} <= set(rows) else None
    cut = [p.unfinished for p in predictions if p.unfinished is not None]
    broken = {row: sum(p.gold_tokens > 0 and p.loss.get(row) is None for p in predictions) for row in rows}
    values: dict[str, Any] = {}
    for row in ROWS:
        values[row] = samples.estimate(metric_name, row) if row in rows else None
        values[f"{row}_ci"] = samples.interval(metric_name, row) if row in rows else None
    return SplitResult(
        metric=metric_name,
        count=len(predictions),
        **values,
        retained=kept.value,
        retained_ci=kept.ci,
        others={name: samples.estimate(name, "method") if "method" in rows else None for name in METRICS},
        headroom=kept.headroom,
        headroom_se=kept.headroom_se,
        no_headroom=kept.no_headroom,
        gap_to_full=None if gap is None else finite(gap[0]),
        gap_to_full_ci=None if gap is None else percentile_interval(gap, samples.num_contexts),
        rows={row: _estimates(samples, row, groups) for row in rows},
        rivals={row: _rival(samples, metric_name, row, known) for row, known in (rivals or {}).items()},
        behaviour=_behaviour(predictions, samples),
        tasks=_tasks(groups, rows, metric_name),
        seeds=_seeds(groups, rows, metric_name),
        num_tasks=len({g.task for g in groups}),
        num_contexts=samples.num_contexts,
        confidence=CONFIDENCE,
        resamples=resamples,
        examples_sha256=examples_sha256,
        generated=sum(p.is_generated for p in predictions),
        unfinished={row: sum(c.get(row, False) for c in cut) for row in rows} if cut else {},
        not_finite={row: count for row, count in broken.items() if count},
    )


def _rival(samples: Samples, name: MetricName, row: str, known: RivalResult) -> RivalResult:
    """What is known of a rival, with the share of the gap that it keeps and how far the method is ahead of it."""
    if known.missing:
        return known
    kept = retained(samples, name, method=row)
    gap = samples.difference(name, "method", row)
    ci = percentile_interval(gap, samples.num_contexts)
    found = {"retained": kept.value, "retained_ci": kept.ci, "gap": finite(float(gap[0])), "gap_ci": ci}
    return known.model_copy(update=found)


def _behaviour(predictions: Sequence[Prediction], samples: Samples) -> dict[str, KeptShare]:
    """How much of what the LM does behind the full context it does behind the method's memory."""
    if all(prediction.teacher is None for prediction in predictions):
        return {}
    kept = {name: retained(samples, name) for name in BEHAVIOUR}
    return {name: KeptShare(value=each.value, ci=each.ci) for name, each in kept.items() if each.headroom is not None}


def headline(predictions: Sequence[Prediction], wanted: MetricName) -> MetricName:
    """The wanted metric if it means something for these predictions, otherwise the nearest one that does.

    Free-form examples have no choice: exact match if texts were generated, otherwise the loss. Without texts there is
    the accuracy of choices, or the loss.
    """
    has_choice = any(p.kind != "free_form" for p in predictions)
    has_texts = any(p.is_generated for p in predictions)
    if wanted in TEXT_METRICS:
        instead: MetricName = "accuracy" if has_choice else "loss"
        return wanted if any(_has(p, wanted) for p in predictions) else _teachers(predictions) or instead
    if wanted in TOKEN_METRICS or has_choice:
        return wanted
    if has_texts and not any(_has(p, "exact_match") for p in predictions):
        return _teachers(predictions) or "loss"
    return "exact_match" if has_texts else "loss"


def _has(prediction: Prediction, name: str) -> bool:
    return any(name in found for found in (prediction.metrics or {}).values())


def _teachers(predictions: Sequence[Prediction]) -> MetricName | None:
    """What texts are measured by that have no right answer."""
    return "teacher_rougeL" if any(_has(p, "teacher_rougeL") for p in predictions) else None


def _estimates(samples: Samples, row: str, groups: Sequence[Group] = ()) -> dict[str, Estimate]:
    """Every metric of a row that has a value; with `groups` its spread over data seeds too."""
    found: dict[str, Estimate] = {}
    for name in METRICS:
        if (value := samples.estimate(name, row)) is not None:
            values, std = _spread(groups, row, name)
            worst = None if std is None else max(values) if name in LOWER_IS_BETTER else min(values)
            found[name] = Estimate(value=value, ci=samples.interval(name, row), std=std, worst=worst)
    return found


def _spread(groups: Sequence[Group], row: str, name: MetricName) -> tuple[list[float], float | None]:
    """The finite values of the data seeds and their sample standard deviation; None for one."""
    values = [value for value in _per_seed(groups, row, name).values() if np.isfinite(value)]
    return values, float(np.std(values, ddof=1)) if len(values) > 1 else None


def _tasks(groups: Sequence[Group], rows: Sequence[str], chosen: MetricName) -> tuple[TaskResult, ...]:
    results = []
    for task in dict.fromkeys(g.task for g in groups):
        own = [g for g in groups if g.task == task]
        kind = kind_among(g.kind for g in own)
        name = _task_metric(own, rows, chosen)
        values = {row: finite(_plain(own, row, name)) for row in rows}
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
                method_std=_spread(own, "method", name)[1] if "method" in rows else None,
            )
        )
    return tuple(results)


def _task_metric(own: Sequence[Group], rows: Sequence[str], chosen: MetricName) -> MetricName:
    """task, or what a free-form task is measured by: a metric of its texts, or the loss."""
    if kind_among(g.kind for g in own) != "free_form":
        return "task"
    if not any("exact_match" in g.rows[row].texts for g in own for row in rows):
        return "loss"
    return chosen if chosen in TEXT_METRICS or chosen in TOKEN_METRICS else "exact_match"


def _seeds(groups: Sequence[Group], rows: Sequence[str], name: MetricName) -> dict[str, dict[str, float | None]]:
    values = {row: _per_seed(groups, row, name) for row in rows}
    seeds = dict.fromkeys(g.seed for g in groups)
    return {} if {*seeds} == {None} else {str(s): {row: finite(values[row][s]) for row in rows} for s in seeds}


def _per_seed(groups: Sequence[Group], row: str, name: MetricName) -> dict[int | None, float]:
    seeds = dict.fromkeys(g.seed for g in groups)
    alone = [replace(g, num_seeds=1) for g in groups]
    return {seed: _plain([g for g in alone if g.seed == seed], row, name) for seed in seeds}


def _plain(groups: Sequence[Group], row: str, name: MetricName) -> float:
    """A metric on the examples of some groups, without resampling."""
    width = max(g.clusters.stop for g in groups)
    return float(metric(groups, row, np.ones((1, width)), name)[0])


Role = Literal["no_prompt_untrained", "no_prompt_trained", "method", "full_prompt_trained", "full_prompt_untrained"]
ROLES: tuple[Role, ...] = get_args(Role)
"""In the order of tables."""
Kind = Literal["trained", "untrained"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class RoleRun(Measured):
    """Which run stands for a role."""

    run: str
    """Its directory."""
    how: Literal["made", "resumed", "reused"]
    """Trained and evaluated by this command, continued by it, or found finished."""


class SplitPoints(Measured):
    """The reference points on one split."""

    metric: MetricName
    """Headline metric."""
    count: int
    num_contexts: int
    rows: dict[Role, dict[str, Estimate]]
    """Role -> metric -> value with its interval."""
    retained: dict[Kind, Retained]
    agreement_with: Role | None
    """Whose texts the rows' `agreement` compares with: the paper's exact match; null without texts."""


class ReferencePoints(Measured):
    """controls.json."""

    schema_version: int = 1
    method: str
    """Name of the method for people."""
    context_kind: str
    data: str
    lm: str
    seed: int
    runs: dict[Role, RoleRun]
    splits: dict[str, SplitPoints]
    notes: tuple[str, ...] = ()


def split_points(
    members: Mapping[Role, Sequence[Prediction]], metric: MetricName, resamples: int = RESAMPLES
) -> SplitPoints:
    """The reference points on one split, from the predictions of each role's run.

    Raises:
        ConfigError: the runs answered different examples.
    """
    roles = [role for role in ROLES if role in members]
    partners: tuple[Role, ...] = ("full_prompt_trained", "full_prompt_untrained")
    partner = next((role for role in partners if role in members), None)
    examples = _by_example(members)
    predictions = [_agreeing(joined(found), partner) for found in examples]
    groups = group(predictions, roles)
    samples = resample(groups, roles, resamples=resamples)
    return SplitPoints(
        metric=metric,
        count=len(predictions),
        num_contexts=samples.num_contexts,
        rows={role: _estimates(samples, role) for role in roles},
        retained={
            kind: retained(samples, metric, full=f"full_prompt_{kind}", none=f"no_prompt_{kind}")
            for kind in KINDS
            if {f"full_prompt_{kind}", f"no_prompt_{kind}"} <= set(roles)
        },
        agreement_with=partner if any(p.is_generated for p in predictions) else None,
    )


def _by_example(members: Mapping[Role, Sequence[Prediction]]) -> list[dict[str, Prediction]]:
    """The predictions of all runs on each example, in the order of the method's."""
    numbered = {role: {p.example: p for p in found} for role, found in members.items()}
    first = numbered["method"]
    for role, found in numbered.items():
        if found.keys() != first.keys() or any(found[i].context != p.context for i, p in first.items()):
            raise ConfigError(f"the run of {role} answered other examples than the method's; evaluate both again")
    return [{role: found[number] for role, found in numbered.items()} for number in first]


def _agreeing(prediction: Prediction, partner: Role | None) -> Prediction:
    """`agreement` anew: with the partner's text and not with the run's own full-prompt row."""
    if prediction.metrics is None or prediction.texts is None:
        return prediction
    kept = {row: {n: v for n, v in each.items() if n != "agreement"} for row, each in prediction.metrics.items()}
    right = prediction.texts.get(partner or "")
    for row, text in prediction.texts.items():
        if right is not None and row != partner and text is not None:
            kept[row]["agreement"] = agreement(text, right)
    return prediction.model_copy(update={"metrics": kept})
