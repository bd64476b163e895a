"""Programs as forks of this process: most of the time of a small one is the reading of torch, which is done here.

What is about starting itself (launchers, imports, Ctrl-C in between) starts a new Python. That this process has
computed does no harm: on the CPU and with one thread (conftest.py) torch has no threads that a fork would miss.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from promptcomp.run.forking import fork_module
from promptcomp.sweeps.running import run_sweep
from promptcomp.sweeps.sweep_directory import SweepDirectory


class Fork:
    """`python -m WORDS`, with what tests ask of a `subprocess.Popen`; what it prints goes into files.

    Args:
        words: the module and its words; ranks that it starts itself are new Pythons.
        folder: its working directory; None: this one.
        env: what differs in its environment.
    """

    def __init__(self, *words: str, folder: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        assert not torch.distributed.is_initialized(), "a group of processes cannot be shared with a fork"
        self._printed = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115  # as long as this object
        for file in self._printed:
            weakref.finalize(self, file.close)
        out, err = (file.fileno() for file in self._printed)
        with contextlib.chdir(folder or Path.cwd()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # this process may take them for errors
            self._process = fork_module(words, {**os.environ, **(env or {})}, out, err)
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code as far as it was asked for."""
        return self._process.returncode

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def printed(self) -> tuple[str, str]:
        """Standard output and standard error until now."""
        out, err = (os.pread(file.fileno(), 1 << 24, 0).decode() for file in self._printed)
        return out, err

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it has printed in the end.

        Raises:
            subprocess.TimeoutExpired: it has not ended by then.
        """
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a fork", timeout, *self.printed())  # type: ignore[arg-type]
            time.sleep(0.05)
        return self.printed()

    def wait(self, timeout: float = 300) -> int:
        """Its exit code, once it has ended."""
        self.communicate(timeout)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill -9, and wait for the end."""
        self.send_signal(signal.SIGKILL)
        self.communicate()

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def fork_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps of this process fork their workers; tests/cli/test_sweep.py starts one as people do."""

    def start(directory: SweepDirectory, number: int, devices: object, env: Mapping[str, str], log: object) -> Fork:
        return Fork("promptcomp", "sweep", "work", str(directory.path), "--worker", str(number), env=env)

    assert run_sweep.__kwdefaults__ is not None
    monkeypatch.setitem(run_sweep.__kwdefaults__, "start", start)


def run_fork(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run`, with what it prints."""
    with Fork(*words, folder=folder) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode or 0, out, err)
