"""Runs in processes of their own: the words that start them, and waiting for their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from promptcomp.config import ConfigError
from promptcomp.errors import Exit
from promptcomp.experiment import load
from promptcomp.files import locked
from promptcomp.lease import is_live, lease_of, write_lease
from promptcomp.run.trial_process import FIT, Ended, WantedRun, attend, fit_words, is_busy
from promptcomp.stopping import Stop

WAITS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


def wanted(folder: Path, finished: Path | None = None) -> WantedRun:
    """A run that makes its directory itself."""
    return WantedRun(load("gist", None), folder / "run.yaml", folder / "lease.json", lambda: (finished, None))


def test_the_words_begin_or_continue(tmp_path: Path) -> None:
    experiment, run, config = load("gist", None), tmp_path / "run", tmp_path / "configs" / "run.yaml"
    (run / "checkpoints").mkdir(parents=True)  # a process that was killed early has left it
    assert fit_words(experiment, run, config) == [*FIT, "--config", str(config), "--run-dir", str(run)]
    assert not run.exists()
    assert load(None, config) == experiment
    assert fit_words(experiment, None, config) == [*FIT, "--config", str(config)]
    run.mkdir()
    (run / "notes.txt").touch()
    with pytest.raises(ConfigError, match="holds files but no run"):
        fit_words(experiment, run, config)
    (run / "config.yaml").touch()
    assert fit_words(experiment, run, config, ("trainer",)) == ["trainer", "--resume", str(run)]


def test_a_signal_is_passed_on(tmp_path: Path) -> None:
    """Whichever it is, the run is asked to save its state; what came decides how this process ends."""
    started, said = tmp_path / "started", list[str]()

    def stop_it() -> None:
        while not started.exists():
            threading.Event().wait(0.02)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    thread, stop = threading.Thread(target=stop_it), Stop()
    thread.start()
    with stop.installed():
        ended = attend(wanted(tmp_path), stop, said.append, command=(sys.executable, "-c", WAITS, str(started)))
    assert ended == Ended("interrupted", "stopped", Exit.PREEMPTED)
    assert said == ["new run"]
    thread.join()
    assert signal.getsignal(signal.SIGUSR1) is before
    assert not (tmp_path / "lease.json").exists()
    assert attend(wanted(tmp_path), stop, said.append).how == "interrupted", "nothing is begun after a signal"


def test_busy_is_what_another_process_has_locked(tmp_path: Path) -> None:
    config = tmp_path / "run" / "config.yaml"
    config.parent.mkdir()
    with locked(config):
        assert is_busy(config.parent)
    assert not is_busy(config.parent)
    config.rename(tmp_path / "elsewhere")
    config.symlink_to(tmp_path / "elsewhere")  # cannot be locked at all; the run says so
    assert not is_busy(config.parent)


@pytest.mark.parametrize(
    ("ends", "how", "code"),
    [
        ("sys.exit(3)", "failed", 3),
        ("sys.exit(2)", "config", 2),
        ("sys.exit(65)", "nan", 65),
        ("sys.exit(71)", "memory", 71),
        ("sys.exit(74)", "disk", 74),
        ("sys.exit(75)", "preempted", 75),
        ("sys.exit(130)", "interrupted", 130),
        ("sys.exit(0)", "failed", 0),
    ],
)
def test_an_exit_code_says_how_it_ended(tmp_path: Path, ends: str, how: str, code: int) -> None:
    ended = attend(wanted(tmp_path), Stop(), lambda _: None, command=(sys.executable, "-c", f"import sys; {ends}"))
    assert (ended.how, ended.code, ended.run) == (how, code, None)


def test_a_process_without_its_parent_is_waited_for(tmp_path: Path) -> None:
    orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write_lease(tmp_path / "lease.json", lease_of(orphan.pid))
    assert is_live(tmp_path / "lease.json")
    done: list[Path] = []
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "waiting" in text:
            done.append(tmp_path)
            orphan.communicate(b"\n")

    run = WantedRun(
        load("gist", None), tmp_path / "run.yaml", tmp_path / "lease.json", lambda: (done[0] if done else None, None)
    )
    assert attend(run, Stop(), say) == Ended("done", origin="reused", run=tmp_path)
    assert said == ["another process has it; waiting for that one", f"reusing {tmp_path}"]
