"""judgements.jsonl: every judgement is on disk before the next thing happens, so that nothing is paid for twice.

The first line tells which judge gave the judgements, every other line is one judgement. Lines are only ever added.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal, Self

from pydantic import ConfigDict, ValidationError

from promptcomp.config import Config, ConfigError
from promptcomp.judge.answers import Choice

_START = b'{"format":"promptcomp-judgements"'


class Header(Config):
    """First line: the judge. Judgements of another judge, prompt or answer length do not go into the same file."""

    model_config = ConfigDict(extra="ignore")

    format: Literal["promptcomp-judgements"] = "promptcomp-judgements"
    version: Literal[1] = 1
    judge: str
    """The judge's model; `local:PATH` for a model that runs here."""
    prompt_sha256: str
    max_tokens: int
    """Most tokens of an answer."""
    a: str
    """Sides when the file was begun, for people."""
    b: str
    url: str | None = None
    """Endpoint when the file was begun."""
    created: str = ""


class Judgement(Config):
    """One example as the judge saw it."""

    model_config = ConfigDict(extra="ignore")

    key: str
    """Hash of the judge, the prompt, the example, both texts and their order."""
    split: str
    example: str
    swapped: bool
    """Side b was shown first, as answer A."""
    choice: Choice | None
    """By the order shown; null: malformed or refused."""
    winner: Literal["a", "b", "tie"] | None
    """The same by side."""
    reason: str = ""
    answers: tuple[str, ...] = ()
    """The judge's words, one text for each attempt."""
    attempts: int
    prompt_tokens: int | None = None
    """Over all attempts; null: not told."""
    completion_tokens: int | None = None
    cut: bool = False
    """The last answer ended at the limit of tokens."""
    error: str | None = None
    """Why the endpoint refused the request."""
    model: str | None = None
    """The model as the server names it."""
    time: str = ""


class Record:
    """The open file. Use as a context manager; one process at a time.

    Args:
        path: the file; made when it does not exist.
        header: the judge that is about to judge.

    Raises:
        ConfigError: the file is not a record, was made by another judge, is open elsewhere, or cannot be written.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.judgements: dict[str, Judgement] = {}
        """By key; of several the last."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("ab+")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another file with -o") from None
        try:
            self._lock()
            self._read(header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, judgement: Judgement) -> None:
        """Keep a judgement; it is on disk when this returns."""
        self._write(judgement.model_dump_json())
        self.judgements[judgement.key] = judgement

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
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
            raise ConfigError(
                f"{self.path}: another process is judging into this file; wait, or name another with -o"
            ) from None

    def _read(self, header: Header) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        torn_header = not whole and (content.startswith(_START) or _START.startswith(content))
        if torn_header or self._is_empty(content):
            self._file.truncate(0)
            self._write(header.model_copy(update={"created": now()}).model_dump_json())
            return
        lines = content.split(b"\n")
        self._check(lines[0], header)
        for number, line in enumerate(lines[1:-1], start=2):
            try:
                judgement = Judgement.model_validate_json(line)
            except ValidationError:
                raise ConfigError(
                    f"{self.path}, line {number}: not a judgement; remove the line to have it judged again"
                ) from None
            self.judgements[judgement.key] = judgement
        if whole < len(content):
            self._file.truncate(whole)  # a line that a killed process left unfinished; it is judged again

    def _is_empty(self, content: bytes) -> bool:
        """Whether there is a header and nothing else: no judgement is there that another judge's could mix with."""
        return content.startswith(_START) and content.count(b"\n") == 1 and content.endswith(b"\n")

    def _check(self, line: bytes, header: Header) -> None:
        try:
            found = Header.model_validate_json(line)
        except ValidationError:
            raise ConfigError(f"{self.path}: not a file of judgements; name another with -o") from None
        for what, there, here in (
            ("judge", found.judge, header.judge),
            ("judge prompt (sha256)", found.prompt_sha256[:12], header.prompt_sha256[:12]),
            ("--max-tokens", found.max_tokens, header.max_tokens),
        ):
            if there != here:
                raise ConfigError(
                    f"{self.path} holds judgements with another {what}: {there}, now {here};"
                    " judgements of different judges are not mixed, name a new file with -o"
                )


def now() -> str:
    """The time as it is written into the file."""
    return datetime.now(UTC).isoformat(timespec="seconds")
