"""Runs in processes of their own: the words that start them, and waiting for their end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from promptcomp.config import ConfigError
from promptcomp.experiment import load
from promptcomp.files import locked
from promptcomp.run.child import FIT, attend, fit_words, starts_processes

WAITS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


def test_the_words_begin_or_continue(tmp_path: Path) -> None:
    experiment, run, config = load("gist", None), tmp_path / "run", tmp_path / "configs" / "run.yaml"
    (run / "checkpoints").mkdir(parents=True)  # a process that was killed early has left it
    assert fit_words(experiment, run, config) == [*FIT, "--config", str(config), "--run-dir", str(run)]
    assert not run.exists()
    assert load(None, config) == experiment
    assert fit_words(experiment, None, config) == [*FIT, "--config", str(config)]
    run.mkdir()
    (run / "notes.txt").touch()
    with pytest.raises(ConfigError, match="is in the way"):
        fit_words(experiment, run, config)
    (run / "config.yaml").touch()
    assert fit_words(experiment, run, config, ("trainer",)) == ["trainer", "--resume", str(run)]


def test_a_signal_is_passed_on(tmp_path: Path) -> None:
    started = tmp_path / "started"

    def stop() -> None:
        while not started.exists():
            threading.Event().wait(0.02)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    thread = threading.Thread(target=stop)
    thread.start()
    assert attend([sys.executable, "-c", WAITS, str(started)]) == (75, signal.SIGUSR1)
    thread.join()
    assert signal.getsignal(signal.SIGUSR1) is before
    assert attend([sys.executable, "-c", "raise SystemExit(3)"]) == (3, None)


def test_a_program_keeps_a_lock(tmp_path: Path) -> None:
    """As long as it lives, whatever happens to who has started it."""
    leaves = "import subprocess, sys; subprocess.Popen(['sleep', sys.argv[2]], pass_fds=[int(sys.argv[1])])"
    with locked(tmp_path / "lock") as lock:
        assert attend([sys.executable, "-W", "ignore", "-c", leaves, str(lock), "1"], keep=[lock])[0] == 0
    with pytest.raises(ConfigError, match="in use"), locked(tmp_path / "lock"):
        pass
    waited: list[bool] = []
    with locked(tmp_path / "lock", lambda: waited.append(True)):
        assert waited


@pytest.mark.parametrize(
    ("override", "apart"),
    [
        ("trainer.devices=1", False),
        ("trainer.devices=2", True),
        ("trainer.strategy=ddp", True),
        ("trainer.max_steps=0", False),
    ],
)
def test_which_runs_start_processes(override: str, apart: bool) -> None:
    settings = ["trainer.accelerator=cpu", "trainer.devices=1" if apart is False else "trainer.devices=auto", override]
    assert starts_processes(load("gist", None, settings)) is apart
