"""Runs in processes of their own: the words of `promptcomp fit` that begin or continue one, and waiting for its end.

Sweeps and controls start their runs with these words; `fit --with-controls` waits here. A run on one device may be a
fork: what is imported here is imported there, and all else is its own. A fork takes over one thread of this process and
nothing that CUDA has begun: who forks has imported torch and computed nothing with it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch

from promptcomp.checkpoints.checkpoint_files import existing, step_of
from promptcomp.config import ConfigError, dump
from promptcomp.errors import Exit, RunFailed
from promptcomp.evaluation.results import read_results
from promptcomp.experiment import Experiment
from promptcomp.files import write_atomic
from promptcomp.forecast.placement import layout_of
from promptcomp.run.configured import find, identity
from promptcomp.run.fitting import Outcome
from promptcomp.run.run_directory import RunDirectory, check_unused, clear_unstarted
from promptcomp.stopping import StopSignals, is_preemption

FIT = (sys.executable, "-m", "promptcomp", "fit")


def fit_words(experiment: Experiment, run: Path | None, config: Path, command: Sequence[str] = FIT) -> list[str]:
    """The command that continues the run in a directory, or begins it there.

    Args:
        experiment: what is to run.
        run: its directory; what a killed process has left there before there was a run is removed. None: a new one,
            which the run makes under its output_dir.
        config: file that the configuration of a new run is written to.
        command: what is started.

    Raises:
        ConfigError: the directory holds something else.
        OSError: the disk is full.
    """
    if run is not None and (run / "config.yaml").is_file():
        return [*command, "--resume", str(run)]
    if run is not None:
        clear_unstarted(run)
        with contextlib.suppress(OSError):
            run.rmdir()
        if run.is_dir():
            raise ConfigError(f"{run} is in the way: it holds files but no run; move it away")
    config.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(config, dump(experiment))
    return [*command, "--config", str(config), *(() if run is None else ("--run-dir", str(run)))]


def attend(words: Sequence[str], keep: Sequence[int] = ()) -> tuple[int, int | None]:
    """Run a program to its end. It prints on standard error as it goes; its standard output is dropped.

    It has a session of its own, so that a Ctrl-C comes to this process alone, which passes it on once, as every other
    signal that asks to stop.

    Args:
        words: the program.
        keep: open files that the program keeps open (a lock then lasts as long as it lives, whatever happens here).

    Returns:
        Its exit code (negative: the signal that killed it), and the last signal that was passed on.
    """
    passed: list[int] = []
    early: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _frame: FrameType | None) -> None:
        passed.append(number)
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    previous = {}
    for number in _stopping():
        with contextlib.suppress(ValueError):  # not in the main thread: signals stay as they are
            previous[number] = signal.signal(number, pass_on)
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=() if sys.platform == "win32" else keep,
        )
        for number in early:
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code, passed[-1] if passed else None


def _stopping() -> list[int]:
    """Signals that end a program, but for those that this one was started to ignore (nohup)."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    numbers = [signal.Signals[name] for name in names if name in signal.Signals.__members__]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def starts_processes(experiment: Experiment) -> bool:
    """Whether the run starts processes of its own: they repeat the command line, so it has to be that run's alone, and
    what Lightning leaves in the environment is no other run's."""
    trains = bool(experiment.trainer.max_steps) and experiment.method.trains
    return trains and layout_of(experiment.trainer).strategy != "single"


def fit_apart(wanted: Experiment, path: Path | None, run_dir: Path | None, lock: int) -> Outcome:
    """Begin the run, or continue the one in `path`, by a `promptcomp fit` of its own, and wait for its end.

    Args:
        wanted: the experiment.
        path: an unfinished run of it.
        run_dir: directory of a new run; None: one under output_dir.
        lock: descriptor of the lock on this experiment under output_dir.

    Raises:
        ConfigError: several machines, or `run_dir` holds something else.
        RunFailed: it failed.
    """
    nodes = wanted.trainer.num_nodes
    if nodes > 1:
        raise ConfigError(
            f"--with-controls starts its runs on this machine alone, not on trainer.num_nodes={nodes}: make each run "
            "by itself on all of them, then repeat the command, which reuses finished runs"
        )
    if path is None and run_dir is not None and RunDirectory(run_dir).config.is_file():
        check_unused(run_dir)
    place = path or run_dir or Path(wanted.output_dir)
    stop = StopSignals.current()
    if stop is not None and stop.received is not None:  # it came while something else was at work
        return Outcome(place, None, 0, interrupted=True, preempted=True)
    config = Path(wanted.output_dir) / ".locks" / f"{identity(wanted)}.yaml"
    code, passed = attend([*fit_words(wanted, path or run_dir, config), "--json"], keep=[lock])
    state, found = find(wanted, run_dir)
    results = read_results(found) if state == "finished" and found is not None else None
    if code == Exit.MISTAKE:  # it has told the mistake
        raise RunFailed("", code)
    stopped = passed is not None or code in (Exit.PREEMPTED, Exit.INTERRUPTED)
    if not stopped and (code or results is None):
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise RunFailed(f"the run in {found or place} {how}, see above; the same command continues it", code)
    if results is not None:
        step = results.cost.steps or 0
    else:
        checkpoint = existing(RunDirectory(found).last) if found is not None else None
        step = step_of(checkpoint) if checkpoint is not None else 0
    preempted = code == Exit.PREEMPTED or is_preemption(passed)
    return Outcome(found or place, results, step, interrupted=stopped, preempted=preempted)


_HEAVY = ("promptcomp.cli", "rouge_score.rouge_scorer", "transformers.generation.utils")
"""What a run imports late, and at length."""


class Forked:
    """A forked process, with what is asked of a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def can_fork(experiment: Experiment, devices: Sequence[str]) -> bool:
    """Whether a run may be forked: one process on one device, on a system where a fork may go on computing.

    Args:
        experiment: the run's.
        devices: CUDA devices that it is to have; empty: those that there are.
    """
    trainer = experiment.trainer
    one = trainer.devices == 1 or (
        trainer.devices == "auto"
        and (trainer.accelerator in ("cpu", "mps") or len(devices) == 1 or torch.cuda.device_count() < 2)
    )
    alone = one and trainer.num_nodes == 1 and trainer.strategy == "auto"
    return alone and sys.platform == "linux" and not torch.cuda.is_initialized()


def fork_fit(words: Sequence[str], env: Mapping[str, str], log: int) -> Forked:
    """Start `python -m promptcomp fit ...` in a session of its own, without a new Python.

    Args:
        words: the command line that a new Python would get, from the program's name on.
        env: its environment.
        log: descriptor of the file that takes its standard output and error.
    """
    _import()
    sys.stdout.flush()
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _stopping())  # a signal that comes too early must not be lost
    try:
        pid = os.fork()
        if pid == 0:
            _become_fit(words, env, log, before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Forked(pid)


@functools.cache
def _import() -> None:
    """Import what runs need, once, and have the garbage collector leave it alone: its memory stays shared."""
    for name in _HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _become_fit(words: Sequence[str], env: Mapping[str, str], log: int, mask: set[int | signal.Signals]) -> NoReturn:
    """In the fork: be what a new Python would be, then never come back."""
    code: object = Exit.CRASHED
    try:
        os.setsid()
        for number in _stopping():
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # locks and connections are the parent's
        os.environ.clear()
        os.environ.update(env)
        sys.argv = list(words)
        text: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "closefd": False}
        sys.stdin, sys.stdout = os.fdopen(0, "r", **text), os.fdopen(1, "w", **text)
        sys.stderr = os.fdopen(2, "w", buffering=1, **text)
        random.seed()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if torch.cuda._is_in_bad_fork():  # somebody has begun with CUDA in the parent all the same
            os.execv(sys.executable, [sys.executable, "-m", *words])
        runpy.run_module("promptcomp", run_name="__main__")
    except SystemExit as end:
        code = Exit.FINISHED if end.code is None else end.code
    except BaseException:
        traceback.print_exc()
    finally:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code if isinstance(code, int) else Exit.CRASHED)
    raise AssertionError
