"""Reading files of rationale data: rows by line, a teacher's work by id, completions; and telling what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from promptcomp.config import ConfigError
from promptcomp.datamodules.rationale_formats import BadRow
from promptcomp.datamodules.rationale_parsing import STATUSES
from promptcomp.datamodules.rationale_records import RecordReader
from promptcomp.datamodules.rows import Problem, json_lines
from promptcomp.datamodules.tasks import RationaleRow

Found = list[Problem] | None
"""Where problems are collected; None: the first one is raised."""


def joined(rows: Sequence[RationaleRow], paths: Sequence[Path], problems: Found = None) -> Sequence[RationaleRow]:
    """The rows with a teacher's work from other files, joined by id; rows that are not in them stay as they are.

    Raises:
        ConfigError: a file is missing or bad, or none of its ids belongs to a row.
    """
    if not paths:
        return rows
    work: dict[str, Mapping[str, Any]] = {}
    for path in paths:
        for line in json_lines(path):
            message = line.problem or _work_problem(line.record)
            if message is None:
                work[str(line.record["id"])] = line.record
            else:
                tell(Problem(str(path), line.number, message), problems)
    if rows and not any(row.id in work for row in rows):
        names = ", ".join(map(str, paths))
        tell(Problem(names, None, f"none of the ids belongs to a row of the data (such as {rows[0].id!r})"), problems)
    return [_with_work(row, work[row.id]) if row.id in work else row for row in rows]


def _with_work(row: RationaleRow, record: Mapping[str, Any]) -> RationaleRow:
    return replace(
        row,
        llm_label=record.get("llm_label") or "",
        llm_rationale=record.get("llm_rationale") or "",
        parse_status=record.get("parse_status") or "ok",
        teacher=record.get("teacher") or "",
    )


def _work_problem(record: Any) -> str | None:
    if not isinstance(record, Mapping) or not isinstance(record.get("id"), str | int):
        return "expected an object with an 'id'"
    for name in ("llm_label", "llm_rationale", "teacher", "parse_status"):
        if not isinstance(record.get(name), str | None):
            return f"{name!r} is {type(record[name]).__name__}, expected text"
    status = record.get("parse_status") or "ok"
    return None if status in STATUSES else f"'parse_status' {status!r} is none of {', '.join(STATUSES)}"


def read_lines(path: Path, reader: RecordReader, split: str, problems: Found, start: int = 0) -> list[RationaleRow]:
    """The rows of a JSON-lines file; `start` rows of the split were read before.

    Raises:
        ConfigError: a bad row or file, unless `problems` collects them.
    """
    rows: list[RationaleRow] = []
    for line in json_lines(path):
        if line.problem is not None:
            tell(Problem(str(path), line.number, line.problem), problems)
        else:
            append_row(rows, reader, line.record, split, str(path), line.number, problems, start)
    if not rows:
        tell(Problem(str(path), None, "the file has no rows"), problems)
    return rows


def append_row(
    rows: list[RationaleRow],
    reader: RecordReader,
    record: Any,
    split: str,
    where: str,
    line: int,
    problems: Found,
    start: int = 0,
) -> None:
    """Add the row of a record, or tell what is wrong with it."""
    try:
        rows.append(reader.row(record, start + len(rows), split))
    except BadRow as error:
        tell(Problem(where, line, str(error)), problems)


def unique(rows: list[RationaleRow], where: Path | str, problems: Found) -> list[RationaleRow]:
    """The rows, whose ids must differ."""
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            tell(Problem(str(where), None, f"the id {row.id!r} occurs twice"), problems)
        seen.add(row.id)
    return rows


def tell(problem: Problem, problems: Found) -> None:
    """Collect a problem, or raise it where nothing is collected."""
    if problems is None:
        raise ConfigError(str(problem))
    problems.append(problem)


def text_list(path: Path) -> list[str]:
    """The texts in a JSON list.

    Raises:
        ConfigError: the file is missing or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ConfigError(f"{path}: expected a JSON list of texts")
    return found
