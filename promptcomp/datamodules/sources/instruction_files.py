"""Instruction rows in files and datasets: reading them, and what is wrong with a bad one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptcomp.datamodules.instruction.instruction_config import InstructionColumns
from promptcomp.datamodules.sources.arrow import Table, open_table
from promptcomp.datamodules.sources.conversations import (
    CONVERSATIONS,
    BadConversation,
    column_with_turns,
    first_exchange,
)
from promptcomp.datamodules.sources.records import Found, Record, no_rows, read_records, tell
from promptcomp.datamodules.sources.rows import Duplicates
from promptcomp.datamodules.tasks import InstructionRow, LazySequence

_HUGE = 1_000_000  # characters; such a row is hardly meant


def instruction_problems(record: Mapping[str, Any], columns: InstructionColumns, allow_empty: bool) -> list[str]:
    """Everything that is wrong with a record, in words; empty for a good one."""
    found = []
    turns = _turns(record, columns)
    named = next((name for name in CONVERSATIONS if record.get(name) is not None), None)
    if turns is None and named and record.get(columns.instruction) is None:
        return [f"{named!r} is {type(record[named]).__name__}, expected a list of turns"]
    if turns is None:
        for name in (columns.instruction, columns.output):
            if record.get(name) is None:
                found.append(f"{name!r} is missing")
            elif not isinstance(record[name], str):
                found.append(f"{name!r} is {type(record[name]).__name__}, expected text")
    for optional in (columns.source,) if turns else (columns.input, columns.source):
        value = record.get(optional) if optional else None
        if value is not None and not isinstance(value, str):
            found.append(f"{optional!r} is {type(value).__name__}, expected text")
    if not found:
        try:
            row = to_instruction(record, columns, "")
        except BadConversation as error:
            return [f"{turns!r} {error}"]
        if not allow_empty and not row.instruction.strip():
            name = turns or columns.instruction
            found.append(f"{name!r} is empty (data.allow_empty_instruction=true takes such rows)")
    return found


def _turns(record: Mapping[str, Any], columns: InstructionColumns) -> str | None:
    """The column with the turns of a conversation; None: the row has an instruction or no turns."""
    return None if record.get(columns.instruction) is not None else column_with_turns(record)


def instruction_warnings(row: InstructionRow) -> list[str]:
    """What looks odd about a good row."""
    found = []
    if not row.instruction.strip():
        found.append("the instruction is empty")
    if not row.output.strip():
        found.append("the output is empty")
    size = len(row.instruction) + len(row.input) + len(row.output)
    if size > _HUGE:
        found.append(f"the row has {size} characters")
    return found


def to_instruction(record: Mapping[str, Any], columns: InstructionColumns, stem: str) -> InstructionRow:
    """The row in a good record.

    Raises:
        BadConversation: the record is a conversation that does not begin with a question and its answer.
    """
    source = (record.get(columns.source) or stem) if columns.source else stem
    if turns := _turns(record, columns):
        instruction, given, output, _ = first_exchange(record[turns], record.get("system"))
        return InstructionRow(instruction, given, output, source)
    given = (record.get(columns.input) or "") if columns.input else ""
    return InstructionRow(record[columns.instruction], given, record[columns.output], source)


def read_instructions(
    path: Path,
    columns: InstructionColumns,
    allow_empty: bool,
    found: Found = None,
    remarks: list[str] | None = None,
) -> Sequence[InstructionRow]:
    """The rows of a file; `remarks` takes what a person should know about them.

    Raises:
        ConfigError: the file is missing, of an unknown kind, has no rows or a bad one (named with its line), unless
            that is collected in `found`.
    """
    return _good_rows(read_records(path, columns.asked()), columns, allow_empty, path.stem, str(path), found, remarks)


def _good_rows(
    records: Iterable[Record],
    columns: InstructionColumns,
    allow_empty: bool,
    stem: str,
    where: str,
    found: Found,
    remarks: list[str] | None,
) -> list[InstructionRow]:
    rows: list[InstructionRow] = []
    duplicates, count, longer = Duplicates(), 0, 0
    for record in records:
        count += 1
        if problems := record.problems(instruction_problems(record.content, columns, allow_empty)):
            for problem in problems:
                tell(problem, found)
            continue
        row = to_instruction(record.content, columns, stem)
        rows.append(row)
        record.warn(instruction_warnings(row), found)
        duplicates.look(record, (row.instruction, row.input, row.output), "instruction, input and output", found)
        if turns := _turns(record.content, columns):
            longer += first_exchange(record.content[turns], record.content.get("system"))[3] > 0
    if not count:
        tell(no_rows(where), found)
    if longer and remarks is not None:
        remarks.append(f"{where}: {longer} of {count} rows have turns after the first answer, which are not read")
    return rows


def open_instructions(
    dataset: str,
    name: str | None,
    split: str,
    columns: InstructionColumns,
    allow_empty: bool,
    found: Found = None,
    remarks: list[str] | None = None,
) -> Sequence[InstructionRow]:
    """The rows of one split of a dataset; they stay on disk.

    Raises:
        ConfigError: the dataset cannot be loaded, lacks a column, or has no rows or a bad one (named with its number),
            unless that is collected in `found`.
    """
    table = open_table(dataset, name, split, columns.asked())
    _good_rows(table.records(), columns, allow_empty, dataset, table.where, found, remarks)
    return _TableRows(table, columns, dataset)


class _TableRows(LazySequence[InstructionRow]):
    """The rows of a table, read from disk when indexed."""

    def __init__(self, table: Table, columns: InstructionColumns, stem: str) -> None:
        self._columns, self._stem, self._size = columns, stem, len(table)
        self._values = table.columns(*columns.asked().all)

    def __len__(self) -> int:
        return self._size

    def item(self, index: int) -> InstructionRow:
        """One row."""
        record = {name: values[index].as_py() for name, values in self._values.items()}
        return to_instruction(record, self._columns, self._stem)


class SomeRows(LazySequence[InstructionRow]):
    """Some rows of a sequence."""

    def __init__(self, rows: Sequence[InstructionRow], places: Sequence[int]) -> None:
        self._rows, self._places = rows, np.asarray(places, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def item(self, index: int) -> InstructionRow:
        """One row."""
        return self._rows[int(self._places[index])]
