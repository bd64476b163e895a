"""What a worker has of its surroundings: signals, its parent, the devices that it holds, its log."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from promptcomp.config import ConfigError
from promptcomp.errors import Exit
from promptcomp.files import locked
from promptcomp.sweeps.sweep_directory import SweepDirectory

PARENT_VARIABLE = "PROMPTCOMP_SWEEP_PARENT"
"""Process id of the `promptcomp sweep` that has started this worker, which ends when that one does."""


class Stop:
    """Whether this worker should end, and how. Signals only set it."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.count = 0
        self._parent = int(os.environ.get(PARENT_VARIABLE, "0"))

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Catch the signals that end a worker."""
        before = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
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
    def code(self) -> int:
        """Exit code."""
        in_job = self.received == signal.SIGTERM and "SLURM_JOB_ID" in os.environ
        return Exit.PREEMPTED if in_job or self.received in (signal.SIGUSR1, signal.SIGUSR2) else Exit.INTERRUPTED


@contextlib.contextmanager
def devices_held(directory: SweepDirectory, devices: Sequence[str], stop: Stop) -> Iterator[bool]:
    """Hold this machine's devices against other workers of the same sweep (a second `promptcomp sweep`)."""
    with contextlib.ExitStack() as stack:
        directory.leases.mkdir(parents=True, exist_ok=True)
        for device in devices:
            path = directory.leases / f"device-{socket.gethostname()}-{device.replace('/', '_')}.lock"
            told = False
            while True:
                try:
                    stack.enter_context(locked(path))
                    break
                except ConfigError:
                    if not told:
                        told = True
                        say(f"device {device} belongs to another worker of this sweep; waiting for it")
                if stop.is_set():
                    yield False
                    return
                time.sleep(1.0)
        yield True


def say(text: str) -> None:
    """One line of the worker's log, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
