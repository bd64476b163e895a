"""Accuracy and macro-F1 of plain lists of labels, counted as the evaluation counts them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from promptcomp.evaluation.metrics import Flavour, f1_from_counts
from promptcomp.evaluation.texts import label_of


def accuracy(predictions: Sequence[Hashable], gold: Sequence[Hashable | Sequence[Hashable]]) -> float:
    """Share of right predictions; a list as gold label holds several right answers. NaN when empty."""
    if len(predictions) != len(gold):
        raise ValueError(f"{len(predictions)} predictions for {len(gold)} gold labels")
    right = [[_plain(each) for each in (g if isinstance(g, list | tuple) else (g,))] for g in gold]
    hits = [_plain(p) in g for p, g in zip(predictions, right, strict=True)]
    return sum(hits) / len(hits) if hits else float("nan")


def _plain(label: Hashable) -> Hashable:
    return label_of(label) if isinstance(label, str) else label


def macro_f1(predictions: Sequence[str], gold: Sequence[str], flavour: Flavour = "sklearn") -> float:
    """Unweighted mean of the classes' F1 (see the module docstring for the flavours). NaN when empty."""
    if len(predictions) != len(gold):
        raise ValueError(f"{len(predictions)} predictions for {len(gold)} gold labels")
    predictions, gold = [label_of(p) for p in predictions], [label_of(g) for g in gold]
    classes = {label: i for i, label in enumerate(dict.fromkeys([*gold, *predictions]))}
    index_gold = np.array([classes[label] for label in gold], dtype=np.int64)
    index_predicted = np.array([classes[label] for label in predictions], dtype=np.int64)
    hits = np.bincount(index_gold[index_gold == index_predicted], minlength=len(classes))
    counts_gold = np.bincount(index_gold, minlength=len(classes))
    counts_predicted = np.bincount(index_predicted, minlength=len(classes))
    return float(f1_from_counts(hits[None], counts_gold[None], counts_predicted[None], flavour)[0])
