"""`promptcomp sweep` on the command line: listing, plans, and what a person reads after a mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from promptcomp.experiment import EvaluationConfig
from promptcomp.sweeps import measuring, preview
from promptcomp.sweeps.measuring import MeasuringFailed, TrialSeconds
from tests.cli.conftest import Run

TINY = (
    "method.num_slots=1,2",
    "data.num_demonstrations=4",
    "data.queries_per_context=2",
    "data.world.num_test_tasks=4",
    "data.world.num_dev_tasks=4",
    "data.world.num_queries=4",
    "trainer.max_steps=8",
    "trainer.batch_size=2",
    "trainer.eval_every=4",
    "trainer.accelerator=cpu",
    "evaluation.bootstrap_resamples=100",
    "evaluation.measure_cost=false",
)


def test_list(run: Run) -> None:
    done = run("sweep", "--list")
    assert done.returncode == 0
    assert "gist_tokens" in done.stdout
    named = json.loads(run("sweep", "--list", "--json").stdout)
    assert {"gist_tokens", "distiller_size", "loss_weight", "loss_weight_mend", "combined", "data_efficiency"} <= set(
        named
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "name a sweep"),
        (("gist_token",), "did you mean 'gist_tokens'?"),
        (("nowhere.yaml",), "nowhere.yaml: no such configuration file"),
        (("gist_tokens", "--method", "mend"), "name one of them"),
        (("--method", "mned", "method.num_slots=1,2"), "did you mean 'mend'?"),
        (("--method", "mend"), "no key has several values"),
        (("--method", "mend", "method.num_slots"), "is written key=2,4,8"),
        (("--method", "mend", "a=1,2", "method.num_slots"), "write key=value"),
        (("method.num_slots=1,2",), "name a sweep"),
        (("gist_tokens", "method.num_slots=1,1"), "is listed twice"),
        (("gist_tokens", "method.num_slotss=1,2"), "method.num_slotss: unknown key; did you mean 'num_slots'?"),
        (("gist_tokens", "sweep.sampler=tpee"), "sampler = 'tpee'"),
        (("gist_tokens", "--points", "3"), "points is for the other samplers"),
        (("gist_tokens", "--objective", "unseen:down"), "write METRIC"),
        (("gist_tokens", "--objective", "exact_mach"), "did you mean 'exact_match'?"),
        (("gist_tokens", "--objective", "exact_match@unsen"), "did you mean 'unseen'?"),
        (("gist_tokens", "--objective", "exact_match@unsen", "--dry-run"), "did you mean 'unseen'?"),
        (("gist_tokens", "--storage", "words"), "postgresql://USER@HOST/DATABASE"),
        (("--method", "mend", "data.world.seed=1..10001"), "--yes"),
        (("show", "nowhere"), "nowhere is no sweep directory"),
        (("plot", "nowhere"), "nowhere is no sweep directory"),
        ((".",), "it has no sweep.yaml"),
    ],
)
def test_one_message_and_exit_code_2(words: tuple[str, ...], expected: str, tmp_path: Path, run: Run) -> None:
    done = run("sweep", *words) if words else run("sweep", "run")
    assert done.returncode == 2, done.stdout + done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected a mapping"),
        (b"- a\n", "expected a mapping"),
        (b"experiment: {", "not valid YAML"),
        (b"\xff\xfe\x00bad", "not UTF-8 text but UTF-16"),
        (b"experiment: mend\n", "space: missing"),
        (b"experiment: mend\nspace: {}\n", "space"),
        (b"experiment: mend\nspace: {method.num_slots: []}\n", "values: empty"),
        (b"experiment: mend\nspace: {method.num_slots: [1]}\nseeds: many\n", "seeds = 'many'"),
        (b"experiment: mend\nspace: {method.num_slots: [1]}\nsede: 1\n", "did you mean 'seeds'?"),
        (b"experiment: mend\nspace: {method.num_slots: [1]}\nset: {method.num_slots: 2}\n", "remove one of the two"),
        (b"experiment: nowhere.yaml\nspace: {method.num_slots: [1]}\n", "nowhere.yaml"),
    ],
)
def test_bad_files(content: bytes, expected: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    done = run("sweep", "bad.yaml")
    assert done.returncode == 2, done.stdout
    assert expected in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_subcommands_come_first_and_run_is_the_default(run: Run) -> None:
    assert "Start or continue" in run("sweep", "run", "--help").stdout
    assert "Start or continue" in run("sweep", "gist_tokens", "--help").stdout
    assert "Commands:" in run("sweep", "--help").stdout
    assert "measure" not in run("sweep", "--help").stdout


def test_the_plan(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = TrialSeconds(step=0.5, dev=1.0, test=2.0, start=3.0, peak_bytes=2**30)
    monkeypatch.setattr(preview, "measured", lambda experiment: times)
    words = ("--method", "mend", *TINY, "--seeds", "2", "sweep.budget.hours=0.001", "--dry-run")
    done = run("sweep", *words)
    assert done.returncode == 0, done.stderr
    for part in ("2 points x 2 seeds = 4 trials", "method.num_slots: 1, 2", "0.5 s", "11 s", "ends the sweep"):
        assert part in done.stdout, done.stdout
    plan = json.loads(run("sweep", *words, "--json").stdout)
    assert plan["trials"] == 4
    assert plan["smallest"]["params"] == {"method.num_slots": 1}
    assert plan["smallest"]["trial_seconds"] == pytest.approx(3 + 8 * 0.5 + 2 * 1 + 2)
    assert plan["hours"] == pytest.approx(4 * 11 / 3600)
    assert not any(tmp_path.iterdir())  # a plan leaves nothing behind


def test_a_plan_without_a_measurement(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("sweep", "--method", "mend", *TINY, "--dry-run", "--no-measure", "--json")
    assert json.loads(done.stdout)["hours"] is None

    def failing(experiment: object) -> TrialSeconds:
        raise MeasuringFailed("exit code -9: killed")

    monkeypatch.setattr(preview, "measured", failing)
    done = run("sweep", "--method", "mend", *TINY, "--dry-run")
    assert "the measured trial failed (exit code -9: killed)" in done.stdout


def test_finished_runs_are_in_the_plan(run: Run, tiny_lm: Path) -> None:
    words = ("--method", "mend", *TINY, f"lm.path={tiny_lm}", "--dry-run", "--no-measure", "--json")
    plan = json.loads(run("sweep", *words).stdout)
    assert (plan["finished"], plan["started"]) == (0, 0)
    from promptcomp.sweeps.space import best_yaml, planned_trial
    from promptcomp.sweeps.sweep_directory import SweepDirectory
    from promptcomp.sweeps.sweep_file import sweep_of

    config = sweep_of("mend", [*TINY, f"lm.path={tiny_lm}"])
    cell = planned_trial(config, SweepDirectory(Path(plan["directory"])), {"method.num_slots": 1}, 0)
    Path("point.yaml").write_text(best_yaml(config, cell.params), encoding="utf-8")
    done = run("fit", "--config", "point.yaml", "--run-dir", str(cell.run))
    assert done.returncode == 0, done.stderr
    assert json.loads(run("sweep", *words).stdout)["finished"] == 1


def test_steps_are_measured(run: Run, tiny_lm: Path) -> None:
    from promptcomp.sweeps.space import best_yaml
    from promptcomp.sweeps.sweep_file import sweep_of

    config = sweep_of("mend", [*TINY, f"lm.path={tiny_lm}"])
    assert run("methods").returncode == 0  # moves to the empty folder
    Path("point.yaml").write_text(best_yaml(config, {"method.num_slots": 2}), encoding="utf-8")
    done = run("sweep", "measure", "point.yaml")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0 < found["step"] < found["inside"]
    assert found["dev"] > 0
    assert found["test"] > 0
    assert found["peak_bytes"] > 2**20


def test_a_slow_first_batch_does_not_stand_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def assess(*words: object, on_batch: Callable[[int, int], None]) -> None:
        for done in range(1, 41):
            now[0] += 10.0 if done == 1 else 1.0
            on_batch(done, 40)

    monkeypatch.setattr(measuring, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(measuring, "assess", assess)
    module, data = MagicMock(), SimpleNamespace(test_splits=("test",))
    assert measuring._test(SimpleNamespace(evaluation=EvaluationConfig()), module, data) == 10 + 39  # type: ignore[arg-type]
    assert now[0] == 10 + 1  # the rest was not waited for


def test_a_sweep_from_start_to_best(run: Run, tiny_lm: Path) -> None:
    words = ("--method", "mend", *TINY, f"lm.path={tiny_lm}", "trainer.max_steps=4", "--objective", "method", "-o", "s")
    done = run("sweep", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2" in done.stdout
    found = json.loads(run("sweep", "show", "s", "--json").stdout)
    assert found["progress"]["finished"] == 2
    results = [path.read_bytes() for path in sorted(Path("s/runs").glob("*/results.json"))]
    assert len(results) == 2
    for format_ in ("csv", "trials"):
        assert "num_slots" in run("sweep", "show", "s", "--format", format_).stdout.replace("\\", "")
    assert run("sweep", "show", "s", "--format", "docx").returncode == 2
    again = run("sweep", "s")  # nothing is left: no trial is run twice
    assert again.returncode == 0, again.stderr
    assert [path.read_bytes() for path in sorted(Path("s/runs").glob("*/results.json"))] == results
    changed = run("sweep", "s", "optim.lr=0.5")
    assert changed.returncode == 2
    assert "optim.lr" in changed.stderr
    assert run("sweep", "plot", "s").returncode == 0
    assert Path("s/report/index.html").is_file()
    best = run("sweep", "best", "s", "-o", "best.yaml")
    assert best.returncode == 0, best.stderr
    assert run("fit", "--config", "best.yaml", "--dry-run").returncode == 0
