"""Signals that ask a run to stop so that it can be continued: noted, never fatal, acted on at a safe place.

A cluster sends SIGUSR1 (or SIGUSR2) before it takes a node away, and SIGTERM when it does. Each of them kills a program
that has no handler yet, so the handlers are installed first thing, before anything heavy is imported. They only set a
flag; training looks at it between two steps, and parts with nothing to save (the evaluation) are left at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from promptcomp.errors import Exit


class StopRequested(BaseException):
    """A signal came while nothing was left to save. No Exception: nobody who catches those may swallow it."""


class StopSignals:
    """Notes the signals that preempt this process.

    The object lives in the process' table of signal handlers: `StopSignals.current()` finds it there.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._process = os.getpid()
        self._leave_at_once = False

    @staticmethod
    def numbers() -> tuple[int, ...]:
        """The user signals; within a SLURM job SIGTERM too (elsewhere it ends a program as ever)."""
        if sys.platform == "win32":
            return ()
        in_job = "SLURM_JOB_ID" in os.environ
        return (signal.SIGUSR1, signal.SIGUSR2, *((signal.SIGTERM,) if in_job else ()))

    @staticmethod
    def current() -> StopSignals | None:
        """The object whose handlers are installed; None: there is none."""
        for number in StopSignals.numbers():
            owner = getattr(signal.getsignal(number), "__self__", None)
            if isinstance(owner, StopSignals):
                return owner
        return None

    @contextlib.contextmanager
    def installed(self, last: bool = False) -> Iterator[StopSignals]:
        """Note signals within this block.

        Args:
            last: the process ends after the block, and a late signal must not change its exit code: they are ignored
                then. Otherwise they do again what they did before.
        """
        previous = {}
        for number in self.numbers():
            with contextlib.suppress(ValueError):  # not in the main thread: signals stay as they are
                previous[number] = signal.signal(number, self.handle)
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_IGN if last else handler)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler. Signals repeat (a batch script and SLURM itself may both send one), so more change nothing."""
        if os.getpid() != self._process:  # a forked data worker
            return
        self.received = number
        if self._leave_at_once:
            self._leave_at_once = False
            raise StopRequested

    @contextlib.contextmanager
    def leaving_at_once(self) -> Iterator[None]:
        """Within this block a signal (also one that came before) raises `StopRequested`.

        Raises:
            StopRequested: a signal came.
        """
        if self.received is not None:
            raise StopRequested
        self._leave_at_once = True
        try:
            yield
        finally:
            self._leave_at_once = False


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """The installed object, or a new one for the length of this block (when a run is started from Python)."""
    found = StopSignals.current()
    if found is not None:
        yield found
        return
    with StopSignals().installed() as new:
        yield new


def is_preemption(number: Any) -> bool:
    """Whether a signal means preemption (whoever sent it will continue the run)."""
    return number in StopSignals.numbers()


def ending_signals() -> list[int]:
    """Signals that end a program, but for those that this one was started to ignore (nohup)."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    numbers = [signal.Signals[name] for name in names if name in signal.Signals.__members__]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


class Stop:
    """Whether this process should end, and how. Signals only set it.

    Args:
        parent: a process without which this one has nothing to do.
    """

    def __init__(self, parent: int | None = None) -> None:
        noted = StopSignals.current()
        self.received: int | None = None if noted is None else noted.received
        self.count = 0
        self._parent = parent

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Catch the signals that end a program."""
        before = {}
        for number in ending_signals():
            with contextlib.suppress(ValueError):  # not in the main thread: signals stay as they are
                before[number] = signal.signal(number, self._caught)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or number
        self.count += 1

    def is_set(self) -> bool:
        """Whether to end: a signal has come, or the parent is gone."""
        if self.received is None and self._parent and os.getppid() != self._parent:
            self.received = signal.SIGTERM
        return self.received is not None

    @property
    def code(self) -> Exit:
        """Exit code."""
        return Exit.PREEMPTED if is_preemption(self.received) else Exit.INTERRUPTED
