"""Prompts and queries as people give them: texts, files, standard input, rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promptcomp.config import ConfigError
from promptcomp.datamodules.rows import METAICL_COLUMNS, Problem, json_lines, row_problems, to_row
from promptcomp.datamodules.tasks import Row


@dataclass(frozen=True, slots=True)
class PromptSource:
    """What is compressed: a text, or demonstrations that are written as the run's training wrote them."""

    text: str
    rows: tuple[Row, ...] | None = None

    @classmethod
    def from_rows(cls, rows: Sequence[Row]) -> PromptSource:
        """Demonstrations; their text is JSON lines with `input` and `output`."""
        lines = (json.dumps({"input": row.input, "output": row.output}, ensure_ascii=False) for row in rows)
        return cls("\n".join(lines), tuple(rows))


def read_source(
    *, text: str | None = None, file: Path | None = None, demonstrations: Path | None = None, is_icl: bool = False
) -> PromptSource:
    """The prompt in a text, a text file or a file of demonstrations; `is_icl`: the run's prompts are demonstrations.

    Raises:
        ConfigError: a file is missing, unreadable, not UTF-8, or its rows are bad.
    """
    if demonstrations is not None:
        return PromptSource.from_rows(read_rows(demonstrations))
    if file is None:
        return PromptSource(text or "")
    if is_icl and file.suffix == ".jsonl":
        raise ConfigError(f"{file}: holds rows, it seems; give it with --demonstrations (or rename it, if it is text)")
    return PromptSource(prompt_text(read_bytes(file), str(file), keep_last_line_break=is_icl))


def read_bytes(file: Path) -> bytes:
    """The content of a file.

    Raises:
        ConfigError: it is missing or cannot be read.
    """
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None


def prompt_text(raw: bytes, source: str, *, keep_last_line_break: bool) -> str:
    """The text in a file: UTF-8, lines ended by line feeds, without the line breaks at its end.

    Demonstrations keep those: they belong to the last one.

    Raises:
        ConfigError: it is not UTF-8.
    """
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    return text if keep_last_line_break else text.rstrip("\n")


def read_rows(file: Path) -> list[Row]:
    """Rows with `input` and `output` of a JSON-lines file.

    Raises:
        ConfigError: names the first bad line, or the file if it has none.
    """
    rows = []
    for line in json_lines(file):
        problems = [line.problem] if line.problem else row_problems(line.record, METAICL_COLUMNS)
        if problems:
            raise ConfigError(str(Problem(str(file), line.number, problems[0])))
        rows.append(to_row(line.record, METAICL_COLUMNS))
    if not rows:
        raise ConfigError(f"{file}: the file has no rows")
    return rows


@dataclass(frozen=True, slots=True)
class Query:
    """A query and the name that its file gives it."""

    text: str
    id: str | int | None = None


def read_queries(file: Path) -> list[Query]:
    """The queries of a file: JSON lines with `input` (and `id`), otherwise one query a line, blank lines left out.

    Raises:
        ConfigError: it is missing, not UTF-8, holds a bad row, or no query.
    """
    if file.suffix == ".jsonl":
        found = [_query(file, line.number, line.record, line.problem) for line in json_lines(file)]
        if not found:
            raise ConfigError(f"{file}: holds no query; write one a line")
        return found
    return text_queries(read_bytes(file), str(file))


def text_queries(raw: bytes, source: str) -> list[Query]:
    """One query a line, blank lines left out.

    Raises:
        ConfigError: not UTF-8, or no query.
    """
    lines = prompt_text(raw, source, keep_last_line_break=False).split("\n")
    found = [Query(line) for line in lines if line.strip()]
    if not found:
        raise ConfigError(f"{source}: holds no query; write one a line")
    return found


def _query(file: Path, number: int, record: object, problem: str | None) -> Query:
    if problem is None and not isinstance(record, dict):
        problem = "expected an object with 'input'"
    elif isinstance(record, dict) and not isinstance(record.get("input"), str):
        problem = "'input' is missing or no text"
    elif isinstance(record, dict) and not isinstance(record.get("id"), str | int | None):
        problem = "'id' is neither text nor a whole number"
    if problem is not None or not isinstance(record, dict):
        raise ConfigError(str(Problem(str(file), number, problem or "not readable")))
    return Query(record["input"], record.get("id"))
