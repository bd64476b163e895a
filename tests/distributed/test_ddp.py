"""Gloo processes, started by the real program and by torchrun, train as one does; faults end them all."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.distributed.trajectories import start
from tests.forks import Fork, run_fork

WORDS = (
    "fit", "--method", "mend", "trainer.accelerator=cpu", "trainer.threads=1", "trainer.batch_size=4",
    "trainer.eval_every=2", "method.num_slots=2", "data.queries_per_context=2", "data.num_demonstrations=4",
    "data.world.num_test_tasks=3", "data.world.num_dev_tasks=3", "data.world.num_queries=3",
    "evaluation.measure_cost=false", "evaluation.bootstrap_resamples=100",
)  # fmt: skip


def command(run: Path, *more: str, steps: int = 3) -> list[str]:
    return ["promptcomp", *WORDS, f"trainer.max_steps={steps}", "--run-dir", str(run), *more]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    done = run_fork(*command(run))
    assert done.returncode == 0, done.stderr
    return run


def agree(one: Path, two: Path) -> None:
    """The same steps, weights and results."""
    first, second = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, two))
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for name, value in first["state_dict"].items():
        # AdamW turns the rounding of a gradient near 0 into a visible part of a step (here at most 1e-3)
        torch.testing.assert_close(second["state_dict"][name], value, rtol=1e-4, atol=5e-4)
    rows = [list(csv.DictReader((run / "metrics.csv").read_text().splitlines())) for run in (one, two)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    assert float(rows[0][0]["dev/loss"]) == pytest.approx(float(rows[1][0]["dev/loss"]), rel=1e-4)
    results = [json.loads((run / "results.json").read_text()) for run in (one, two)]
    for split in ("test", "test_hard"):
        ours, theirs = (result["splits"][split] for result in results)
        assert {key: ours[key] for key in ("count", "method", "full_prompt", "no_prompt")} == {
            key: theirs[key] for key in ("count", "method", "full_prompt", "no_prompt")
        }


def test_two_processes_give_one_trajectory(alone: Path, tmp_path: Path) -> None:
    """Started by the program itself, with FSDP; DDP in the next test."""
    words = command(tmp_path / "two", "trainer.devices=2", "trainer.strategy=fsdp")
    done = run_fork(*words)
    assert done.returncode == 0, done.stderr
    assert "srun" not in done.stderr
    assert done.stdout.count("run directory") == 1
    agree(alone, tmp_path / "two")


def test_torchrun(alone: Path, tmp_path: Path) -> None:
    """The ranks meet before there is a directory; rank 0 makes it for all and says who ran."""
    words = [*WORDS, "trainer.max_steps=3", "trainer.devices=2", "name=two", f"output_dir={tmp_path}"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "promptcomp"]
    done = subprocess.run([*launch, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.iterdir()
    assert (run / "environment.json").is_file()
    agree(alone, run)


def test_processes_with_different_configurations_end_before_there_is_a_run(tmp_path: Path) -> None:
    ranks = []
    for rate in ("1e-3", "2e-3"):
        more = ["trainer.devices=2", "trainer.max_steps=3", f"output_dir={tmp_path}", f"optim.lr={rate}"]
        ranks.append([*WORDS, *more])
    processes = start("promptcomp", 2, *ranks[0], each=ranks)
    for process in processes:
        printed = "".join(process.communicate())
        assert process.returncode == 2, printed
        assert "different configurations: optim.lr is 0.001 on rank 0 and 0.002 on rank 1" in printed
        assert "Traceback" not in printed
    assert not list(tmp_path.iterdir())


def test_a_method_without_training_runs_once(tmp_path: Path) -> None:
    more = [*WORDS, "trainer.devices=2", "method={name: full_prompt}", f"output_dir={tmp_path}", "trainer.max_steps=0"]
    processes = start("promptcomp", 2, *more)
    printed = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert len(list(tmp_path.glob("*/results.json"))) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("victim", ["first", "second"])
def test_when_one_process_is_killed_the_other_ends(tmp_path: Path, victim: str) -> None:
    run = tmp_path / "run"
    words = command(run, "trainer.devices=2", "trainer.eval_every=100000", "trainer.checkpoint_every=2", steps=100000)
    with Fork(*words) as first:
        _wait(lambda: (run / "checkpoints" / "last.ckpt").exists(), 200)
        (second,) = [int(number) for number in _children(first.pid)]
        killed, other = (first.pid, second) if victim == "first" else (second, first.pid)
        os.kill(killed, signal.SIGKILL)
        _wait(lambda: first.poll() is not None and not _is_running(other), 90)
        if victim == "second":
            assert first.returncode == 1
            text = first.printed()[1]
            assert "another process of this run has ended" in text or "was killed by signal 9" in text
            assert "Traceback" not in text


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait(condition: object, seconds: float) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
