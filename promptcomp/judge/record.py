"""judgements.jsonl: every judgement is on disk before the next thing happens, so that nothing is paid for twice.

The first line tells which judge gave the judgements, every other line is one judgement. Lines are only ever added.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, ValidationError

from promptcomp.config import Config, ConfigError
from promptcomp.endpoints import Entry, RecordFile, now
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


class Judgement(Entry):
    """One example as the judge saw it; the key is of the judge, the prompt, the example, both texts and their order."""

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


class Record(RecordFile[Judgement]):
    """The open file.

    Args:
        path: the file; made when it does not exist.
        header: the judge that is about to judge.

    Raises:
        ConfigError: the file is not a record, was made by another judge, is open elsewhere, or cannot be written.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._header = header
        in_use = "is judging into this file; wait, or name another with -o"
        super().__init__(path, Judgement, name="judgement", again="judged", in_use=in_use)

    def _first_line(self) -> bytes:
        return self._header.model_copy(update={"created": now()}).model_dump_json().encode()

    def _is_new(self, content: bytes) -> bool:
        """Also a header and nothing else: no judgement is there that another judge's could mix with."""
        if b"\n" not in content:
            return content.startswith(_START) or _START.startswith(content)
        return content.startswith(_START) and content.count(b"\n") == 1 and content.endswith(b"\n")

    def _check(self, line: bytes) -> None:
        try:
            found = Header.model_validate_json(line)
        except ValidationError:
            raise ConfigError(f"{self.path}: not a file of judgements; name another with -o") from None
        here = self._header
        for what, before, current in (
            ("judge", found.judge, here.judge),
            ("judge prompt (sha256)", found.prompt_sha256[:12], here.prompt_sha256[:12]),
            ("--max-tokens", found.max_tokens, here.max_tokens),
        ):
            if before != current:
                raise ConfigError(
                    f"{self.path} holds judgements with another {what}: {before}, now {current};"
                    " judgements of different judges are not mixed, name a new file with -o"
                )
