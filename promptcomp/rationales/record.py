"""NAME.completions.jsonl: every text a teacher wrote is on disk before the next thing happens.

The first line names the format, every other line is one completion with a key made of everything that was asked. Lines
are only ever added, so one file may hold completions of several prompts, settings and teachers.
"""

from __future__ import annotations

from pathlib import Path

from promptcomp.config import ConfigError
from promptcomp.endpoints import Entry, RecordFile

_HEADER = b'{"format":"promptcomp-completions","version":1}'


class Completion(Entry):
    """One text; the key is of the teacher, the prompt and the way of writing."""

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


class Record(RecordFile[Completion]):
    """The open file.

    Raises:
        ConfigError: the file is not a record, is open elsewhere, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        in_use = "writes into this file; wait, or name another"
        super().__init__(path, Completion, name="completion", again="asked", in_use=in_use)

    def _first_line(self) -> bytes:
        return _HEADER

    def _is_new(self, content: bytes) -> bool:
        return _HEADER.startswith(content)

    def _check(self, line: bytes) -> None:
        if line != _HEADER:
            raise ConfigError(f"{self.path}: not a file of completions; name another with -o")
