"""Prompts and queries as users give them: texts, files, standard input, rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptcomp.config import ConfigError
from promptcomp.datamodules.sources.records import Asked, good_records
from promptcomp.datamodules.sources.row_files import FILE_KINDS, kind_of_rows, read_records
from promptcomp.datamodules.sources.rows import Columns, row_problems, to_row
from promptcomp.datamodules.tasks import Row
from promptcomp.files import read_bounded
from promptcomp.plain import not_utf8, shown

_MOST_BYTES = 2**30

_ROW = Columns(task=None, seed=None, split=None)
_QUERY = Asked(("input",), ("id",))


@dataclass(frozen=True, slots=True)
class PromptSource:
    """What is compressed: a text, or demonstrations that are written as the run's training wrote them."""

    text: str
    rows: tuple[Row, ...] | None = None


def whole(text: str, what: str) -> str:
    """A text that a user has typed, as it is.

    Raises:
        ConfigError: it holds half of a character, as a command line has it where its bytes are not UTF-8, or it
            is no text.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{what} must be a text, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} is no UTF-8 text (character {error.start + 1}); write it in a file") from None
    return text


def read_source(
    *,
    text: str | None = None,
    file: str | Path | None = None,
    demonstrations: Sequence[tuple[str, str]] | str | Path | None = None,
    is_icl: bool = False,
) -> PromptSource:
    """The prompt in a text, a text file, or demonstrations: pairs (input, output), or a file of them, whose text is
    JSON lines with `input` and `output`; `is_icl`: the run's prompts are demonstrations.

    Raises:
        ConfigError: a file is missing, unreadable, not UTF-8, or its rows are bad.
    """
    if demonstrations is not None:
        if isinstance(demonstrations, str | Path):
            rows = read_rows(Path(demonstrations))
        else:
            pairs = [*demonstrations] if isinstance(demonstrations, Iterable) else [demonstrations]
            if odd := [each for each in pairs if not _is_pair(each)]:
                raise ConfigError(f"demonstrations are pairs of texts (input, output), and not {shown(odd[0])}")
            rows = [Row(whole(given, "an input"), whole(output, "an output")) for given, output in pairs]
        lines = (json.dumps({"input": row.input, "output": row.output}, ensure_ascii=False) for row in rows)
        return PromptSource("\n".join(lines), tuple(rows))
    if file is None:
        return PromptSource(whole("" if text is None else text, "the prompt"))
    file = Path(file)
    if is_icl and file.suffix.lower() == ".jsonl":
        raise ConfigError(f"{file}: holds rows, it seems; give it with --demonstrations (or rename it, if it is text)")
    return PromptSource(prompt_text(read_bounded(file, _MOST_BYTES, "file"), str(file), keep_last_line_break=is_icl))


def _is_pair(given: Any) -> bool:
    """Two texts, not a text of two characters or the two keys of a dictionary."""
    return isinstance(given, Sized) and len(given) == 2 and not isinstance(given, str | bytes | Mapping)


def prompt_text(raw: bytes, source: str, *, keep_last_line_break: bool) -> str:
    """The text in a file: UTF-8, lines ended by line feeds, without the line breaks at its end.

    Demonstrations keep those: they belong to the last one.

    Raises:
        ConfigError: it is not UTF-8.
    """
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: {not_utf8(raw, f' (byte {error.start}); save it as UTF-8')}") from None
    return text if keep_last_line_break else text.rstrip("\n")


def read_rows(file: Path) -> list[Row]:
    """Rows with `input` and `output` of a file.

    Raises:
        ConfigError: names the first bad line, or the file if it has none.
    """
    records = read_records(file, _ROW.asked(), kind_of_rows(file))
    good = good_records(records, lambda content: row_problems(content, _ROW), None, file)
    return [to_row(record.content, "", _ROW) for record in good]


@dataclass(frozen=True, slots=True)
class Query:
    """A query and the name that its file gives it."""

    text: str
    id: str | int | None = None


def read_queries(file: Path) -> list[Query]:
    """The queries of a file: rows with `input` (and `id`), or in a text file one query a line, blank lines left out.

    Raises:
        ConfigError: it is missing, not UTF-8, holds a bad row, or no query.
    """
    if file.suffix.lower() in FILE_KINDS:
        rows = [record.content for record in good_records(read_records(file, _QUERY), _query_problems, None)]
        found = [Query(row["input"], row.get("id")) for row in rows]
        if not found:
            raise ConfigError(f"{file}: holds no query; write one on each line")
        return found
    return text_queries(read_bounded(file, _MOST_BYTES, "file"), str(file))


def text_queries(raw: bytes, source: str) -> list[Query]:
    """One query a line, blank lines left out.

    Raises:
        ConfigError: not UTF-8, or no query.
    """
    lines = prompt_text(raw, source, keep_last_line_break=False).split("\n")
    found = [Query(line) for line in lines if line.strip()]
    if not found:
        raise ConfigError(f"{source}: holds no query; write one on each line")
    return found


def _query_problems(content: Mapping[str, Any]) -> list[str]:
    found = []
    if not isinstance(content.get("input"), str):
        found.append("'input' is missing or no text")
    if not isinstance(content.get("id"), str | int | None):
        found.append("'id' is neither text nor a whole number")
    return found
