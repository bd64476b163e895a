"""Headroom: how much the full context gains over none on every task, before anything is trained; and the choice of
tasks by it, as a file that data takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from promptcomp.config import ConfigError
from promptcomp.evaluation.bootstrap import RESAMPLES, percentile_interval, resample, wilson
from promptcomp.evaluation.metrics import group, kind_among
from promptcomp.evaluation.predictions import LOWER_IS_BETTER, TEXT_METRICS, MetricName, Prediction
from promptcomp.evaluation.results import Gap, Interval, Results, TaskHeadroom, finite
from promptcomp.evaluation.texts import label_of
from promptcomp.files import write_atomic

_BOUNDS = ("no_prompt", "full_prompt")
_RULE = {
    "score": "the interval of the gain in accuracy or exact match (loss without either) is above 0, and the full "
    "context beats the most frequent label",
    "loss": "the interval of the gain in loss is above 0",
}


def headroom(predictions: Sequence[Prediction], wanted: MetricName, resamples: int = RESAMPLES) -> list[TaskHeadroom]:
    """The bounds of every task with paired intervals.

    Contexts are drawn with replacement; of a task with one context (one prompt that all of its questions share) the
    questions are, so that its interval is about this prompt alone.

    Args:
        predictions: Of one split, with both bounds.
        wanted: The metric for tasks whose texts were generated, if it is one of texts.
        resamples: Behind each interval.
    """
    tasks: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        tasks.setdefault(prediction.task, []).append(prediction)
    return [_task(task, own, wanted, resamples) for task, own in tasks.items()]


def _task(task: str, own: list[Prediction], wanted: MetricName, resamples: int) -> TaskHeadroom:
    choices = [p for p in own if p.kind != "free_form"]
    contexts = len({(p.seed, p.context) for p in own})
    if contexts == 1:
        own = [p.model_copy(update={"context": number}) for number, p in enumerate(own)]
    names: list[MetricName] = ["accuracy"] if choices else []
    if any(p.is_generated for p in own):
        names.append(wanted if wanted in TEXT_METRICS else "exact_match")
    names.append("loss")
    samples = resample(group(own, _BOUNDS), _BOUNDS, names, resamples=resamples)
    gaps = {}
    for name in names:
        gap = samples.difference(name, "full_prompt", "no_prompt") * (-1.0 if name in LOWER_IS_BETTER else 1.0)
        gaps[name] = Gap(
            no_prompt=samples.estimate(name, "no_prompt"),
            full_prompt=samples.estimate(name, "full_prompt"),
            headroom=finite(float(gap[0])),
            ci=percentile_interval(gap, samples.num_contexts) or _of_equals(name, float(gap[0]), samples.num_contexts),
        )
    labels = Counter(label_of(p.options[p.gold]) for p in choices)
    return TaskHeadroom(
        task=task,
        kind=kind_among(p.kind for p in own),
        count=len(own),
        num_contexts=contexts,
        majority=max(labels.values()) / len(choices) if labels else None,
        gaps={str(name): gap for name, gap in gaps.items()},
    )


def _of_equals(name: MetricName, gain: float, num_contexts: int) -> Interval | None:
    """The interval of a gain in a score that every resample has: Wilson's, of -1 to 1 as a share of so many contexts.

    A full context that is always right, where none never is, has the largest headroom there can be.
    """
    if num_contexts < 2 or name in LOWER_IS_BETTER or not np.isfinite(gain) or gain == 0:
        return None
    low, high = wilson((1 + gain) / 2 * num_contexts, num_contexts) or (0.0, 1.0)
    return 2 * low - 1, 2 * high - 1


def has_headroom(task: TaskHeadroom, by: str = "score") -> bool:
    """Whether the interval of the gap is above zero and, where there are labels to choose from, the full context does
    better than the most frequent label; `by`: loss (of the right answer), or score: what the task is scored by."""
    gap = task.gaps["loss"] if by == "loss" else next(iter(task.gaps.values()))
    if gap.ci is None or gap.ci[0] <= 0:
        return False
    right = task.gaps["accuracy"].full_prompt if by == "score" and "accuracy" in task.gaps else None
    return right is None or task.majority is None or right > task.majority


def write_choice(results: Results, run: Path, file: Path, by: str) -> str:
    """Write the tasks that are kept and dropped, with the rule and the run; says so in a sentence.

    Raises:
        ConfigError: no task has headroom, or the file cannot be written.
    """
    tasks: dict[str, list[bool]] = {}
    for split in results.splits.values():
        for task in split.headroom_by_task:
            tasks.setdefault(task.task, []).append(has_headroom(task, by))
    keep = [name for name, found in tasks.items() if all(found)]
    if not keep:
        raise ConfigError(
            f"--keep-tasks: none of {len(tasks)} tasks has headroom, so {file} is not written; the run is {run}"
            + ("" if by == "loss" else " (--keep-by loss asks for less)")
        )
    found = {
        "rule": _RULE[by],
        "splits": list(results.splits),
        "results": str(run / "results.json"),
        "keep": keep,
        "drop": [name for name in tasks if name not in keep],
    }
    write_atomic(file, yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=110))
    return f"{file}: {len(keep)} of {len(tasks)} tasks have headroom; take them with data.task_choice={file}"
