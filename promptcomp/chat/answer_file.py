"""Files of answers: each answer is on disk before the next request, so that nothing is paid for twice.

The first line tells what the file is, every other line is one answer with a key made of what was asked. Lines are only
ever added; the line that a killed process left unfinished is asked for again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import ConfigDict, ValidationError

from promptcomp.config import Config, ConfigError
from promptcomp.files import open_append, take_lock


class FileHeader(Config):
    """First line: what the file is; keys that a later version has added are passed over."""

    model_config = ConfigDict(extra="ignore")

    format: str
    version: Literal[1] = 1

    def identity(self) -> dict[str, object]:
        """What must be equal for answers to go into the same file, by its name in messages."""
        return {}


class KeptAnswer(Config):
    """One answer; keys that a later version has added are passed over."""

    model_config = ConfigDict(extra="ignore")
    name: ClassVar[str]
    """What it is, in words."""
    again: ClassVar[str]
    """What happens to a line that is removed ("asked" again)."""
    way_out: ClassVar[str] = "name a new file with -o"
    """What to do about a file that does not do."""

    key: str
    """Hash of everything that was asked."""
    split: str
    cut: bool = False
    """The (last) text ended at the limit of tokens."""
    error: str | None = None
    """Why the request was refused."""
    prompt_tokens: int | None = None
    """Over all attempts; null: not reported."""
    completion_tokens: int | None = None
    model: str | None = None
    """The model as the server names it."""
    time: str = ""


KeptT = TypeVar("KeptT", bound=KeptAnswer)


class AnswerFile(Generic[KeptT]):
    """The open file. Use as a context manager; one process at a time.

    Args:
        path: the file; made when it does not exist.
        header: the first line of a new file.
        kind: what every other line is.

    Raises:
        ConfigError: the file is not such a record, holds answers that do not mix with those to come, is
            open elsewhere, or cannot be written.
    """

    def __init__(self, path: Path, header: FileHeader, kind: type[KeptT]) -> None:
        self.path = path
        self.entries: dict[str, KeptT] = {}
        """By key; of several the last."""
        self._header, self._kind = header, kind
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = open_append(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror}); {kind.way_out}") from None
        try:
            if not take_lock(self._file):  # it ends with the process, however that ends
                raise ConfigError(f"{path}: another process writes into this file; wait, or {kind.way_out}")
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, entry: KeptT, seen: Callable[[KeptT], None] | None = None) -> None:
        """Keep an answer; it is on disk when this returns, and before `seen` is told of it."""
        self._write(entry.model_dump_json().encode())
        self.entries[entry.key] = entry
        if seen is not None:
            seen(entry)

    def _write(self, line: bytes) -> None:
        self._file.write(line + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        start = self._header.model_dump_json(include={"format"}).encode()[:-1]
        first, newline, rest = content.partition(b"\n")
        # Nothing is lost when a file without answers is begun anew: empty, torn in its first line, or with no other.
        if not rest and (first.startswith(start) or (not newline and start.startswith(first))):
            self._file.truncate(0)
            self._write(self._header.model_dump_json().encode())
            return
        self._check(first)
        lines = content.split(b"\n")
        for number, line in enumerate(lines[1:-1], start=2):
            try:
                entry = self._kind.model_validate_json(line)
            except ValidationError:
                way_out = f"remove the line to have it {self._kind.again} again"
                raise ConfigError(f"{self.path}, line {number}: not a {self._kind.name}; {way_out}") from None
            self.entries[entry.key] = entry
        if lines[-1]:
            self._file.truncate(len(content) - len(lines[-1]))

    def _check(self, line: bytes) -> None:
        """
        Raises:
            ConfigError: the file is something else, or what it holds does not mix with what is to come.
        """
        found: FileHeader | None = None
        with contextlib.suppress(ValidationError):
            found = type(self._header).model_validate_json(line)
        if found is None or found.format != self._header.format:
            raise ConfigError(f"{self.path}: not a file of {self._kind.name}s; {self._kind.way_out}")
        before = found.identity()
        for what, current in self._header.identity().items():
            if before[what] != current:
                raise ConfigError(
                    f"{self.path} holds {self._kind.name}s with another {what}: {before[what]}, now {current};"
                    f" they are not mixed, {self._kind.way_out}"
                )


def now() -> str:
    """The time as it is written into the file."""
    return datetime.now(UTC).isoformat(timespec="seconds")
