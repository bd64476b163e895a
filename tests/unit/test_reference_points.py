"""The reference points of a method: paired with its runs, retained between trained and untrained controls."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from promptcomp.config import ConfigError, build
from promptcomp.evaluation.predictions import ROWS, Prediction
from promptcomp.evaluation.summarize import ROLES, ReferencePoints, RoleRun, split_points, summarise
from promptcomp.experiment import Experiment
from promptcomp.report import print_points
from promptcomp.run.configured import identity

SKILL = {
    "no_prompt_untrained": 0.05,
    "no_prompt_trained": 0.2,
    "method": 0.8,
    "full_prompt_trained": 0.95,
    "full_prompt_untrained": 0.5,
}


def predictions(role: str, count: int = 200) -> list[Prediction]:
    """Answers "yes" (right) or the role's own wrong one; the same examples are hard for every role."""
    luck = np.random.default_rng(3).random(count)
    texts = ["yes" if luck[i] < SKILL[role] else f"wrong {role}" for i in range(count)]
    return [
        Prediction(
            split="seen", example=i, task="t", kind="free_form", seed=None, context=i // 4, gold=0, options=("yes",),
            scores=dict.fromkeys(ROWS, (-1.0,)), prediction=dict.fromkeys(ROWS), correct=dict.fromkeys(ROWS),
            loss=dict.fromkeys(ROWS, 1.0), gold_tokens=1, texts=dict.fromkeys(ROWS, text), reference="yes",
            instruction="i", input="", unfinished=dict.fromkeys(ROWS, False),
            metrics={row: {"exact_match": float(text == "yes"), "agreement": 0.25} for row in ROWS},
        )
        for i, text in enumerate(texts)
    ]  # fmt: skip


def test_points_are_the_figures_of_the_runs() -> None:
    members = {role: predictions(role) for role in ROLES}
    points = split_points(members, "exact_match", resamples=200)
    assert list(points.rows) == list(ROLES)
    for role in ROLES:
        alone = summarise(members[role], "exact_match", resamples=200).rows["method"]["exact_match"]
        found = points.rows[role]["exact_match"]
        assert (found.value, found.ci) == (alone.value, alone.ci)
    value = {role: points.rows[role]["exact_match"].value for role in ROLES}
    for kind in ("trained", "untrained"):
        low, high = value[f"no_prompt_{kind}"], value[f"full_prompt_{kind}"]
        assert points.retained[kind].value == pytest.approx((value["method"] - low) / (high - low))
        assert points.retained[kind].ci[0] < points.retained[kind].value < points.retained[kind].ci[1]


def test_agreement_is_with_the_trained_full_prompt() -> None:
    members = {role: predictions(role) for role in ROLES}
    points = split_points(members, "exact_match", resamples=100)
    assert points.agreement_with == "full_prompt_trained"
    assert "agreement" not in points.rows["full_prompt_trained"]
    assert points.rows["method"]["agreement"].value == points.rows["method"]["exact_match"].value
    frozen = {role: found for role, found in members.items() if not role.endswith("_trained")}
    points = split_points(frozen, "exact_match", resamples=100)
    assert points.agreement_with == "full_prompt_untrained"
    assert set(points.retained) == {"untrained"}


def test_other_examples_are_refused() -> None:
    members = {"method": predictions("method"), "full_prompt_untrained": predictions("full_prompt_untrained", 100)}
    with pytest.raises(ConfigError, match="answered other examples"):
        split_points(members, "exact_match", resamples=100)


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits(width: int) -> None:
    split = split_points({role: predictions(role) for role in ROLES}, "exact_match", resamples=100)
    runs = {role: RoleRun(run=f"runs/{role}", how="reused") for role in ROLES}
    points = ReferencePoints(
        method="gisting", context_kind="demonstrations", data="d", lm="x", seed=0, runs=runs, splits={"seen": split}
    )
    out = io.StringIO()
    print_points(points, Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for expected in (
        "no demonstrations, untrained",
        "retained between the trained controls: 0.",
        "agreement",
        "reused",
    ):
        assert expected in text
    assert "…" not in text


def test_untrained_runs_are_the_same_for_all_seeds_but_where_something_is_drawn() -> None:
    def same(method: str, **lm: object) -> bool:
        tree = {"method": {"name": method}, "data": {"name": "toy_icl"}, "lm": {"path": "builtin:toy_decoder", **lm}}
        tree["trainer"] = {"max_steps": 0}
        return len({identity(build(Experiment, {**tree, "seed": seed})) for seed in (0, 1)}) == 1

    assert same("full_prompt")
    assert not same("full_prompt", from_scratch={})
    assert not same("mend")


def test_dev_rows_that_the_seed_moves_make_other_runs() -> None:
    def same(**data: object) -> bool:
        tree = {"method": {"name": "full_prompt"}, "lm": {"path": "builtin:toy_student"}, "trainer": {"max_steps": 0}}
        tree["data"] = {
            "name": "rationale_files",
            "train": ["a.jsonl"],
            "test": ["b.jsonl"],
            "targets": "label",
            **data,
        }
        return len({identity(build(Experiment, {**tree, "seed": seed})) for seed in (0, 1)}) == 1

    drawn = {"subset": "reference", "train_share": 0.5}
    assert same()
    assert not same(**drawn)
    assert same(**drawn, dev_share=0)
    assert same(**drawn, dev=["c.jsonl"])
