"""`promptcomp curve` as a person runs it: real runs in child processes, tiny ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

TINY = (
    "data.train_count=8",
    "data.world.pool_rows=8",
    "data.world.dev_rows=4",
    "data.world.test_rows=4",
    "trainer.max_steps=1",
    "trainer.batch_size=2",
    "trainer.accelerator=cpu",
    "evaluation.bootstrap_resamples=100",
    "evaluation.measure_cost=false",
)


def test_a_curve_of_real_runs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    words = ("curve", "step_by_step", "--fractions", "1", "--seeds", "1", "--workers", "2", *TINY)
    planned = run(*words, "--dry-run")
    assert planned.stdout.count(": missing ") == 2
    done = run(*words, "--json")
    assert done.returncode == 0, done.stderr
    curve = json.loads(done.stdout)
    assert {point["method"] for point in curve["points"]} == {"step_by_step", "finetune"}
    folder = tmp_path / "curves" / "step_by_step"
    assert json.loads((folder / "curve.json").read_text()) == curve
    assert {path.name for path in folder.iterdir()} >= {"curve.csv", "points.csv", "runs", "logs"}
    again = run(*words)
    assert again.returncode == 0
    assert again.stdout.count(": kept ") == 2
    assert "One seed has no interval" in again.stdout
    assert run(*words, "--dry-run").stdout.count(": finished ") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["step_by_step", "--fractions", "2"], "lie in (0, 1]"),
        (["data.x=1", "step_by_step"], "the method comes first"),
        (["mend", "--against", "no_prompt"], "a curve needs rationale data"),
        (["step_by_step", "trainer.max_step=1"], "did you mean 'max_steps'"),
    ],
)
def test_mistakes_are_found_before_anything_runs(words: list[str], message: str, run: Run, tmp_path: Path) -> None:
    done = run("curve", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "curves").exists()
