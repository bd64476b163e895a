"""`fit`, `evaluate` and `compare` on a tiny random LM: the run directory, stopping, resuming, faults."""

from __future__ import annotations

import csv
import errno
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from promptcomp.checkpoints.checkpoint_files import step_of
from promptcomp.lightning_modules.base import CompressionModule
from tests.cli.conftest import Run


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """The trained tensors of the last checkpoint."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def series(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without empty cells."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send SIGINT to this process in the middle of the forward pass of a step."""
    original = CompressionModule.training_step
    sent = []

    def stepping(self: CompressionModule, batch: Any, batch_idx: int) -> Any:
        if self.global_step == step and not sent:
            sent.append(batch_idx)
            signal.raise_signal(signal.SIGINT)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(CompressionModule, "training_step", stepping)


def test_run_directory_and_results(tiny_run: Run, run: Run, tmp_path: Path) -> None:
    done = tiny_run("one")
    assert done.returncode == 0, done.stderr
    for name in ("no demonstrations", "MEND", "full demonstrations", "compression", "run directory"):
        assert name in done.stdout
    found = {path.name for path in (tmp_path / "one").iterdir()}
    expected = {"config.yaml", "environment.json", "metrics.csv", "predictions.jsonl", "checkpoints", "results.json"}
    assert found == expected | {"log.txt", "export", "examples.jsonl", "report.html", "tensorboard"}
    page = (tmp_path / "one" / "report.html").read_text()
    shown = [json.loads(line) for line in (tmp_path / "one" / "examples.jsonl").read_text().splitlines()]
    assert [each["why"] for each in shown] == ["best", "best", "worst", "worst", "random", "random"] * 2
    assert all("=>" in each["context"] and each["query"] and each["answer"] for each in shown)
    assert all(each["query"] in page for each in shown)
    assert done.stdout.index("MEND") < done.stdout.index("test: new tasks") < done.stdout.index("test: 16 examples")
    assert "as a page      one/report.html" in done.stdout
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    several = run("report", "one", "two", "-o", "both.html", "--json")
    assert json.loads(several.stdout) == {"page": "both.html"}, several.stderr
    assert "<h1>2 runs</h1>" in (tmp_path / "both.html").read_text()
    (tmp_path / "mine.html").write_text("mine")
    refused = run("report", "one", "-o", "mine.html")
    assert (refused.returncode, (tmp_path / "mine.html").read_text()) == (2, "mine")
    assert "is no page of promptcomp" in refused.stderr
    exported = load_file(tmp_path / "one" / "export" / "trained.safetensors")
    assert exported.keys() == tensors(tmp_path / "one").keys()
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert results["schema"] == 1
    assert set(results["splits"]) == {"test", "test_hard"}
    assert results["splits"]["test"]["count"] == 16
    assert results["size"]["memory_slots"] == 2
    assert results["cost"]["steps"] == 8
    assert len((tmp_path / "one" / "predictions.jsonl").read_text().splitlines()) == 32


def test_the_written_configuration_repeats_the_run(tiny_run: Run, run: Run, tmp_path: Path) -> None:
    assert tiny_run("one").returncode == 0
    assert run("fit", "--config", "one/config.yaml", "--run-dir", "two").returncode == 0
    first, second = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "one/predictions.jsonl").read_text() == (tmp_path / "two/predictions.jsonl").read_text()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stopped_run_resumes_bit_for_bit(
    tiny_run: Run, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    options = (f"trainer.accumulate={accumulate}", "trainer.max_steps=12")
    assert tiny_run("whole", *options).returncode == 0
    whole, first = tmp_path / "whole", tensors(tmp_path / "whole")
    assert [row["step"] for row in series(whole)] == ["3", "6", "9", "10", "12"]
    for step in (0, 2, 3, 10):  # 2: right after it comes a dev evaluation
        part = tmp_path / f"part{step}"
        with monkeypatch.context() as patch:
            signal_at(patch, step)
            stopped = tiny_run(part.name, *options)
        assert stopped.returncode == 130
        assert f"promptcomp fit --resume {part.name}" in stopped.stdout
        assert not (part / "results.json").exists()
        resumed = run("fit", "--resume", part.name)
        assert resumed.returncode == 0, resumed.stderr
        second = tensors(part)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), step
        assert series(whole) == series(part)
        assert (whole / "predictions.jsonl").read_text() == (part / "predictions.jsonl").read_text()


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_resumed_run_may_divide_its_steps_otherwise(
    tiny_run: Run, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    options = ("method={name: prompt_tuning, num_slots: 2, share: shared}", "trainer.eval_every=2", "optim.lr=0.1")
    assert tiny_run("whole", *options).returncode == 0
    with monkeypatch.context() as patch:
        signal_at(patch, 2)
        assert tiny_run("part", *options, f"trainer.accumulate={before}").returncode == 130
    assert step_of(tmp_path / "part" / "checkpoints" / "last.ckpt") % 2
    resumed = run("fit", "--resume", "part", f"trainer.accumulate={after}")
    assert resumed.returncode == 0, resumed.stderr
    whole, part = series(tmp_path / "whole"), series(tmp_path / "part")
    assert [row["step"] for row in part] == [row["step"] for row in whole] == ["2", "4", "6", "8"]
    for one, two in zip(whole, part, strict=True):
        assert float(two["dev/loss"]) == pytest.approx(float(one["dev/loss"]), rel=1e-5), one["step"]


@pytest.mark.parametrize("hidden", [False, True])
def test_a_full_disk_keeps_the_checkpoint_before(
    tiny_run: Run, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: bool
) -> None:
    save, calls = torch.save, []

    def failing(value: Any, file: Any) -> None:
        calls.append(file)
        if len(calls) != 3:
            save(value, file)
            return
        try:
            raise OSError(errno.ENOSPC, "No space left on device", str(file.name))
        finally:
            if hidden:  # as torch's zip writer does on a disk that is really full
                raise RuntimeError("unexpected pos 64 vs 0")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", failing)
        done = tiny_run("run")
    assert done.returncode == 74
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    assert tensors(tmp_path / "run")
    assert run("fit", "--resume", "run").returncode == 0
    assert (tmp_path / "run" / "results.json").is_file()


def test_a_loss_that_is_not_finite_ends_with_one_message(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done = tiny_run("run", "optim.lr=1e30", "optim.clip_norm=null")
    assert done.returncode == 65
    assert "is not finite" in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluate_writes_beside_the_run(tiny_run: Run, run: Run, tmp_path: Path) -> None:
    assert tiny_run("one").returncode == 0
    before = (tmp_path / "one" / "results.json").read_text()
    done = run("evaluate", "one", "evaluation.splits=[test]", "data.perturbation=wrong_labels", "--output", "again")
    assert done.returncode == 0, done.stderr
    assert set(json.loads((tmp_path / "again" / "results.json").read_text())["splits"]) == {"test"}
    assert (tmp_path / "one" / "results.json").read_text() == before
    done = run("evaluate", "one", "trainer.accelerator=mps")
    assert done.stderr == "error: trainer.accelerator=mps: this machine has none; use trainer.accelerator=cpu\n"
    assert not (tmp_path / "one" / "evaluations").exists()
    same = run("evaluate", "one", "--json")
    assert json.loads(same.stdout)["results"]["splits"] == json.loads(before)["splits"]


def test_a_run_that_is_refused_when_its_models_are_opened_leaves_no_folder(tiny_run: Run, tmp_path: Path) -> None:
    assert tiny_run("one", "trainer.max_steps=1").returncode == 0
    for words in (["method.init_from=one", "method.num_slots=3"], ["lm.dtype=float16"]):
        for _ in range(2):  # the second call is told the same, and not to resume
            refused = tiny_run("two", *words)
            assert refused.returncode == 2
            assert "--resume" not in refused.stderr, refused.stderr
        assert not (tmp_path / "two").exists()
    assert tiny_run("two", "method.init_from=one", "trainer.max_steps=1").returncode == 0


def test_compare_ranks_and_refuses(tiny_run: Run, run: Run) -> None:
    assert tiny_run("one").returncode == 0
    assert tiny_run("two", "seed=1").returncode == 0
    assert tiny_run("other", "data.world.num_test_tasks=3").returncode == 0
    done = run("compare", "one", "two")
    assert done.returncode == 0, done.stderr
    assert "one" in done.stdout
    as_json = run("compare", "one", "two", "--format", "json").stdout
    assert json.loads(as_json)
    assert run("compare", "one", "two", "--json").stdout == as_json
    refused = run("compare", "one", "other")
    assert refused.returncode == 2
    assert "other" in refused.stderr
    assert run("compare", "one", "other", "--allow-different").returncode == 0
    assert run("compare", "one", "--format", "xml").returncode == 2


def test_a_checkpoint_of_another_shape_is_refused(tiny_run: Run, run: Run, tmp_path: Path) -> None:
    assert tiny_run("one").returncode == 0
    done = run("evaluate", "one", "method.num_slots=3")
    assert done.returncode == 2
    assert "slots" in done.stderr
    config = (tmp_path / "one" / "config.yaml").read_text()
    (tmp_path / "one" / "config.yaml").write_text(config.replace("num_slots: 2", "num_slots: 3"))
    assert run("fit", "--resume", "one").returncode == 2


def test_a_torn_checkpoint_is_named(tiny_run: Run, run: Run, tmp_path: Path) -> None:
    assert tiny_run("one").returncode == 0
    last = tmp_path / "one" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    done = run("fit", "--resume", "one")
    assert done.returncode == 2
    assert "last.ckpt" in done.stderr


def test_a_run_directory_in_use_is_refused(tiny_run: Run) -> None:
    assert tiny_run("one", "trainer.max_steps=1").returncode == 0
    done = tiny_run("one")
    assert done.returncode == 2
    assert "--resume" in done.stderr


@pytest.mark.parametrize("method", ["full_prompt", "no_prompt"])
def test_controls_need_no_training(run: Run, tiny_lm: Path, method: str) -> None:
    done = run(
        "fit", "--method", method, "--json", f"lm.path={tiny_lm}", "data.num_demonstrations=4",
        "data.world.num_test_tasks=3", "data.world.num_queries=3", "evaluation.measure_cost=false",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    test = json.loads(done.stdout)["results"]["splits"]["test"]
    assert test["method"] == test[method]


def test_stage_1_on_text_starts_stage_2(run: Run, tiny_run: Run, tiny_lm: Path, tmp_path: Path) -> None:
    words = "we like cat . the dog again . about lion today . my hammer is red . so happy today . "
    (tmp_path / "text.txt").write_text("\n\n".join(words * n for n in range(2, 10)))
    (tmp_path / "stage1.yaml").write_text(
        "method: {name: mend, stage: pretrain, num_slots: 2, projection: linear}\n"
        f"lm: {{path: {tiny_lm}}}\n"
        "data: {name: text, paths: [text.txt], max_tokens: 64, min_tokens: 8, dev_documents: 2}\n"
        "trainer: {max_steps: 4, batch_size: 2, eval_every: 2, accelerator: cpu}\n"
        "evaluation: {bootstrap_resamples: 100, measure_cost: false}\n"
    )
    done = run("fit", "--config", "stage1.yaml", "--run-dir", "stage1")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "stage1" / "results.json").read_text())
    assert results["splits"]["dev"]["metric"] == "loss"
    assert tiny_run("stage2", "method.init_from=stage1", "trainer.max_steps=0").returncode == 0
    assert run("evaluate", "stage2").returncode == 0
    first = torch.load(tmp_path / "stage1" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert tiny_run("stage3", "method.init_from=stage1", "optim.lr=1e-30", "trainer.max_steps=1").returncode == 0
    assert all(torch.equal(first[name], value) for name, value in tensors(tmp_path / "stage3").items())
    other = tiny_run("other", "method.init_from=stage1", "method.num_slots=3")
    assert other.returncode == 2
    assert "slots" in other.stderr


def test_free_form_tasks_are_selected_by_loss(run: Run, tiny_lm: Path, tmp_path: Path) -> None:
    rows = [{"task": f"t{n % 4}", "input": f"we like cat {n}", "output": "the dog again"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text(
        f"method: {{name: mend, num_slots: 2}}\nlm: {{path: {tiny_lm}}}\n"
        "data: {name: table_icl, train: [rows.jsonl], test: [rows.jsonl], num_demonstrations: 3, dev_share: 0.3,\n"
        "  separator: arrow, max_example_tokens: 32}\n"
        "trainer: {max_steps: 3, batch_size: 2, eval_every: 2, accelerator: cpu}\n"
        "evaluation: {bootstrap_resamples: 100, measure_cost: false}\n"
    )
    done = run("fit", "--config", "own.yaml", "--run-dir", "one", "--json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one" / "checkpoints" / "best.ckpt").is_file()
    assert json.loads(done.stdout)["results"]["splits"]["test"]["metric"] == "loss"


def test_slots_that_leave_no_room_for_the_query_are_refused(tiny_run: Run) -> None:
    done = tiny_run("one", "method.num_slots=250", "method.max_chunk_tokens=4", "data.num_demonstrations=2")
    assert done.returncode == 2
    assert "window" in done.stderr
    assert "Traceback" not in done.stderr
    shared = tiny_run("two", "method={name: prompt_tuning, num_slots: 250, share: shared}")
    assert shared.returncode == 2
    assert "method.num_slots" in shared.stderr


def test_a_dry_run_counts_the_prompt_of_every_task(run: Run) -> None:
    words = ("prompt_tuning", "method.share=per_task", "method.num_slots=2", "--dry-run", "--json")
    parts = {part["name"]: part for part in json.loads(run("fit", *words).stdout)["estimate"]["parts"]}
    tasks = parts["prompts"]["trained"] / (2 * 96)  # the toy decoder's width
    assert tasks == 320  # of training, dev and test
