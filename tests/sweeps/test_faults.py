"""What a sweep survives: kill -9 of anything at any moment, two parents at once, a full disk."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from promptcomp.errors import Exit
from promptcomp.sweeps import worker as worker_module
from promptcomp.sweeps.repair import examine
from promptcomp.sweeps.study import begin, read_state
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.worker import work
from tests.forks import Fork
from tests.sweeps.helpers import FAKE, assert_exactly_once, run, starts, statuses, sweep_config


def fleet(*words: str) -> str:
    """Run the fleet; what it has printed."""
    with Fork("tests.sweeps.fleet", *words, env={"FAKE_SECONDS": "0.05", "FAKE_STEPS": "6"}) as process:
        printed = "".join(process.communicate(280))
    assert process.returncode == 0, printed
    return printed


def test_random_kills(tmp_path: Path) -> None:
    """Parents, workers and trainers are killed; the sweep is started again until it is finished."""
    printed = fleet(str(tmp_path / "sweep"), "10", "7")
    assert printed.count("kill -9") >= 5, printed  # a fast machine may be finished before the tenth
    directory = SweepDirectory(tmp_path / "sweep")
    state = read_state(directory)
    assert_exactly_once(state, 12)
    assert state.workers == 0
    examine(directory, repair=True)  # leases of the dead
    assert examine(directory) == []


def test_two_parents_at_once(tmp_path: Path) -> None:
    fleet("two", str(tmp_path / "sweep"))
    state = read_state(SweepDirectory(tmp_path / "sweep"))
    assert_exactly_once(state, 12)
    assert set(starts(tmp_path / "sweep").values()) == {1}
    assert examine(SweepDirectory(tmp_path / "sweep")) == []


def test_an_orphan_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer whose worker is gone goes on; its results are adopted, its run is not begun again."""
    monkeypatch.setenv("FAKE_SECONDS", "0.4")
    directory = SweepDirectory(tmp_path / "sweep")
    begin(sweep_config(space={"method.num_slots": {"values": [2]}}), directory, None, 1)
    dead = Fork("tests.sweeps.fleet", "worker", str(directory.path))
    while not list(directory.runs.glob("*/starts.txt")):
        time.sleep(0.02)
    dead.kill()
    assert statuses(read_state(directory)) == {"running": 1}, "the trainer itself keeps the lease"
    assert work(directory, command=FAKE) == 0
    state = read_state(directory)
    assert_exactly_once(state, 1)
    assert set(starts(directory.path).values()) == {1}
    assert state.trials[0].attempt == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost or torn, whether the worker sees it coming or a write fails."""
    directory, config = SweepDirectory(small_disk / "sweep"), sweep_config(seeds=2)
    begin(config, directory, None, 1)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (12 * 2**20))
    assert work(directory, command=FAKE) == Exit.NO_SPACE
    assert statuses(read_state(directory)) == {}
    filler.unlink()
    monkeypatch.setattr(worker_module, "_FREE", 64 * 1024)
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - 100 * 1024)  # enough to begin, not enough to finish
    assert work(directory, command=FAKE) == Exit.NO_SPACE
    filler.unlink()
    monkeypatch.undo()
    assert_exactly_once(run(config, directory.path), 4)
    examine(directory, repair=True)
    assert examine(directory) == []
