"""Instruction rows in files and datasets: reading them, and what is wrong with a bad one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from promptcomp.config import Config, ConfigError
from promptcomp.datamodules.arrow import column_of, open_table
from promptcomp.datamodules.rows import Problem, json_lines
from promptcomp.datamodules.tables import csv_records
from promptcomp.datamodules.tasks import InstructionRow, LazySequence

if TYPE_CHECKING:
    import pyarrow as pa

FILE_KINDS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
_HUGE = 1_000_000  # characters; such a row is hardly meant


class InstructionColumns(Config):
    """Names of the columns of a table of instructions."""

    instruction: str = "instruction"
    """Column with the instruction."""
    input: str | None = "input"
    """Column with what it is applied to; null or absent: no row has an input."""
    output: str = "output"
    """Column with the answer."""
    source: str | None = "source"
    """Column that says where a row comes from; null or absent: the name of the file."""

    def names(self) -> tuple[str, ...]:
        """The columns that must be there."""
        return (self.instruction, self.output)


def instruction_problems(record: Any, columns: InstructionColumns, allow_empty: bool) -> list[str]:
    """Everything that is wrong with a record, in words; empty for a good one."""
    if not isinstance(record, Mapping):
        return [f"expected an object with {columns.instruction!r}, found {type(record).__name__}"]
    found = []
    for name in columns.names():
        if record.get(name) is None:
            found.append(f"{name!r} is missing")
        elif not isinstance(record[name], str):
            found.append(f"{name!r} is {type(record[name]).__name__}, expected text")
    for optional in (columns.input, columns.source):
        value = record.get(optional) if optional else None
        if value is not None and not isinstance(value, str):
            found.append(f"{optional!r} is {type(value).__name__}, expected text")
    instruction = record.get(columns.instruction)
    if not allow_empty and isinstance(instruction, str) and not instruction.strip():
        found.append(f"{columns.instruction!r} is empty (data.allow_empty_instruction=true takes such rows)")
    return found


def instruction_warnings(record: Mapping[str, Any], columns: InstructionColumns) -> list[str]:
    """What looks odd about a good record."""
    found = []
    if not record[columns.instruction].strip():
        found.append(f"{columns.instruction!r} is empty")
    if not record[columns.output].strip():
        found.append(f"{columns.output!r} is empty")
    size = sum(len(value) for value in record.values() if isinstance(value, str))
    if size > _HUGE:
        found.append(f"the row has {size} characters")
    return found


def to_instruction(record: Mapping[str, Any], columns: InstructionColumns, stem: str) -> InstructionRow:
    """The row in a good record."""
    return InstructionRow(
        record[columns.instruction],
        (record.get(columns.input) or "") if columns.input else "",
        record[columns.output],
        (record.get(columns.source) or stem) if columns.source else stem,
    )


def file_records(path: Path, columns: InstructionColumns) -> Iterator[tuple[int, Any, str | None]]:
    """Number, record and problem of every row: line numbers in .jsonl and .csv, counted from 1 in other files.

    Raises:
        ConfigError: the file is missing, cannot be read, or is of an unknown kind.
    """
    if path.suffix == ".jsonl":
        for line in json_lines(path):
            yield line.number, line.record, line.problem
    elif path.suffix in (".csv", ".tsv"):
        yield from csv_records(path, columns.names(), None)
    elif path.suffix == ".json":
        for number, record in enumerate(_json_list(path), start=1):
            yield number, record, None
    elif path.suffix == ".parquet":
        yield from table_records(_parquet(path))
    else:
        raise ConfigError(f"{path}: a file of instructions should end in {', '.join(FILE_KINDS)}")


def table_records(table: pa.Table) -> Iterator[tuple[int, Any, str | None]]:
    """Number and record of every row of an Arrow table."""
    number = 0
    for batch in table.to_batches(max_chunksize=4096):
        for record in batch.to_pylist():
            number += 1
            yield number, record, None


def _json_list(path: Path) -> list[Any]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        found = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text ({error.reason})") from None
    except json.JSONDecodeError as error:
        hint = "; a file with one object a line should end in .jsonl" if error.msg == "Extra data" else ""
        raise ConfigError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno}){hint}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not a list of rows (nested too deeply)") from None
    if not isinstance(found, list):
        raise ConfigError(f"{path}: expected a list of rows, found {type(found).__name__}")
    return found


def _parquet(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        return pa.parquet.read_table(path, memory_map=True)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from None


def read_instructions(path: Path, columns: InstructionColumns, allow_empty: bool) -> Sequence[InstructionRow]:
    """The rows of a file.

    Raises:
        ConfigError: the file is missing, of an unknown kind, has no rows or a bad one (named with its line).
    """
    found: list[InstructionRow] = []
    for number, record, problem in file_records(path, columns):
        problems = [problem] if problem else instruction_problems(record, columns, allow_empty)
        if problems:
            raise ConfigError(str(Problem(str(path), number, problems[0])))
        found.append(to_instruction(record, columns, path.stem))
    if not found:
        raise ConfigError(f"{path}: the file has no rows")
    return found


def open_instructions(
    dataset: str, name: str | None, split: str, columns: InstructionColumns, allow_empty: bool
) -> Sequence[InstructionRow]:
    """The rows of one split of a dataset; they stay on disk.

    Raises:
        ConfigError: the dataset cannot be loaded, lacks a column, or has a bad row (named with its number).
    """
    table = open_table(dataset, name, split)
    for column in columns.names():
        column_of(table, column)
    for number, record, _ in table_records(table):
        problems = instruction_problems(record, columns, allow_empty)
        if problems:
            raise ConfigError(str(Problem(f"{dataset}[{split}]", number, problems[0])))
    if not table.num_rows:
        raise ConfigError(f"dataset {dataset}: split {split} has no rows")
    return _TableRows(table, columns, dataset)


class _TableRows(LazySequence[InstructionRow]):
    """The rows of a table, read from disk when indexed."""

    def __init__(self, table: pa.Table, columns: InstructionColumns, stem: str) -> None:
        self._columns, self._stem, self._size = columns, stem, table.num_rows
        wanted = (columns.instruction, columns.input, columns.output, columns.source)
        self._values = {name: table.column(name) for name in wanted if name is not None and name in table.column_names}

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
