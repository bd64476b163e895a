"""`fit --with-controls` on a tiny LM: five runs, one table, reuse, continuing after a stop; and generated answers."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from promptcomp.lightning_modules.base import CompressionModule
from tests.cli.conftest import Done, Run, program

GIST = "method={name: gist, num_slots: 2}"
TRAINED = {"no_prompt_untrained", "no_prompt_trained", "method", "full_prompt_trained", "full_prompt_untrained"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The program's entry point; what the runs' own processes (forks of this one) print is seen too."""
    return program(monkeypatch, capfd, tmp_path)


@pytest.fixture
def gist_run(run: Run, tiny_lm: Path) -> Run:
    """`promptcomp fit --with-controls` of a tiny gist model on the toy world, with answers."""

    def call(*overrides: str) -> Done:
        return run(
            "fit",
            "--method",
            "mend",
            "--with-controls",
            f"lm.path={tiny_lm}",
            GIST,
            "data.num_demonstrations=2",
            "data.queries_per_context=2",
            "data.world.num_test_tasks=3",
            "data.world.num_dev_tasks=2",
            "data.world.num_queries=3",
            "trainer.max_steps=2",
            "trainer.batch_size=2",
            "trainer.eval_every=2",
            "trainer.checkpoint_every=1",
            "trainer.accelerator=cpu",
            "evaluation.bootstrap_resamples=100",
            "evaluation.measure_cost=false",
            "evaluation.generate=true",
            "evaluation.max_new_tokens=3",
            "evaluation.splits=[test]",
            *overrides,
        )

    return call


def test_five_runs_make_a_table_and_are_reused(gist_run: Run, run: Run, tmp_path: Path) -> None:
    done = gist_run("--json")
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    points = tree["controls"]
    assert set(points["runs"]) == TRAINED
    assert {found["how"] for found in points["runs"].values()} == {"made"}
    assert json.loads((Path(tmp_path / tree["run"]) / "controls.json").read_text()) == points
    split = points["splits"]["test"]
    assert list(split["rows"]) == [
        "no_prompt_untrained",
        "no_prompt_trained",
        "method",
        "full_prompt_trained",
        "full_prompt_untrained",
    ]
    assert set(split["retained"]) == {"trained", "untrained"}
    assert split["agreement_with"] == "full_prompt_trained"
    assert 0 <= split["rows"]["method"]["agreement"]["value"] <= 1
    assert "agreement" not in split["rows"]["full_prompt_trained"]

    folders = {role: found["run"] for role, found in points["runs"].items()}
    compared = json.loads(run("compare", *folders.values(), "--json").stdout)
    values = {row["run"]: (row["value"], row["value_low"]) for row in compared["splits"][0]["rows"]}
    for role, folder in folders.items():
        found = split["rows"][role][split["metric"]]
        assert values[Path(folder).name] == (found["value"], found["ci"][0])

    again = gist_run("name=other")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("reusing") == 5
    for text in (
        "no demonstrations, untrained",
        "full demonstrations, trained",
        "retained between the trained controls",
    ):
        assert text in again.stdout
    assert (
        max(map(len, (line for line in again.stdout.splitlines() if "demonstrations, " in line and "[" in line))) <= 80
    )

    other = json.loads(gist_run("method={name: gist, num_slots: 1}", "--json").stdout)["controls"]
    assert {role: found["how"] for role, found in other["runs"].items()} == {
        role: "made" if role == "method" else "reused" for role in TRAINED
    }
    assert len([path for path in (tmp_path / "runs").iterdir() if path.name != ".locks"]) == 6


def test_the_same_command_continues_after_a_stop(
    gist_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(gist_run("--json").stdout)
    shutil.move(tmp_path / "runs", tmp_path / "whole")
    original = CompressionModule.training_step

    def failing(self: CompressionModule, batch: object, batch_idx: int) -> object:
        if type(self).__name__ == "NoPrompt" and self.global_step == 0:
            signal.raise_signal(signal.SIGINT)
        return original(self, batch, batch_idx)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(CompressionModule, "training_step", failing)
        stopped = gist_run()
    assert stopped.returncode == 130
    assert "the same command continues" in stopped.stdout
    made = json.loads(gist_run("--json").stdout)
    how = {role: found["how"] for role, found in made["controls"]["runs"].items()}
    assert how["method"] == how["full_prompt_trained"] == "reused"
    assert how["no_prompt_trained"] == "resumed"
    assert how["no_prompt_untrained"] == "made"
    assert made["controls"]["splits"] == whole["controls"]["splits"]


def test_a_frozen_lm_has_untrained_controls_only(gist_run: Run) -> None:
    done = gist_run("method={name: mend, num_slots: 2}", "evaluation.generate=auto")
    assert done.returncode == 0, done.stderr
    assert "untrained only" in done.stdout
    assert "retained between the untrained controls" in done.stdout
    assert "demonstrations, trained" not in done.stdout


def test_answers_are_in_the_predictions(gist_run: Run, tmp_path: Path) -> None:
    assert gist_run("--run-dir", "one").returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "one/predictions.jsonl").read_text().splitlines()]
    assert all(set(line["texts"]) == {"no_prompt", "method", "full_prompt"} for line in lines)
    assert all(line["instruction"] and line["reference"] in line["options"] for line in lines)
    assert set(lines[0]["metrics"]["method"]) > {"exact_match", "rougeL", "agreement"}
    results = json.loads((tmp_path / "one/results.json").read_text())["splits"]["test"]
    assert results["metric"] == "accuracy"
    assert results["generated"] == len(lines)
    hits = [line["metrics"]["method"]["exact_match"] for line in lines]
    assert results["rows"]["method"]["exact_match"]["value"] == pytest.approx(sum(hits) / len(hits))


def test_mistakes(gist_run: Run, run: Run) -> None:
    done = gist_run("data.scoring=channel")
    assert done.returncode == 2
    assert "data.scoring=direct" in done.stderr
    assert run("fit", "--resume", "x", "--with-controls").returncode == 2
    plan = gist_run("--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert "full_prompt_trained: new run" in plan.stdout
