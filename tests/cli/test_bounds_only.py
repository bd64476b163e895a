"""Headroom of tasks, and tasks that are chosen by it before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from promptcomp.config import ConfigError
from promptcomp.errors import Exit
from promptcomp.evaluation.headroom import has_headroom, headroom, write_choice
from promptcomp.evaluation.predictions import Prediction
from promptcomp.evaluation.results import read_results
from promptcomp.run import fitting
from promptcomp.terminal import PlainConsole, open_table
from tests.cli.conftest import Run, program

ROWS = ("no_prompt", "full_prompt")


def predictions(
    task: str, none: float, full: float, contexts: int, gold: int = 40, count: int = 80
) -> list[Prediction]:
    """Examples of which a share is right with none and with the full prompt; `gold` of them have the first label."""
    luck = np.random.default_rng(len(task)).random(count)
    found = []
    for i, each in enumerate(luck):
        right = {"no_prompt": bool(each < none), "full_prompt": bool(each < full)}
        label = int(i >= gold)
        found.append(
            Prediction(
                split="dev", example=i, task=task, kind="multi_choice", seed=None, context=i % contexts, gold=label,
                options=("yes", "no"), scores=dict.fromkeys(ROWS, (-1.0, -2.0)),
                prediction={row: label if hit else 1 - label for row, hit in right.items()}, correct=right,
                loss={row: 1.0 if hit else 2.0 for row, hit in right.items()}, gold_tokens=2,
            )
        )  # fmt: skip
    return found


def test_the_gap_of_a_task_is_that_of_its_examples() -> None:
    own = predictions("far", 0.3, 0.9, contexts=1)
    (task,) = headroom(own, "accuracy", resamples=300)
    means = {row: np.mean([p.correct[row] for p in own]) for row in ROWS}
    gap = task.gaps["accuracy"]
    assert (gap.no_prompt, gap.full_prompt) == (pytest.approx(means["no_prompt"]), pytest.approx(means["full_prompt"]))
    assert gap.headroom == pytest.approx(means["full_prompt"] - means["no_prompt"])
    assert task.gaps["loss"].headroom == pytest.approx(gap.headroom)  # a loss of 1 where it is right, of 2 elsewhere
    assert (task.count, task.num_contexts, task.majority) == (80, 1, 0.5)
    # one prompt: the questions are drawn, as in the formula for a mean of paired differences
    error = np.std([p.correct["full_prompt"] - p.correct["no_prompt"] for p in own]) / np.sqrt(80)
    assert gap.ci is not None
    assert (gap.ci[1] - gap.ci[0]) / 3.92 == pytest.approx(error, rel=0.2)
    assert has_headroom(task)
    assert has_headroom(task, "loss")


def test_examples_without_a_choice_leave_the_share_of_right_ones() -> None:
    own = predictions("mixed", 0.3, 0.9, contexts=1)
    none = dict.fromkeys(ROWS)
    free = [p.model_copy(update={"kind": "free_form", "prediction": none, "correct": none}) for p in own[:20]]
    (alone,), (task,) = (headroom(each, "accuracy", resamples=100) for each in (own, [*free, *own]))
    assert (task.kind, task.majority, task.count) == ("multi_choice", alone.majority, 100)
    assert task.gaps["accuracy"].headroom == pytest.approx(alone.gaps["accuracy"].headroom)


def test_what_has_no_headroom() -> None:
    (same,) = headroom(predictions("same", 0.5, 0.5, contexts=8), "accuracy", resamples=100)
    assert same.gaps["accuracy"].ci is None
    assert not has_headroom(same)
    assert same.num_contexts == 8
    (frequent,) = headroom(predictions("frequent", 0.3, 0.7, contexts=8, gold=72), "accuracy", resamples=100)
    assert frequent.majority == 0.9
    assert not has_headroom(frequent)
    assert has_headroom(frequent, "loss")


def test_a_task_that_the_full_prompt_alone_answers_always_has_headroom() -> None:
    (task,) = headroom(predictions("certain", 0.0, 1.0, contexts=8), "accuracy", resamples=100)
    gap = task.gaps["accuracy"]
    assert (gap.headroom, gap.ci) == (1.0, (pytest.approx(2 * 8 / (8 + 1.96**2) - 1, abs=1e-3), 1.0))
    assert has_headroom(task)
    (few,) = headroom(predictions("certain", 0.0, 1.0, contexts=2), "accuracy", resamples=100)
    assert not has_headroom(few)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the runs of this module."""
    return tmp_path_factory.mktemp("bounds")


DATA = (
    "data.max_dev_tasks=3", "data.max_dev_queries=4", "data.num_demonstrations=4", "data.world.num_train_tasks=64",
    "data.world.num_dev_tasks=3", "data.world.num_test_tasks=2", "evaluation.measure_cost=false",
)  # fmt: skip


def test_long_names_of_tasks_leave_room_for_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    table = open_table("dev: headroom by task", ["", "headroom"], ["n", "gain", "gain in loss"])
    gain = "-0.188 [-0.56, +0.19]"
    table.add_row("ag_news_classify_with_choices_question_first", "in loss", "16", gain, gain)
    PlainConsole(width=80).print(table)
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].count(gain) == 2
    assert "".join(line.split()[0] for line in lines[3:]) == "ag_news_classify_with_choices_question_first"


def test_bounds_alone_choose_the_tasks_of_the_next_run(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_lm: Path
) -> None:
    run: Run = program(monkeypatch, capsys, done)
    where = ("--method", "mend", f"lm.path={tiny_lm}", *DATA)
    ended = run("fit", *where, "--bounds-only", "--run-dir", "bounds", "evaluation.bootstrap_resamples=100")
    assert ended.returncode == 0, ended.stderr
    assert "dev: headroom by task" in ended.stdout
    results = read_results(done / "bounds")
    assert list(results.splits) == ["dev"]
    assert results.method == "full_prompt"
    tasks = [task.task for task in results.splits["dev"].headroom_by_task]
    assert len(tasks) == 3
    (done / "choice.yaml").write_text(yaml.safe_dump({"keep": tasks[:1], "drop": tasks[1:]}))
    left = run("data", "validate", *where, "data.task_choice=choice.yaml", "--json")
    assert left.returncode == 0
    assert next(split["tasks"] for split in json.loads(left.stdout)["read"] if split["split"] == "dev") == 1


def test_no_choice_is_made_of_a_run_that_was_preempted(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_lm: Path
) -> None:
    stopped = fitting.Outcome(Path("bounds"), None, 0, interrupted=True, preempted=True)
    monkeypatch.setattr(fitting, "fit", lambda *_: stopped)
    run: Run = program(monkeypatch, capsys, done)
    words = ("--method", "mend", f"lm.path={tiny_lm}", *DATA, "--bounds-only", "--keep-tasks", "tasks.yaml")
    assert run("fit", *words).returncode == Exit.PREEMPTED
    assert not (done / "tasks.yaml").exists()


def test_what_was_found_is_printed_before_no_task_is_chosen(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_lm: Path
) -> None:
    ended: Any = SimpleNamespace(
        run=Path("bounds"), results=SimpleNamespace(splits={}), preempted=False, interrupted=False,
        as_json=lambda: {"run": "bounds"},
    )  # fmt: skip
    monkeypatch.setattr(fitting, "fit", lambda *_: ended)
    words = ("--method", "mend", f"lm.path={tiny_lm}", *DATA, "--bounds-only", "--keep-tasks", "tasks.yaml", "--json")
    found = program(monkeypatch, capsys, done)("fit", *words)
    assert (found.returncode, json.loads(found.stdout)) == (2, {"run": "bounds"})
    assert "none of 0 tasks has headroom" in found.stderr


def test_a_choice_names_both_lists_and_its_rule(tmp_path: Path) -> None:
    asked = [*predictions("good", 0.3, 0.9, contexts=8), *predictions("same", 0.5, 0.5, contexts=8)]
    split = SimpleNamespace(headroom_by_task=headroom(asked, "accuracy", resamples=100))
    results: Any = SimpleNamespace(splits={"dev": split})
    said = write_choice(results, Path("runs/x"), tmp_path / "tasks.yaml", "score")
    assert "1 of 2 tasks have headroom; take them with data.task_choice=" in said
    found = yaml.safe_load((tmp_path / "tasks.yaml").read_text())
    assert (found["keep"], found["drop"], found["splits"]) == (["good"], ["same"], ["dev"])
    assert found["results"] == "runs/x/results.json"
    split.headroom_by_task = split.headroom_by_task[1:]
    with pytest.raises(ConfigError, match=r"none of 1 tasks has headroom, so .*none\.yaml is not written"):
        write_choice(results, Path("runs/x"), tmp_path / "none.yaml", "score")
    assert not (tmp_path / "none.yaml").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--keep-tasks", "x"), "--keep-tasks goes with --bounds-only"),
        (("--bounds-only", "--with-controls"), "no --with-controls"),
        (("--bounds-only", "--keep-by", "luck"), "choose score or loss"),
        (("--bounds-only", "--keep-tasks", "nowhere/x"), "there is no folder nowhere"),
    ],
)
def test_options_that_do_not_go_together(
    done: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    ended = program(monkeypatch, capsys, done)("fit", "--method", "mend", *words)
    assert ended.returncode == 2
    assert message in ended.stderr
