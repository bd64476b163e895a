"""`promptcomp curve` as a person runs it: real trials in processes of their own, tiny ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.forks import fork_workers
from tests.sweep_states import data_efficiency

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
    fork_workers(monkeypatch)
    words = ("curve", "step_by_step", "--fractions", "1", "--seeds", "1", "--workers", "2", *TINY)
    plan = json.loads(run(*words, "--dry-run", "--json").stdout)
    assert (plan["trials"], plan["finished"]) == (2, 0)
    assert json.loads(run(*words, "sweep.seeds=2", "--dry-run", "--json").stdout)["trials"] == 2
    assert not any(tmp_path.iterdir())
    done = run(*words, "--json")
    assert done.returncode == 0, done.stderr
    curve = json.loads(done.stdout)
    assert set(curve["rows"][0]["values"]) == {"step_by_step", "finetune"}
    folder = tmp_path / "curves" / "step_by_step"
    assert json.loads((folder / "report" / "efficiency.json").read_text()) == curve
    runs = {path: (path / "results.json").stat().st_mtime_ns for path in (folder / "runs").iterdir()}
    again = run(*words, "--metric", "loss")
    assert again.returncode == 0
    assert "loss (test) against the share of the training data" in again.stdout
    assert "One seed has no interval" in again.stdout
    assert {path: (path / "results.json").stat().st_mtime_ns for path in (folder / "runs").iterdir()} == runs
    assert json.loads(run(*words, "--dry-run", "--json").stdout)["finished"] == 2
    assert "minus finetune" in run("sweep", "show", "curves/step_by_step").stdout
    assert (folder / "report" / "efficiency.csv").read_text().startswith("size,parameters,share")
    changed = run(*words, "data.train_count=4")
    assert changed.returncode == 2
    assert "start another sweep with -o" in changed.stderr


@pytest.mark.parametrize("ending", ["whole", "failed", "stopped", "nothing"])
def test_exit_codes(ending: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = data_efficiency(tmp_path / "made", seeds=1)
    last = dataclasses.replace(state.trials[-1], status="failed", values={}, problem="killed (exit code -9)")
    trials = {"failed": (*state.trials[:-1], last), "nothing": (last,)}.get(ending, state.trials)
    ended = dataclasses.replace(state, trials=trials), ending != "stopped"
    monkeypatch.setattr("promptcomp.commands.sweep.work", lambda *_: ended)
    done = run("curve", "step_by_step", "--against", "finetune,task_distillation", "--seeds", "1")
    assert done.returncode == {"whole": 0, "failed": 1, "stopped": 130, "nothing": 2}[ending]
    lost = "missing: method=task_distillation, train_share=1, seed 0: killed (exit code -9)"
    assert (lost in done.stdout) == (ending == "failed")
    assert ("the same command continues" in done.stdout) == (ending == "stopped")
    assert ("no trial has finished with a value" in done.stderr) == (ending == "nothing")


@pytest.mark.parametrize(("made", "asked"), [(1, 2), (2, 1)])
def test_one_seed_is_what_the_means_hold(
    made: int, asked: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = data_efficiency(tmp_path / "made", seeds=made)
    monkeypatch.setattr("promptcomp.commands.sweep.work", lambda *_: (state, True))
    done = run("curve", "step_by_step", "--against", "finetune,task_distillation", "--seeds", str(asked))
    assert done.returncode == 0, done.stderr
    assert ("One seed has no interval" in done.stdout) == (made == 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["step_by_step", "--fractions", "2"], "less than or equal to 1"),
        (["data.x=1", "step_by_step"], "the method comes first"),
        (["mend", "--against", "no_prompt"], "a curve needs rationale data"),
        (["step_by_step", "trainer.max_step=1"], "did you mean 'max_steps'"),
        (["step_by_step", "--metric", "exact_mach"], "did you mean 'exact_match'"),
    ],
)
def test_mistakes_are_found_before_anything_runs(words: list[str], message: str, run: Run, tmp_path: Path) -> None:
    done = run("curve", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "curves").exists()
