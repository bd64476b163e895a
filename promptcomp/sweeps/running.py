"""`promptcomp sweep`: begins or continues a sweep, starts workers, watches them, shows how it goes."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console
from sqlalchemy.exc import DBAPIError

from promptcomp.config import ConfigError
from promptcomp.errors import Exit, NoSpace
from promptcomp.files import last_line, open_append
from promptcomp.lease import STORAGE_VARIABLE
from promptcomp.plain import say
from promptcomp.stopping import Stop
from promptcomp.sweeps.checking import first_point
from promptcomp.sweeps.space import devices_of, experiment_of
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.storage import DAMAGE, PARENT_VARIABLE
from promptcomp.sweeps.study import Sweep, begin, read_state
from promptcomp.sweeps.sweep_config import SweepConfig
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.views.numbers import Progress

_LOOK_EVERY = 0.1  # seconds
_SHOW_EVERY = 0.5
_RESTARTS = 3
"""Times that a worker may die without any trial having been finished in between."""
_PATIENCE = 150.0  # seconds that workers have to end once they are asked to


Start = Callable[[SweepDirectory, int, tuple[str, ...], Mapping[str, str], Path], Any]
"""Begins a worker: directory, its number, its devices, its environment, its log. What it gives has the methods `poll`,
`wait`, `kill` and `send_signal` of a `subprocess.Popen`."""


@dataclass(slots=True)
class _Member:
    number: int
    devices: tuple[str, ...]
    process: Any
    deaths: int = 0
    finished: int = 0
    """Trials that were finished when it was last started."""
    is_over: bool = False


def start_process(
    directory: SweepDirectory, number: int, devices: tuple[str, ...], env: Mapping[str, str], log: Path
) -> Any:
    """Begin a worker as a process of its own session."""
    words = [sys.executable, "-m", "promptcomp", "sweep", "work", str(directory.path), "--worker", str(number)]
    words += ["--devices", ",".join(devices)] if devices else []
    with open_append(log) as file:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=dict(env), start_new_session=True
        )


class Crew:
    """The workers of one `promptcomp sweep`.

    Args:
        directory: the sweep's.
        shares: devices of each worker.
        secret: a database's address with its password.
        say: is told what happens to workers.
        stop: whether to have them end.
        start: begins a worker.
    """

    def __init__(
        self,
        directory: SweepDirectory,
        shares: Sequence[tuple[str, ...]],
        secret: str | None,
        say: Callable[[str], None],
        stop: Stop,
        start: Start = start_process,
    ) -> None:
        self._directory, self._secret, self._say, self._stop, self._begin = directory, secret, say, stop, start
        self._count = len(shares)
        self._members = [_Member(i, share, self._start(i, share)) for i, share in enumerate(shares)]
        self.problem: ConfigError | None = None

    @property
    def is_done(self) -> bool:
        """Whether all have found nothing left to do."""
        return bool(self._members) and all(member.process.poll() == Exit.FINISHED for member in self._members)

    def _start(self, number: int, devices: tuple[str, ...]) -> Any:
        env = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
        if self._secret is not None:
            env[STORAGE_VARIABLE] = self._secret
        if self._count > 1:  # several torch processes that each take all cores get in each other's way
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self._count)))
        return self._begin(self._directory, number, devices, env, self._directory.worker_log(number))

    def watch(self, sweep: Sweep, on_state: Callable[[SweepState], None] | None) -> None:
        """Until all workers have ended: restart those that die, show the state."""
        shown, state = 0.0, None
        pause = _SHOW_EVERY
        while not self._stop.is_set():
            now = time.monotonic()
            if now - shown >= pause:
                with contextlib.suppress(OSError, *DAMAGE, DBAPIError, optuna.exceptions.StorageInternalError):
                    sweep.reload()  # a database may be away for a moment; what does not pass, the workers say
                    state = sweep.state()
                if state is not None and on_state is not None:
                    on_state(state)
                self._look_after(state)
                shown = time.monotonic()
                pause = max(_SHOW_EVERY, 10 * (shown - now))  # a large sweep takes a while to read
            if all(member.is_over for member in self._members):
                return
            time.sleep(_LOOK_EVERY)

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
                said = last_line(self._directory.worker_log(member.number)).removeprefix("error: ")
                self.problem = NoSpace(said) if code == Exit.NO_SPACE else ConfigError(said)
            else:
                self._restart(member, code, finished)

    def _restart(self, member: _Member, code: int, finished: int) -> None:
        member.deaths = member.deaths + 1 if finished <= member.finished else 1
        member.finished = finished
        if member.deaths > _RESTARTS:
            member.is_over = True
            self.problem = ConfigError(
                f"worker {member.number} died {member.deaths} times without finishing a trial, last with exit code "
                f"{code}; see {self._directory.worker_log(member.number)}"
            )
            return
        self._say(f"worker {member.number} died (exit code {code}); another one takes its place")
        member.process = self._start(member.number, member.devices)

    def end(self) -> None:
        """Have all workers ended: asked first (a second signal ends their trials without a checkpoint), then killed."""
        deadline, told = time.monotonic() + _PATIENCE, 0
        while (left := [each for each in self._members if each.process.poll() is None]) and time.monotonic() < deadline:
            if told < max(1, self._stop.count):
                told += 1
                for member in left:
                    with contextlib.suppress(ProcessLookupError):
                        member.process.send_signal(signal.SIGTERM)
            time.sleep(_LOOK_EVERY)
        for member in self._members:
            if member.process.poll() is None:
                member.process.kill()
            member.process.wait()


def run_sweep(
    config: SweepConfig,
    directory: SweepDirectory,
    *,
    storage: str | None = None,
    workers: int = 1,
    devices: str | Sequence[str] | None = None,
    console: Console | None = None,
    on_state: Callable[[SweepState], None] | None = None,
    start: Start = start_process,
) -> bool:
    """Run a sweep until all its trials are done, its budget is used up, or somebody stops it.

    Args:
        config: the sweep.
        directory: its own; what is there is continued.
        storage: a database's address; None: a journal file in the directory, or what the sweep was begun with.
        workers: trials at a time on this machine; 0: only write the sweep down (workers are started elsewhere).
        devices: CUDA devices to share out among the workers (a list, or "0,1,2"); None: all that this machine has.
        console: for people.
        on_state: is shown the state, at most twice a second.
        start: begins a worker.

    Returns:
        Whether it has come to its end: every trial is finished, pruned or failed for good (or runs on a machine that
        shares the database alone), or a budget is used up. False: a signal has come; trials that ran have saved their
        state, the same call continues them.

    Raises:
        ConfigError: a change that finished trials forbid; too few devices; an unusable storage.
    """
    console = console or Console()
    named = [name.strip() for name in devices.split(",")] if isinstance(devices, str) else devices
    shares = share_devices(config, workers, named)
    sweep = begin(config, directory, storage, workers)
    secret = None if sweep.address is None else sweep.address.render_as_string(hide_password=False)
    stop = Stop()
    with stop.installed():
        crew = Crew(directory, shares, secret, functools.partial(say, console), stop, start)
        try:
            crew.watch(sweep, on_state)
        finally:
            crew.end()
            sweep.close()
    state = read_state(directory, secret)
    if on_state is not None:
        on_state(state)
    if stop.is_set():
        return False
    if crew.problem:
        raise crew.problem
    return crew.is_done or Progress(state, datetime.now(UTC)).over or state.stopped_by is not None


def share_devices(config: SweepConfig, workers: int, devices: Sequence[str] | None) -> list[tuple[str, ...]]:
    """Devices of each worker; empty ones on a machine without CUDA devices.

    Raises:
        ConfigError: too few devices for so many workers, or trials that take several machines.
    """
    experiment = experiment_of(config, first_point(config), config.first_seed)
    per, on_gpu = devices_of(experiment), experiment.trainer.accelerator in ("auto", "gpu")
    found = list(devices) if devices is not None else (_cuda_devices() if on_gpu else [])
    if devices and not on_gpu:
        kind = experiment.trainer.accelerator
        raise ConfigError(f"--devices {','.join(devices)}: trainer.accelerator={kind} uses no GPUs; leave one out")
    if not found or not on_gpu:
        return [()] * workers
    if len(found) < workers * per:
        raise ConfigError(
            f"{workers} workers with {per} device{'s' if per > 1 else ''} each need {workers * per}, and there are "
            f"{len(found)} ({', '.join(found)}); use --workers {max(1, len(found) // per)}"
        )
    return [tuple(found[i * per : (i + 1) * per]) for i in range(workers)]


def _cuda_devices() -> list[str]:
    """CUDA devices that this process may use, found without starting CUDA here."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() and name.strip() != "-1"]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
