"""Continuing a run: what may have changed since, and which processes belong to it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

import promptcomp
from promptcomp.config import ConfigError, dump
from promptcomp.evaluation.results import read_results
from promptcomp.experiment import Experiment
from promptcomp.lease import is_live, kept
from promptcomp.run import fitting
from promptcomp.run.configured import DIVISION, check_overrides, experiment_to_resume, files_of, find
from promptcomp.run.run_directory import RunDirectory, told_by_parent, told_to_children, write_environment
from tests.cli.conftest import Run
from tests.prompt_runs import DATA

START = {
    "method": {"name": "mend", "num_slots": 2},
    "data": DATA,
    "lm": {"path": "some/lm"},
    "optim": {"lr": 0.002, "betas": [0.9, 0.999]},
}


def started(folder: Path) -> RunDirectory:
    """A run directory as a start leaves it."""
    folder.mkdir()
    run = RunDirectory(folder)
    tree = Experiment.model_validate(START).model_dump(mode="json")
    run.config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    write_environment(run, tree)
    return run


def edit(run: RunDirectory, key: str, value: Any) -> None:
    """Change a key of config.yaml."""
    tree = node = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    *sections, last = key.split(".")
    for section in sections:
        node = node[section]
    node[last] = value
    run.config.write_text(yaml.safe_dump(tree), encoding="utf-8")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optim.lr", 0.5, "optim.lr was 0.002 and is 0.5"),
        ("optim.betas", [0.5, 0.9], "optim.betas was [0.9, 0.999] and is [0.5, 0.9]"),
        ("trainer.max_steps", 9, "trainer.max_steps was 1000 and is 9"),
        ("trainer.batch_size", 2, "trainer.batch_size was 8 and is 2"),
        ("trainer.precision", "bf16-mixed", 'trainer.precision was "32-true" and is "bf16-mixed"'),
        ("trainer.select_by", "loss", 'trainer.select_by was "auto" and is "loss"'),
        ("method.num_slots", 3, "method.num_slots was 2 and is 3"),
        ("method.distiller", {"path": "x"}, 'method.distiller was null and is {"path": "x"'),
        ("data.world.num_queries", 3, "data.world.num_queries was 2 and is 3"),
        ("lm.path", "other/lm", 'lm.path was "some/lm" and is "other/lm"'),
        ("evaluation.bounds", False, "evaluation.bounds was true and is false"),
        ("seed", 1, "seed was 0 and is 1"),
        ("method", {"name": "gist"}, 'method.name was "mend" and is "gist"'),
    ],
)
def test_an_edited_configuration_is_refused_and_the_change_is_named(
    tmp_path: Path, key: str, value: Any, said: str
) -> None:
    run = started(tmp_path / "run")
    edit(run, key, value)
    with pytest.raises(ConfigError) as refused:
        experiment_to_resume(run)
    assert said in str(refused.value)
    assert str(run.config) in str(refused.value)


def test_place_and_division_may_change_in_the_file_and_on_the_command_line(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    changes = {"name": "other", "output_dir": "elsewhere", "trainer.devices": 2, "trainer.strategy": "fsdp"}
    for key, value in {**changes, "trainer.accumulate": 4}.items():
        edit(run, key, value)
    found = experiment_to_resume(run, ["trainer.num_nodes=2", "trainer.checkpoints=sharded"])
    assert (found.trainer.devices, found.trainer.num_nodes, found.trainer.accumulate) == (2, 2, 4)
    check_overrides([f"trainer.{key}=1" for key in DIVISION])
    for item in (
        "optim.lr=1",
        "trainer.max_steps=9",
        "trainer.precision=bf16-true",
        "trainer={threads: 9}",
        "seed=1",
    ):
        with pytest.raises(ConfigError, match="only the keys that distribute its work"):
            experiment_to_resume(run, [item])


def test_a_step_of_limited_micro_batches_keeps_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(START, "data", {**DATA, "max_batch_tokens": 500})
    run = started(tmp_path / "run")
    assert experiment_to_resume(run, ["trainer.devices=2"]).trainer.accumulate == 1
    with pytest.raises(ConfigError, match=r"accumulate was 1 and is 2: .* resume with trainer.accumulate=1"):
        experiment_to_resume(run, ["trainer.accumulate=2"])


def test_a_relative_lm_is_found_above_a_run_that_was_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = started(tmp_path / "run"), list[Any]()
    (tmp_path / "some" / "lm").mkdir(parents=True)
    (tmp_path / "some" / "lm" / "config.json").write_text("{}")
    monkeypatch.setattr(
        fitting, "evaluate", lambda path, *given: asked.append(given[0]) or fitting.Outcome(path, None, 0)
    )
    promptcomp.evaluate(run.path)
    for experiment in (experiment_to_resume(run), *asked):
        assert experiment.lm.path == str(tmp_path / "some" / "lm")


def test_a_run_whose_files_have_changed_is_neither_continued_nor_found_again(tmp_path: Path) -> None:
    (table := tmp_path / "rows.csv").write_text("input,output\na,b\n")
    (lm := tmp_path / "lm").mkdir()
    (lm / "config.json").write_text("{}")
    data = {"name": "table_icl", "test": [str(table)], "train": [str(table)]}
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    experiment = Experiment.model_validate(
        {**START, "data": data, "lm": {"path": str(lm)}, "output_dir": str(tmp_path)}
    )
    run.config.write_text(dump(experiment), encoding="utf-8")
    write_environment(run, experiment.model_dump(mode="json"), files=files_of(experiment))
    for file in (table, lm / "config.json"):
        before = file.read_text()
        file.write_text(before.replace("b", "c") + " ")
        with pytest.raises(ConfigError, match=f"{table if file == table else lm} is not what it was when the run in"):
            experiment_to_resume(run)
        assert find(experiment) == ("missing", None)
        file.write_text(before)  # at another time: what is in it counts
        assert experiment_to_resume(run).seed == 0
        assert find(experiment) == ("unfinished", run.path)
    table.unlink()  # as reading it says
    assert experiment_to_resume(run).seed == 0


@pytest.mark.parametrize(
    ("method", "key", "file"),
    [
        ({"name": "mend"}, "distiller", "config.json"),
        ({"name": "pool"}, "encoder", "config.json"),
        ({"name": "step_by_step"}, "teacher", "config.json"),
        ({"name": "mend"}, "init_from", "export/trained.safetensors"),
        ({"name": "pool"}, "init_from", "checkpoints/best.ckpt"),
        ({"name": "gist", "kl_weight": 1}, "teacher", "trained.safetensors"),
        ({"name": "gist"}, "init_from", "checkpoint.pt"),
    ],
)
def test_a_run_is_not_continued_with_another_teacher_distiller_encoder_or_start(
    tmp_path: Path, method: dict[str, Any], key: str, file: str
) -> None:
    read = tmp_path / "read" / file
    read.parent.mkdir(parents=True)
    read.write_text("a")
    named: Any = {"path": str(tmp_path / "read")} if file == "config.json" else str(tmp_path / "read")
    data = {"name": "toy_rationales"} if method["name"] == "step_by_step" else DATA
    tree = {**START, "method": {**method, key: named}, "data": data, "output_dir": str(tmp_path)}
    experiment = Experiment.model_validate(tree)
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text(dump(experiment), encoding="utf-8")
    write_environment(run, experiment.model_dump(mode="json"), files=files_of(experiment))
    if file.endswith(".safetensors"):
        (read.parent / "README.md").write_text("a note beside the tensors")
    assert experiment_to_resume(run).seed == 0
    read.write_text("b")
    with pytest.raises(ConfigError, match=rf"^{tmp_path / 'read'} is not what it was when the run in"):
        experiment_to_resume(run)
    assert find(experiment) == ("missing", None)


def test_later_starts_do_not_make_an_edit_the_original(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    edit(run, "trainer.devices", 2)
    write_environment(run, experiment_to_resume(run).model_dump(mode="json"))
    edit(run, "seed", 5)
    with pytest.raises(ConfigError, match=r"\(seed was 0 and is 5\)"):
        experiment_to_resume(run)


def test_a_run_of_an_older_version_has_no_record_or_fewer_keys(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    history = json.loads(run.environment.read_text())
    del history["history"][0]["config"]["optim"]["weight_decay"]
    run.environment.write_text(json.dumps(history))
    assert experiment_to_resume(run).optim.lr == 0.002  # the other key has its default, then and now
    edit(run, "optim.lr", 0.5)
    del history["history"][0]["config"]
    run.environment.write_text(json.dumps(history))
    assert experiment_to_resume(run).optim.lr == 0.5
    run.environment.unlink()
    assert experiment_to_resume(run).optim.lr == 0.5


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"history": [1]}', '{"history": 3}'])
def test_a_damaged_record_is_told(tmp_path: Path, text: str) -> None:
    run = started(tmp_path / "run")
    run.environment.write_text(text)
    with pytest.raises(ConfigError, match=r"environment\.json.* move it away"):
        experiment_to_resume(run)


def test_a_killed_run_is_not_continued_with_another_learning_rate(tiny_run: Run, run: Run, tmp_path: Path) -> None:
    assert tiny_run("run", "trainer.max_steps=2").returncode == 0
    results = tmp_path / "run" / "results.json"
    before = read_results(results).cost
    results.unlink()  # killed before it had any
    assert run("fit", "--resume", "run").returncode == 0
    after = read_results(results).cost  # of the whole training, of which nothing was left to do
    assert after.steps == before.steps == 2
    assert (after.train_seconds or 0) >= (before.train_seconds or 0) > 0
    assert (after.tokens_per_second or 0) > 0
    results.unlink()
    edit(RunDirectory(tmp_path / "run"), "optim.lr", 0.25)
    done = run("fit", "--resume", "run")
    assert done.returncode == 2
    assert "optim.lr was " in done.stderr
    assert "and is 0.25" in done.stderr
    again = run("fit", "--resume", "run", "--slurm", "slurm.partition=x", "--dry-run")
    assert again.returncode == 2


def test_only_children_of_a_run_learn_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with told_to_children(tmp_path / "a:b"):
        assert told_by_parent() is None  # this process has told it
        monkeypatch.setattr(os, "getppid", os.getpid)
        assert told_by_parent() == RunDirectory(tmp_path / "a:b")
    assert told_by_parent() is None


@pytest.mark.parametrize("stale", ["leaked", "1:leaked", ":leaked", "leaked:"])
def test_a_stale_environment_does_not_overrule_the_run_directory(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: str
) -> None:
    (tmp_path / "leaked" / "checkpoints").mkdir(parents=True)
    monkeypatch.setenv("PROMPTCOMP_RUN_DIRECTORY", stale)
    assert tiny_run("wanted", "trainer.max_steps=0", "method={name: no_prompt}").returncode == 0
    assert (tmp_path / "wanted" / "results.json").is_file()
    assert [path.name for path in (tmp_path / "leaked").iterdir()] == ["checkpoints"]


def test_a_lease_is_kept_by_the_first_process_while_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(rank, raising=False)
    with kept(tmp_path / "asked"):
        assert is_live(tmp_path / "asked")
    assert not (tmp_path / "asked").exists()
    monkeypatch.setenv("LOCAL_RANK", "1")
    with kept(tmp_path / "asked"):
        assert not (tmp_path / "asked").exists()


def test_an_edited_run_is_not_taken_for_one_of_what_it_says_now(tmp_path: Path) -> None:
    before, now = (
        Experiment.model_validate({**START, "optim": {"lr": lr}, "output_dir": str(tmp_path)}) for lr in (1e-3, 1e-2)
    )
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text(dump(before), encoding="utf-8")
    write_environment(run, before.model_dump(mode="json"))
    assert find(before) == ("unfinished", run.path)
    run.config.write_text(dump(now), encoding="utf-8")
    assert find(now) == find(before) == ("missing", None)


def test_a_run_that_patience_has_ended_is_not_trained_on(tiny_run: Run, run: Run, tmp_path: Path) -> None:
    words = ("trainer.patience=2", "trainer.eval_every=1", "optim.lr=1e-12", "evaluation.bounds=false")
    assert tiny_run("run", *words).returncode == 0
    series = (tmp_path / "run" / "metrics.csv").read_text()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["cost"]["steps"] == 3  # the first dev result, and two that are no better
    (tmp_path / "run" / "results.json").unlink()  # killed in the evaluation
    assert run("fit", "--resume", "run").returncode == 0
    assert (tmp_path / "run" / "metrics.csv").read_text() == series
    again = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (again["cost"]["steps"], again["splits"]) == (3, results["splits"])
