"""Reading files of rationale data: rows by line, a teacher's work by id, completions; and telling what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from promptcomp.config import ConfigError
from promptcomp.datamodules.sources.rationale_formats import BadRow
from promptcomp.datamodules.sources.rationale_parsing import STATUSES
from promptcomp.datamodules.sources.rationale_records import RecordReader
from promptcomp.datamodules.sources.records import (
    Asked,
    Found,
    Problem,
    Record,
    half_character,
    kind_of_rows,
    name_in,
    no_rows,
    read_json,
    read_records,
    tell,
)
from promptcomp.datamodules.tasks import RationaleRow

_WORK = Asked(("id",), ("llm_label", "llm_rationale", "teacher", "parse_status"))


def joined(rows: Sequence[RationaleRow], paths: Sequence[Path], found: Found = None) -> Sequence[RationaleRow]:
    """The rows with a teacher's work from other files, joined by id; rows that are not in them stay as they are.

    Raises:
        ConfigError: a file is missing or bad, or none of its ids belongs to a row.
    """
    if not paths:
        return rows
    work: dict[str, Mapping[str, Any]] = {}
    for path in paths:
        for record in read_records(path, _WORK, kind_of_rows(path)):
            problems = record.problems(_work_problems(record.content))
            for problem in problems:
                tell(problem, found)
            if not problems:
                work[str(name_in(record.content["id"]))] = record.content
    if rows and not any(row.id in work for row in rows):
        names = ", ".join(map(str, paths))
        tell(Problem(names, None, f"none of the ids belongs to a row of the data (such as {rows[0].id!r})"), found)
    return [_with_work(row, work[row.id]) if row.id in work else row for row in rows]


def _with_work(row: RationaleRow, record: Mapping[str, Any]) -> RationaleRow:
    return replace(
        row,
        llm_label=record.get("llm_label") or "",
        llm_rationale=record.get("llm_rationale") or "",
        parse_status=record.get("parse_status") or "ok",
        teacher=record.get("teacher") or "",
    )


def _work_problems(record: Mapping[str, Any]) -> list[str]:
    try:
        if name_in(record.get("id")) is None:
            return ["expected an object with an 'id'"]
    except ValueError:
        return [f"'id' is {type(record['id']).__name__}, expected text or a whole number"]
    for name in ("llm_label", "llm_rationale", "teacher", "parse_status"):
        if not isinstance(record.get(name), str | None):
            return [f"{name!r} is {type(record[name]).__name__}, expected text"]
    status = record.get("parse_status") or "ok"
    return [] if status in STATUSES else [f"'parse_status' {status!r} is none of {', '.join(STATUSES)}"]


def read_rows(
    records: Iterable[Record], reader: RecordReader, split: str, where: str, found: Found, start: int = 0
) -> list[RationaleRow]:
    """The rows of a file or table; `start` rows of the split were read before.

    Raises:
        ConfigError: a bad row, or none, unless `found` collects that.
    """
    rows: list[RationaleRow] = []
    seen = False
    for record in records:
        seen, problem = True, record.problem
        try:
            if problem is None:
                row = reader.row(record.content, start + len(rows), split)
                rows.append(replace(row, where=f"{record.file}:{record.line}"))
        except BadRow as error:
            problem = str(error)
        if problem is not None:
            tell(Problem(record.file, record.line, problem), found)
    if not seen:
        tell(no_rows(where), found)
    return rows


def unique(rows: list[RationaleRow], found: Found) -> list[RationaleRow]:
    """The rows, whose ids must differ."""
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            tell(Problem.at(row.where, f"the id {row.id!r} occurs twice"), found)
        seen.add(row.id)
    return rows


def text_list(path: Path) -> list[str]:
    """The texts in a JSON list.

    Raises:
        ConfigError: the file is missing or holds something else.
    """
    found = read_json(path)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ConfigError(f"{path}: expected a JSON list of texts")
    if half_character(found):
        raise ConfigError(f"{path}: a text has half a character (one of a surrogate pair)")
    return found
