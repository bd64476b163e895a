"""Text accuracy is the original's; equations have the value that the original's `eval` gives, for arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from promptcomp.evaluation.texts import same_value, value_of
from tests.parity.golden_step_by_step import numbers, tokenizer


def _share(same: Callable[[str, str], bool], predictions: Sequence[str], labels: Sequence[str]) -> float:
    return sum(map(same, predictions, labels)) / len(labels) if labels else 0.0


def test_text_accuracy() -> None:
    for case in numbers("metrics")["text_accuracy"]:
        assert _share(str.__eq__, case["preds"], case["labels"]) == pytest.approx(case["accuracy"])


def test_equation_values() -> None:
    for case in numbers("metrics")["equation_values"]:
        found, wanted = value_of(case["equation"]), case["suggested_safe_value"]
        assert found == wanted, case["equation"]
        if wanted is not None:
            assert math.isclose(wanted, case["reference"]["value"])


def test_equation_accuracy() -> None:
    for case in numbers("metrics")["equation_accuracy"]:
        pairs = case["preds"], case["labels"]
        assert _share(partial(same_value, tolerance=0.0), *pairs) == case["suggested_accuracy_exact"]
        assert _share(same_value, *pairs) == case["suggested_accuracy_tol1e-6"]


def test_accuracy_of_token_ids() -> None:
    """Generated ids decoded without special tokens, labels with their padding taken off."""
    case = numbers("metrics")["token_level"]
    words = tokenizer()
    predictions = [words.decode(ids, skip_special_tokens=True) for ids in case["pred_ids"]]
    labels = [words.decode([i for i in ids if i >= 0], skip_special_tokens=True) for ids in case["label_ids"]]
    assert predictions == case["decoded_preds"]
    assert _share(str.__eq__, predictions, labels) == pytest.approx(case["text_accuracy_task_prefix"])
    assert _share(same_value, predictions, labels) == pytest.approx(case["equation_accuracy_task_prefix"])
