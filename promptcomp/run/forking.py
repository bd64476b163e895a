"""Runs as forks of this process: what is imported here is imported there, and all else is its own.

A fork takes over one thread of this process and nothing that CUDA has begun: who forks has imported torch and computed
nothing with it.
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
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch

from promptcomp.errors import Exit
from promptcomp.experiment import Experiment
from promptcomp.stopping import ending_signals

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


def can_fork(experiment: Experiment) -> bool:
    """Whether a run may be forked: on this machine alone, where a fork may go on computing. It starts its other ranks
    itself."""
    return experiment.trainer.num_nodes == 1 and sys.platform == "linux" and not torch.cuda.is_initialized()


def fork_module(words: Sequence[str], env: Mapping[str, str], output: int, error: int) -> Forked:
    """Start `python -m promptcomp fit ...` in a session of its own, without a new Python.

    Args:
        words: the command line that a new Python would get, from the module's name on.
        env: its environment.
        output: descriptor of its standard output.
        error: descriptor of its standard error.
    """
    _import()
    sys.stdout.flush()
    sys.stderr.flush()
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, ending_signals()
    )  # a signal that comes too early must not be lost
    try:
        pid = os.fork()
        if pid == 0:
            _become(words, env, (output, error), before)
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


def _become(
    words: Sequence[str], env: Mapping[str, str], outputs: tuple[int, int], mask: set[int | signal.Signals]
) -> NoReturn:
    """In the fork: be what a new Python would be, then never come back."""
    code: object = Exit.CRASHED
    try:
        os.setsid()
        for number in ending_signals():
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        copies = [os.dup(number) for number in outputs]
        os.dup2(copies[0], 1)
        os.dup2(copies[1], 2)
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
        sys.modules.pop(f"{words[0]}.__main__", None)  # it is run anew
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)  # other ranks are started by what is main
        code = Exit.FINISHED
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
