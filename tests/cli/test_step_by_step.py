"""`fit --method step_by_step` and its baselines through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

SHORT = ("trainer.max_steps=3", "trainer.batch_size=4", "data.world.dev_rows=8", "data.world.test_rows=12")


def test_labels_and_rationales_are_written(run: Run, tmp_path: Path) -> None:
    done = run("fit", "--method", "step_by_step", "--run-dir", str(tmp_path / "run"), *SHORT)
    assert done.returncode == 0, done.stderr
    assert "exact match" in done.stdout
    assert "cost of one query" not in done.stdout  # nothing is compressed
    result = json.loads((tmp_path / "run" / "results.json").read_text())["splits"]["test"]
    assert result["metric"] == "exact_match"
    rows = [json.loads(line) for line in (tmp_path / "run" / "rationales.jsonl").read_text().splitlines()]
    assert [row["example"] for row in rows] == list(range(12))
    assert all(row["teacher"] for row in rows)
    labels = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert labels[0]["input"] == rows[0]["input"]


@pytest.mark.parametrize("method", ["finetune", "task_distillation"])
def test_baselines_learn_labels_alone(run: Run, tmp_path: Path, method: str) -> None:
    done = run("fit", "--method", method, "--run-dir", str(tmp_path / "run"), *SHORT)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run" / "rationales.jsonl").exists()


def test_data_and_method_that_do_not_belong_together(run: Run, tmp_path: Path) -> None:
    done = run("fit", "--method", "step_by_step", "--run-dir", str(tmp_path / "a"), "data={name: toy_icl}", *SHORT[:2])
    assert done.returncode == 2
    assert "rationale" in done.stderr
    other = ("method={name: mend, num_slots: 2}", "lm={path: builtin:toy_student, from_scratch: {}}")
    done = run("fit", "--method", "step_by_step", "--run-dir", str(tmp_path / "b"), *other, *SHORT)
    assert done.returncode == 2
    assert "rationale" in done.stderr
    wrong = run("fit", "--method", "step_by_step", "method.alpha=1.5")
    assert wrong.returncode == 2
    assert "alpha" in wrong.stderr
