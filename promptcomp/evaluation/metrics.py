"""Accuracy and macro-F1, and how they are averaged over seeds and tasks.

Two flavours of macro-F1: "sklearn", as MEND (arXiv 2403.06914) uses it, averages over the classes of the gold labels
and of the predictions; "metaicl" averages over the classes of the gold labels alone. They differ when a predicted class
never occurs in the gold labels. Which labels are the same is decided by `texts.label_of`, for both and for accuracy.

Everything is kept as counts for each context, so that a weighted sum over contexts gives the metric of any resample.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from promptcomp.evaluation.predictions import TEXT_METRICS, TOKEN_METRICS, UNSCORED, MetricName, Prediction
from promptcomp.evaluation.texts import label_of

Flavour = Literal["sklearn", "metaicl"]
Array = NDArray[np.float64]


def f1_from_counts(hits: NDArray, gold: NDArray, predicted: NDArray, flavour: Flavour) -> Array:
    """Macro-F1 of each row [R] from counts for each class [R, K]: true positives, gold labels, predictions.

    A class without gold labels and predictions does not exist; a row without classes is NaN.
    """
    either = (gold + predicted).astype(np.float64)
    f1 = 2.0 * hits / np.where(either > 0, either, 1.0)
    present = gold > 0 if flavour == "metaicl" else either > 0
    return _divide((f1 * present).sum(1), present.sum(1))


class Sums(NamedTuple):
    """Sum of a metric over the examples of each context, and how many examples have it: two [n] arrays."""

    total: Array
    examples: Array


@dataclass(frozen=True, slots=True)
class RowCounts:
    """What one row (method or bound) did in the contexts of a group: [n] and [n, K] arrays."""

    correct: Array
    hits: Array
    predicted: Array
    tokens: Mapping[str, Array]
    """TOKEN_METRICS, each summed over all gold tokens."""
    texts: Mapping[str, Sums]
    """Metrics of generated texts; empty where nothing was generated."""


@dataclass(frozen=True, slots=True)
class Group:
    """The examples of one task under one data seed, counted for each of their n contexts."""

    task: str
    seed: int | None
    kind: str
    clusters: slice
    """Where the contexts stand among all contexts of the split."""
    num_seeds: int
    """Groups (seeds) of this task."""
    num_examples: int
    count: Array
    """Examples with a choice, for each context [n]."""
    tokens: Array
    """Gold tokens, for each context [n]."""
    gold: Array
    """Gold labels of each class, for each context [n, K]; K is 0 unless the task is a classification."""
    rows: Mapping[str, RowCounts]

    @property
    def num_contexts(self) -> int:
        """Contexts of this group."""
        return len(self.count)


def kind_among(kinds: Iterable[str]) -> str:
    """The kind of a task by the kinds of its examples: that of its choices, if it has any."""
    return next((kind for kind in kinds if kind != "free_form"), "free_form")


def group(predictions: Iterable[Prediction], rows: Sequence[str]) -> list[Group]:
    """Count predictions by (task, seed) and context, for the given rows (all must be present in every prediction)."""
    members: dict[tuple[str, int | None], list[Prediction]] = {}
    for prediction in predictions:
        members.setdefault((prediction.task, prediction.seed), []).append(prediction)
    num_seeds: dict[str, int] = {}
    for task, _ in members:
        num_seeds[task] = num_seeds.get(task, 0) + 1
    groups, start = [], 0
    for (task, seed), found in members.items():
        made = _count(task, seed, found, rows, start, num_seeds[task])
        start += made.num_contexts
        groups.append(made)
    return groups


def _count(
    task: str, seed: int | None, found: Sequence[Prediction], rows: Sequence[str], start: int, num_seeds: int
) -> Group:
    kind = kind_among(p.kind for p in found)
    choices = np.array([p.kind != "free_form" for p in found])
    numbers = {context: i for i, context in enumerate(dict.fromkeys(p.context for p in found))}
    n = len(numbers)
    where = np.array([numbers[p.context] for p in found], dtype=np.int64)
    tokens = np.array([p.gold_tokens for p in found], dtype=np.float64)
    chosen = [p.options if p.kind == "classification" else () for p in found]
    classes = _classes(found, rows) if kind == "classification" else {}
    own = [[classes.get(label_of(option), UNSCORED) for option in options] if classes else [] for options in chosen]
    gold = _chosen(own, [p.gold for p in found])
    counted = {}
    for row in rows:
        correct = choices & np.array([bool(p.correct.get(row)) for p in found])
        predicted = _chosen(own, [p.prediction.get(row) for p in found])
        means = {  # None: NaN
            name: np.array([(getattr(p, name) or {}).get(row) for p in found], dtype=np.float64)
            for name in TOKEN_METRICS
        }
        counted[row] = RowCounts(
            correct=_sums(where, correct, n),
            hits=_table(where, np.where(gold == predicted, gold, UNSCORED), n, len(classes)),
            predicted=_table(where, predicted, n, len(classes)),
            tokens={name: _sums(where, np.where(tokens > 0, mean * tokens, 0.0), n) for name, mean in means.items()},
            texts=_text_sums(found, row, where, n),
        )
    return Group(
        task=task,
        seed=seed,
        kind=kind,
        clusters=slice(start, start + n),
        num_seeds=num_seeds,
        num_examples=len(found),
        count=_sums(where, choices, n),
        tokens=_sums(where, tokens, n),
        gold=_table(where, gold, n, len(classes)),
        rows=counted,
    )


def metric(groups: Sequence[Group], row: str, weights: NDArray, name: MetricName) -> Array:
    """One metric of one row under R weightings of the contexts, [R, contexts of the split].

    Means over seeds and tasks weight a group by the share of its contexts that was drawn; with weights of one this is
    the plain mean over tasks of the mean over seeds.

    Returns:
        [R]; NaN where no example has the metric.
    """
    above, below = np.zeros(len(weights)), np.zeros(len(weights))
    for g in groups:
        drawn = weights[:, g.clusters]
        if name in TOKEN_METRICS:
            above += drawn @ g.rows[row].tokens[name]
            below += drawn @ g.tokens
        elif name == "accuracy":
            above += drawn @ g.rows[row].correct
            below += drawn @ g.count
        elif name in TEXT_METRICS:
            if sums := g.rows[row].texts.get(name):
                above += drawn @ sums.total
                below += drawn @ sums.examples
        else:
            counts = g.rows[row]
            if name == "task_accuracy" or (name == "task" and g.kind != "classification"):
                value = _divide(drawn @ counts.correct, drawn @ g.count)
            else:
                flavour: Flavour = "metaicl" if name == "macro_f1_metaicl" else "sklearn"
                value = f1_from_counts(drawn @ counts.hits, drawn @ g.gold, drawn @ counts.predicted, flavour)
            share = np.where(np.isnan(value), 0.0, drawn.sum(1) / (g.num_contexts * g.num_seeds))
            above += share * np.nan_to_num(value)
            below += share
    return _divide(above, below)


def _classes(found: Sequence[Prediction], rows: Sequence[str]) -> dict[str, int]:
    """Numbers of the classes that occur as gold label or prediction; options may be ordered anew in every example."""
    labels = dict[str, None]()
    for p in found:
        for index in dict.fromkeys((p.gold, *map(p.prediction.get, rows))):
            if index is not None and 0 <= index < len(p.options) and (label := label_of(p.options[index])):
                labels[label] = None
    return {label: i for i, label in enumerate(labels)}


def _chosen(classes: Sequence[Sequence[int]], indices: Sequence[int | None]) -> NDArray:
    """The class of the chosen option of each example [N]; UNSCORED where none is chosen."""
    pairs = zip(classes, indices, strict=True)
    found = [of[i] if i is not None and 0 <= i < len(of) else UNSCORED for of, i in pairs]
    return np.array(found, dtype=np.int64)


def _text_sums(found: Sequence[Prediction], row: str, where: NDArray, num_contexts: int) -> dict[str, Sums]:
    """Metrics of the texts of a row, for each context."""
    measured = [(p.metrics or {}).get(row, {}) for p in found]
    sums: dict[str, Sums] = {}
    for name in TEXT_METRICS if any(measured) else ():
        has = np.array([name in values for values in measured])
        if has.any():
            values = np.array([values.get(name, 0.0) for values in measured], dtype=np.float64)
            sums[name] = Sums(_sums(where, values, num_contexts), _sums(where, has.astype(np.float64), num_contexts))
    return sums


def _sums(where: NDArray, values: NDArray, num_contexts: int) -> Array:
    """Sum of the values in each context [contexts]."""
    return np.bincount(where, weights=values, minlength=num_contexts).astype(np.float64)


def _table(where: NDArray, labels: NDArray, num_contexts: int, num_classes: int) -> Array:
    """Counts [contexts, classes] of labels; UNSCORED labels are not counted."""
    known = labels >= 0
    flat = where[known] * num_classes + labels[known]
    return np.bincount(flat, minlength=num_contexts * num_classes).reshape(num_contexts, num_classes).astype(np.float64)


def _divide(above: NDArray, below: NDArray) -> Array:
    """above / below, NaN where below is 0."""
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), np.nan)
