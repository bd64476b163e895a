"""`promptcomp fit --method gist` on demonstrations, with its controls, as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

SMALL = [
    "data.name=toy_icl", "data.num_demonstrations=4", "data.queries_per_context=2", "data.metric=accuracy",
    "data.world.num_test_tasks=3", "data.world.num_dev_tasks=3", "data.world.num_queries=3",
    "trainer.max_steps=4", "trainer.batch_size=2", "trainer.eval_every=2", "trainer.accelerator=cpu",
    "evaluation.bootstrap_resamples=100", "evaluation.measure_cost=false", "optim.lr=1e-4",
]  # fmt: skip
LMS = {
    "decoder": ["lm.path=builtin:toy_decoder", "lm.bos=true"],
    "encoder_decoder": ["lm.path=builtin:toy_t5", "lm.layout=query_in_encoder"],
}


@pytest.mark.parametrize(
    "options",
    [["method.num_slots=3", "method.reconstruction_weight=0.3"], ["method.train=lora", "method.kl_weight=0.5"]],
)
@pytest.mark.parametrize("family", LMS)
def test_demonstrations_into_gist_tokens(family: str, options: list[str], run: Run, tmp_path: Path) -> None:
    done = run("fit", "--method", "gist", "--run-dir", "run", *SMALL, *LMS[family], *options)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["method"], results["family"]) == ("gist", family)
    assert results["size"]["memory_slots"] == (3 if "method.num_slots=3" in options else 1)
    assert results["size"]["compression"] > 5
    again = run("evaluate", "run", "--output", "again")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again" / "results.json").read_text())["splits"] == results["splits"]
    other = run("evaluate", "run", "--output", "other", "method.num_slots=2")
    assert other.returncode == 2
    assert "num_slots" in other.stderr


def test_a_prompt_that_does_not_fit_twice(run: Run) -> None:
    done = run("fit", "--method", "gist", "method.reconstruction_weight=0.3", "data.max_context_tokens=300")
    assert done.returncode == 2
    assert "window of 512; set data.max_context_tokens=254 or less" in done.stderr


@pytest.mark.parametrize("train", ["none", "lm"])
def test_controls_untrained_and_trained(train: str, run: Run, tmp_path: Path) -> None:
    for name in ("full_prompt", "no_prompt"):
        done = run("fit", "--method", name, "--run-dir", name, *SMALL, *LMS["decoder"], f"method.train={train}")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name / "export").is_dir() == (train == "lm")
    bounds = json.loads((tmp_path / "full_prompt" / "results.json").read_text())["splits"]["test"]
    assert bounds["method"] == bounds["full_prompt"]
    if train == "lm":
        teacher = ["method.kl_weight=1.0", "method.teacher=full_prompt"]
        done = run("fit", "--method", "gist", "--run-dir", "taught", *SMALL, *LMS["decoder"], *teacher)
        assert done.returncode == 0, done.stderr
