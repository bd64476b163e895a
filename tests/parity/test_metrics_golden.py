"""Metrics and calibrated predictions against numbers made by MetaICL's and MEND's own code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from promptcomp.evaluation.predictions import choose
from tests.classification import accuracy, macro_f1

DATA = json.loads((Path(__file__).parent / "data" / "metric_cases.json").read_text(encoding="utf-8"))
CLASSIFICATION = [case for case in DATA["metric_cases"] if case["is_classification"]]
OTHERS = [case for case in DATA["metric_cases"] if not case["is_classification"]]


@pytest.mark.parametrize("case", CLASSIFICATION, ids=lambda case: case["name"])
def test_macro_f1(case):
    predictions, gold = case["predictions"], case["groundtruth"]
    assert macro_f1(predictions, gold, "metaicl") == pytest.approx(case["metaicl"], abs=1e-12)
    if case["name"] == "whitespace":  # to MEND, " a" and "a " are two labels; here they are one, for every metric
        assert macro_f1(predictions, gold, "sklearn") == accuracy(predictions, gold) == case["metaicl"]
        return
    assert macro_f1(predictions, gold, "sklearn") == pytest.approx(case["sklearn_macro_f1_as_used_by_MEND"], abs=1e-12)
    assert accuracy(predictions, gold) == pytest.approx(case["accuracy"], abs=1e-12)


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case["name"])
def test_accuracy_with_one_or_several_right_answers(case):
    assert accuracy(case["predictions"], case["groundtruth"]) == pytest.approx(case["metaicl"], abs=1e-12)


@pytest.mark.parametrize("case", DATA["scoring_cases"], ids=lambda case: case["name"])
def test_predictions_and_metric_follow_from_the_losses(case):
    """`losses` are MetaICL's mean token losses of the options before calibration; a score is their negative.

    An empty input or label without a scored token made the original's loss not a number, and that option then won
    silently. Here it never wins, so the predictions are compared on the other examples and the metric is computed
    with the original's choice on these.
    """
    chosen = []
    for i, losses in enumerate(case["losses"]):
        scores = _scores(losses)
        if case["bias_losses"] is not None:
            scores = [score - bias for score, bias in zip(scores, _scores(case["bias_losses"][i]), strict=True)]
        assert scores == pytest.approx(_scores(case["per_option_losses"][i]), abs=1e-12, nan_ok=True)
        if np.isfinite(scores).all():
            chosen.append(case["options"][i][choose(scores)])
            assert chosen[i] == case["predictions"][i]
        else:
            chosen.append(case["predictions"][i])
    measured = macro_f1(chosen, case["groundtruth"], "metaicl") if case["metric_name"] == "macro_f1" else None
    if measured is None:
        measured = accuracy(chosen, case["groundtruth"])
    assert measured == pytest.approx(case["metric"], abs=1e-12)


def _scores(losses: list[float | None]) -> list[float]:
    return [float("nan") if loss is None else -loss for loss in losses]
