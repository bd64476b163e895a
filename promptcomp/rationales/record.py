"""NAME.completions.jsonl: every text a teacher wrote is on disk before the next thing happens.

The first line names the format, every other line is one completion with a key made of everything that was asked. Lines
are only ever added, so one file may hold completions of several prompts, settings and teachers.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Self

from pydantic import ConfigDict, ValidationError

from promptcomp.config import Config, ConfigError

_HEADER = b'{"format":"promptcomp-completions","version":1}'


class Completion(Config):
    """One text."""

    model_config = ConfigDict(extra="ignore")

    key: str
    """Hash of the teacher, the prompt and the way of writing."""
    id: str
    """The row it was first asked for."""
    split: str
    sample: int = 0
    text: str = ""
    """The whole answer, as it came."""
    cut: bool = False
    """It ended at the limit of tokens."""
    error: str | None = None
    """Why the request was refused."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    model: str | None = None
    """The model as the server names it."""
    time: str = ""


class Record:
    """The open file. Use as a context manager; one process at a time.

    Raises:
        ConfigError: the file is not a record, is open elsewhere, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.completions: dict[str, Completion] = {}
        """By key; of several the last."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("ab+")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another file with -o") from None
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, completion: Completion) -> None:
        """Keep a completion; it is on disk when this returns."""
        self._write(completion.model_dump_json().encode())
        self.completions[completion.key] = completion

    def _write(self, line: bytes) -> None:
        self._file.write(line + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _lock(self) -> None:
        """Refuse to share the file with another process; the lock ends with the process, however it ends."""
        if sys.platform == "win32":
            return
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{self.path}: another process writes into this file; wait, or name another") from None

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if not whole and _HEADER.startswith(content):  # new, or torn in its first line
            self._file.truncate(0)
            self._write(_HEADER)
            return
        lines = content[:whole].split(b"\n")
        if lines[0] != _HEADER:
            raise ConfigError(f"{self.path}: not a file of completions; name another with -o")
        for number, line in enumerate(lines[1:-1], start=2):
            try:
                completion = Completion.model_validate_json(line)
            except ValidationError:
                raise ConfigError(
                    f"{self.path}, line {number}: not a completion; remove the line to have it asked again"
                ) from None
            self.completions[completion.key] = completion
        if whole < len(content):
            self._file.truncate(whole)  # a line that a killed process left unfinished; it is asked again


def now() -> str:
    """The time as it is written into the file."""
    return datetime.now(UTC).isoformat(timespec="seconds")
