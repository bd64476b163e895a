"""A worker forks its trials: each is a process of its own, which is killed and stopped alone."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from promptcomp.experiment import load
from promptcomp.lease import is_live, read_lease
from promptcomp.run.forking import can_fork
from promptcomp.sweeps.repair import examine
from promptcomp.sweeps.study import begin, read_state
from promptcomp.sweeps.sweep_directory import SweepDirectory
from tests.forks import Fork
from tests.sweeps.helpers import sweep_config

SMALL = {
    "data.num_demonstrations": 4, "data.queries_per_context": 2, "data.world.num_test_tasks": 4,
    "data.world.num_dev_tasks": 4, "data.world.num_queries": 4, "trainer.max_steps": 60, "trainer.batch_size": 2,
    "trainer.eval_every": 20, "trainer.checkpoint_every": 10, "trainer.accelerator": "cpu", "trainer.threads": 1,
    "evaluation.bootstrap_resamples": 100, "evaluation.measure_cost": False, "evaluation.bounds": False,
}  # fmt: skip


def wait_for(found: Callable[[], list[Path]]) -> Path:
    """The first path that appears."""
    deadline = time.monotonic() + 120
    while not (paths := found()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return paths[0]


@pytest.mark.skipif(sys.platform != "linux", reason="trials are forked on Linux only")
def test_forked_trials_are_killed_and_stopped_alone(tmp_path: Path) -> None:
    config = sweep_config(set=SMALL, objectives=[{"metric": "method"}])
    directory = SweepDirectory(tmp_path / "sweep")
    begin(config, directory, None, 1)
    worker = Fork("promptcomp", "sweep", "work", str(directory.path))
    first = wait_for(lambda: list(directory.runs.glob("*/checkpoints/last.ckpt"))).parents[1]
    found = read_lease(next(path for path in directory.leases.glob("*.json") if is_live(path)))
    assert found is not None
    command = Path(f"/proc/{found.pid}/cmdline").read_bytes()
    assert command == Path(f"/proc/{worker.pid}/cmdline").read_bytes(), "a fork, no new Python"
    assert os.getsid(found.pid) == found.pid
    assert {Path(f"/proc/{found.pid}/fd/{number}").resolve() for number in (1, 2)} == {directory.log_of(first.name)}
    os.kill(found.pid, signal.SIGKILL)
    second = wait_for(
        lambda: [path for path in directory.runs.glob("*/checkpoints/last.ckpt") if first not in path.parents]
    ).parents[1]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == 130
    state = read_state(directory)
    found_states = {trial.run: (trial.status, trial.attempt) for trial in state.trials}
    assert found_states == {first: ("finished", 2), second: ("waiting", 1)}
    assert next(trial.step for trial in state.trials if trial.run == first) == 60
    assert "resumed" in (first / "log.txt").read_text()
    assert not list(directory.leases.glob("*.json"))
    assert examine(directory) == []


@pytest.mark.parametrize(("devices", "nodes", "forks"), [(1, 1, True), (2, 1, True), (2, 2, False)])
def test_which_trials_are_forked(devices: int, nodes: int, forks: bool) -> None:
    settings = [f"trainer.devices={devices}", f"trainer.num_nodes={nodes}", "trainer.accelerator=cpu"]
    assert can_fork(load("gist", None, settings)) is (forks and sys.platform == "linux")
