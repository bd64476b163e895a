"""`fit --with-controls` on two processes: every trained run is a program of its own; kills in the middle."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forks import Fork, run_fork

WORDS = (
    "fit", "--method", "mend", "--with-controls", "method={name: full_prompt, train: lm}", "trainer.accelerator=cpu",
    "trainer.threads=1", "trainer.batch_size=4", "trainer.devices=2", "trainer.checkpoint_every=3",
    "trainer.eval_every=100000", "data.queries_per_context=2", "data.num_demonstrations=2",
    "data.world.num_test_tasks=2", "data.world.num_dev_tasks=2", "data.world.num_queries=2",
    "evaluation.measure_cost=false", "evaluation.bootstrap_resamples=100", "evaluation.splits=[test]",
    "evaluation.generate=false",
)  # fmt: skip


def command(folder: Path, steps: int, *more: str) -> list[str]:
    return ["promptcomp", *WORDS, f"output_dir={folder}", f"trainer.max_steps={steps}", *more]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_killed_and_continued(tmp_path: Path) -> None:
    """The trainer is killed; the same command goes on to the end (a stop: tests/cli/test_controls.py)."""
    words = command(tmp_path, 24, "--json")
    with Fork(*words) as first:
        _until(lambda: list(tmp_path.glob("full_prompt-*/checkpoints/last.ckpt")), first)
        (trainer,) = _children(first.pid)
        os.kill(trainer, signal.SIGKILL)
        _, text = first.communicate()
    assert first.returncode == 1
    assert "was killed by signal 9" in text
    assert "the same command continues it" in text
    assert "Traceback" not in text

    done = run_fork(*words)
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)["controls"]
    how = {role: found["how"] for role, found in points["runs"].items()}
    assert how["method"] == "resumed"
    assert how["full_prompt_trained"] == "reused"  # the same run
    assert how["no_prompt_trained"] == "made"
    for role in ("method", "no_prompt_trained"):
        folder = Path(points["runs"][role]["run"])
        assert json.loads((folder / "results.json").read_text())["cost"]["steps"] == 24
    assert (Path(points["runs"]["method"]["run"]) / "controls.json").is_file()
    assert len([path for path in tmp_path.iterdir() if (path / "results.json").is_file()]) == 4


def test_mistakes_are_told_once(tmp_path: Path) -> None:
    done = run_fork(*command(tmp_path, 2, "lm.path=nowhere/at/all"))
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1, done.stderr
    assert not list(tmp_path.glob("full_prompt-*"))
    done = run_fork(*command(tmp_path, 2, "trainer.num_nodes=2"))
    assert done.returncode == 2
    assert "trainer.num_nodes=2" in done.stderr
    assert "this machine alone" in done.stderr


def _children(pid: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _until(there: Callable[[], object], process: Fork, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
