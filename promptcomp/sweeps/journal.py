"""Optuna's journal file, made safe against full disks and killed writers. Format and lock are Optuna's own.

A write that fails half-way (a full disk) is taken back: otherwise the next one is glued to the torn line, and Optuna
loses both. A lock whose holder was killed is broken at once where that can be known, not after half a minute.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from promptcomp.lease import Lease, is_dead, lease_of

_GRACE = 30.0  # seconds; Optuna's own
_PAUSE = 0.001, 0.1  # seconds between two looks, at first and at most


class HolderLock:
    """Optuna's lock, a symbolic link; ours points to nothing and says who holds it.

    Args:
        journal: the file that it protects.
    """

    def __init__(self, journal: Path) -> None:
        self._lock = journal.with_name(f"{journal.name}.lock")

    def acquire(self) -> None:
        """Wait for the lock; one whose holder is dead, or that has not changed hands for 30 s, is broken.

        Raises:
            OSError: the disk is full or away.
        """
        pause, since = _PAUSE[0], time.monotonic()
        holder, last = json.dumps(asdict(lease_of())), ("", 0.0)
        while True:
            try:
                os.symlink(holder, self._lock)
                return
            except FileExistsError:
                found = self._look()
            if found != last:
                last, since = found, time.monotonic()
            if _is_left_behind(found[0]) or time.monotonic() - since > _GRACE:
                self._break(found)
                continue
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE[1])

    def release(self) -> None:
        """Give it back."""
        self._lock.unlink(missing_ok=True)

    def _look(self) -> tuple[str, float]:
        """Holder and time of the present lock."""
        try:
            return os.readlink(self._lock), self._lock.lstat().st_mtime
        except OSError:
            return "", 0.0

    def _break(self, found: tuple[str, float]) -> None:
        aside = self._lock.with_name(f"{self._lock.name}.{os.getpid()}.rename")
        if self._look() == found:
            with contextlib.suppress(OSError):
                self._lock.rename(aside)
                aside.unlink()


def _is_left_behind(holder: str) -> bool:
    """Whether a lock's holder is known to be dead (Optuna's own locks do not say who holds them)."""
    try:
        return is_dead(Lease(**json.loads(holder)))
    except (ValueError, TypeError):
        return False


class WholeLines(BaseJournalBackend):
    """Optuna's journal file, but a line is in it as a whole or not at all.

    Args:
        path: the journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader = JournalFileBackend(str(path))
        self._lock = HolderLock(path)

    def read_logs(self, log_number_from: int) -> Any:
        """As Optuna reads."""
        return self._reader.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append, and take back what a full disk has let through in part.

        Raises:
            OSError: the disk is full or away; the journal is as before.
        """
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._lock.acquire()
        try:
            with self._path.open("r+b") as file:
                end = _end_of_last_line(file)
                if end < file.seek(0, os.SEEK_END):
                    file.truncate(end)  # whoever tore the line was never told that it was written
            with self._path.open("ab") as file:
                try:
                    file.write(lines)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        os.truncate(self._path, end)
                    raise
        finally:
            self._lock.release()


def _end_of_last_line(file: Any) -> int:
    """Bytes up to and with the last line break."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return int(start + at + 1)
        end = start
    return 0
