"""One process at a time: locks on files, released by the system when a process ends in any way."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from promptcomp.config import ConfigError

if sys.platform != "win32":  # there two processes may get in each other's way
    import fcntl


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[int]:
    """Hold the lock of a file (made if it is not there).

    Gives the file's descriptor: a process that inherits it holds the lock too.

    Args:
        path: the file; its content is left alone.
        on_wait: called before waiting for another process; None: do not wait.

    Raises:
        ConfigError: another process holds the lock and `on_wait` is None, or the file cannot be opened.
    """
    try:
        file = path.open("a")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be opened ({error.strerror})") from None
    with file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait is None:
                    raise ConfigError(f"{path.parent} is in use by another process; wait for it or stop it") from None
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
