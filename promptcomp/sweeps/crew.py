"""The workers of one `promptcomp sweep`: started, watched, replaced when they die, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import optuna

from promptcomp.config import ConfigError
from promptcomp.errors import Exit
from promptcomp.files import open_append
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.stopping import PARENT_VARIABLE
from promptcomp.sweeps.storage import STORAGE_VARIABLE
from promptcomp.sweeps.study import StateReader
from promptcomp.sweeps.sweep_directory import SweepDirectory

_LOOK_EVERY = 0.1  # seconds
_SHOW_EVERY = 0.5
_RESTARTS = 3
"""Times that a worker may die without any trial having been finished in between."""
_PATIENCE = 150.0  # seconds that workers have to end once they are asked to


class Process(Protocol):
    """What is asked of a worker's process (a `subprocess.Popen` has it)."""

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""

    def wait(self) -> int:
        """Its exit code, once it has ended."""

    def kill(self) -> None:
        """End it at once."""

    def send_signal(self, sig: int) -> None:
        """Send it a signal."""


Start = Callable[[SweepDirectory, int, tuple[str, ...], Mapping[str, str], Path], Process]
"""Begins a worker: directory, its number, its devices, its environment, its log."""


@dataclass(slots=True)
class _Member:
    number: int
    devices: tuple[str, ...]
    process: Process
    deaths: int = 0
    finished: int = 0
    """Trials that were finished when it was last started."""
    is_over: bool = False


def start_process(
    directory: SweepDirectory, number: int, devices: tuple[str, ...], env: Mapping[str, str], log: Path
) -> Process:
    """Begin a worker as a process of its own session."""
    words = [sys.executable, "-m", "promptcomp", "sweep", "work", str(directory.path), "--worker", str(number)]
    if devices:
        words += ["--devices", ",".join(devices)]
    with open_append(log) as file:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
        )


class Crew:
    """The workers of one `promptcomp sweep`.

    Args:
        directory: the sweep's.
        shares: devices of each worker.
        secret: a database's address with its password.
        say: is told what happens to workers.
        start: begins a worker; None: a process with this Python.
    """

    def __init__(
        self,
        directory: SweepDirectory,
        shares: Sequence[tuple[str, ...]],
        secret: str | None,
        say: Callable[[str], None],
        start: Start | None = None,
    ) -> None:
        self._directory, self._secret, self._say = directory, secret, say
        self._begin = start or start_process
        self._count = len(shares)
        self._members = [_Member(i, share, self._start(i, share)) for i, share in enumerate(shares)]
        self._signals = 0
        self.problem: str | None = None

    @property
    def stopped(self) -> bool:
        """A signal has come."""
        return self._signals > 0

    def log_of(self, number: int) -> Path:
        """What a worker prints."""
        return self._directory.logs / f"worker-{socket.gethostname()}-{number}.log"

    def _start(self, number: int, devices: tuple[str, ...]) -> Process:
        env = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
        if self._secret is not None:
            env[STORAGE_VARIABLE] = self._secret
        if self._count > 1:  # several torch processes that each take all cores get in each other's way
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self._count)))
        return self._begin(self._directory, number, devices, env, self.log_of(number))

    def stop(self) -> None:
        """Have all workers end; a second call ends their trials without a checkpoint."""
        self._signals += 1
        self._tell_all(signal.SIGTERM)

    def watch(self, reader: StateReader, on_state: Callable[[SweepState], None] | None) -> None:
        """Until all workers have ended: restart those that die, show the state."""
        shown, state = 0.0, None
        pause = _SHOW_EVERY
        while not self.stopped:
            now = time.monotonic()
            if now - shown >= pause:
                state = self._read(reader) or state
                if state is not None and on_state is not None:
                    on_state(state)
                self._look_after(state)
                shown = time.monotonic()
                pause = max(_SHOW_EVERY, 10 * (shown - now))  # a large sweep takes a while to read
            if all(member.is_over for member in self._members):
                return
            time.sleep(_LOOK_EVERY)

    def _read(self, reader: StateReader) -> SweepState | None:
        try:
            return reader.read()
        except (OSError, ConfigError, optuna.exceptions.StorageInternalError):
            return None  # a database that is away for a moment; what does not pass, the workers say

    def _look_after(self, state: SweepState | None) -> None:
        trials = () if state is None else state.trials
        finished = sum(trial.status in ("finished", "pruned") for trial in trials)
        for member in self._members:
            code = member.process.poll()
            if member.is_over or code is None:
                continue
            if code in (Exit.FINISHED, Exit.INTERRUPTED, Exit.PREEMPTED):
                member.is_over = True
            elif code in (Exit.MISTAKE, Exit.NO_SPACE):
                member.is_over = True
                self.problem = self._last_line(member.number)
            else:
                self._restart(member, code, finished)

    def _restart(self, member: _Member, code: int, finished: int) -> None:
        member.deaths = member.deaths + 1 if finished <= member.finished else 1
        member.finished = finished
        if member.deaths > _RESTARTS:
            member.is_over = True
            self.problem = (
                f"worker {member.number} died {member.deaths} times without finishing a trial, last with exit code "
                f"{code}; see {self.log_of(member.number)}"
            )
            return
        self._say(f"worker {member.number} died (exit code {code}); another one takes its place")
        member.process = self._start(member.number, member.devices)

    def _last_line(self, number: int) -> str:
        try:
            lines = self.log_of(number).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        line = next((line.strip() for line in reversed(lines) if line.strip()), "nothing was printed")
        return line.removeprefix("error: ")

    def _tell_all(self, number: int) -> None:
        for member in self._members:
            with contextlib.suppress(ProcessLookupError):
                member.process.send_signal(number)

    def end(self) -> None:
        """Have all workers ended: asked first, killed when they do not."""
        if any(member.process.poll() is None for member in self._members) and not self.stopped:
            self._tell_all(signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        while any(member.process.poll() is None for member in self._members) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY)
        for member in self._members:
            if member.process.poll() is None:
                member.process.kill()
            member.process.wait()
