"""No interval has the width zero: few equal outcomes are little evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from promptcomp.evaluation.bootstrap import mean_of, percentile_interval, share_interval, wilson
from promptcomp.evaluation.predictions import ROWS, Prediction
from promptcomp.evaluation.results import Estimate, SplitResult
from promptcomp.evaluation.summarize import summarise
from promptcomp.sweeps.views.efficiency import Values
from promptcomp.sweeps.views.efficiency import reached as reached_share

Z = 1.959963984540054  # scipy.stats.norm.ppf(0.975)


def outcomes(right: Sequence[bool], *, contexts: int, loss: float = 1.0) -> list[Prediction]:
    """The method is right where it says, no prompt never, the full prompt always."""
    rows = [{"no_prompt": False, "method": own, "full_prompt": True} for own in right]
    return [
        Prediction(
            split="test", example=i, task="t", kind="multi_choice", seed=None, context=i % contexts, gold=0,
            options=("a", "b"), scores=dict.fromkeys(ROWS, (0.0, -1.0)), correct=correct, gold_tokens=1,
            prediction={row: 0 if correct[row] else 1 for row in ROWS}, loss=dict.fromkeys(ROWS, loss),
        )
        for i, correct in enumerate(rows)
    ]  # fmt: skip


def intervals(result: SplitResult) -> list[tuple[float, float] | None]:
    """All of a split."""
    estimates: list[Estimate] = [each for row in result.rows.values() for each in row.values()]
    own = [result.method_ci, result.full_prompt_ci, result.no_prompt_ci, result.retained_ci, result.gap_to_full_ci]
    return own + [each.ci for each in estimates]


@pytest.mark.parametrize("metric", ["accuracy", "loss", "macro_f1", "task"])
@pytest.mark.parametrize(
    ("right", "contexts"),
    [([True] * 8, 8), ([False] * 8, 8), ([True, False] * 8, 8), ([True] * 4 + [False] * 4, 4), ([True] * 2, 2)],
)
def test_equal_outcomes_have_no_interval_of_width_zero(metric: str, right: list[bool], contexts: int) -> None:
    if right == [True, False] * 8:  # every context has one right and one wrong answer
        predictions = [p.model_copy(update={"context": p.example // 2}) for p in outcomes(right, contexts=1)]
    else:
        predictions = outcomes(right, contexts=contexts)
    result = summarise(predictions, metric, resamples=100)  # type: ignore[arg-type]
    assert result.num_contexts == contexts
    for interval in intervals(result):
        assert interval is None or interval[1] - interval[0] > 0.1
    if metric == "accuracy":
        assert result.method_ci is not None


def test_eight_of_eight() -> None:
    result = summarise(outcomes([True] * 8, contexts=8), "accuracy", resamples=100)
    assert result.method_ci == (pytest.approx(0.025 ** (1 / 8)), 1.0)
    assert (result.retained, result.retained_ci) == (1.0, None)
    assert (result.gap_to_full, result.gap_to_full_ci) == (0.0, None)
    assert (result.headroom, result.headroom_se, result.no_headroom) == (1.0, None, False)


def test_bounds_that_differ_by_rounding_leave_no_headroom() -> None:
    found = outcomes([True] * 3, contexts=1)
    loss = {"no_prompt": 14.0000014, "method": 6.5, "full_prompt": 14.0}
    same = [each.model_copy(update={"loss": loss}) for each in found]
    result = summarise(same, "loss", resamples=10)
    assert (result.no_headroom, result.retained) == (True, None)


@pytest.mark.parametrize(("hits", "count"), [(8, 8), (0, 8), (4, 8), (1, 3), (81, 263)])
def test_wilson_is_the_closed_form(hits: int, count: int) -> None:
    """The bounds are the two shares p with |hits / count - p| = z sqrt(p (1 - p) / count)."""
    found = wilson(hits, count)
    assert found is not None
    for end in found:
        assert abs(hits / count - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / count), abs=1e-7)
    narrow = wilson(hits, count, 0.5)
    assert narrow is not None
    assert narrow[1] - narrow[0] < found[1] - found[0]


def test_equal_resamples_of_a_share_have_wilsons_interval_over_contexts() -> None:
    assert share_interval(np.full(50, 0.5), 8) == wilson(4, 8)
    assert share_interval(np.full(50, 0.5), 1) is None
    assert share_interval(np.full(50, np.nan), 8) is None
    assert percentile_interval(np.full(50, 0.1 + 0.2), 8) is None
    assert percentile_interval(np.array([0.5, 0.4, 0.6]), 8) is not None


def test_equal_seeds_have_a_mean_and_no_interval() -> None:
    assert mean_of([0.7, 0.7, 0.7]).ci is None
    assert mean_of([0.0, 0.0]).ci is None
    assert mean_of([0.1 + 0.2, 0.3]).ci is None
    assert mean_of([0.7, 0.8]).ci is not None


def test_a_curve_whose_draws_all_agree_has_no_interval() -> None:
    means = {("a", 0.5): 0.9, ("a", 1.0): 0.9, ("b", 0.5): 0.1, ("b", 1.0): 0.8}
    values: Values = {(method, "", share): dict.fromkeys(range(3), value) for (method, share), value in means.items()}
    found = reached_share(values, "a", "b", "", (0.5, 1.0), False)
    assert found is not None
    assert (found.share, found.ci, found.resampled) == (0.5, None, 1.0)
