"""Rows in files: what a good row is, what is wrong with a bad one, and compact access to JSON lines."""

from __future__ import annotations

import json
import mmap
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from promptcomp.config import Config, ConfigError
from promptcomp.datamodules.tasks import LazySequence, Row, TaskKind


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the data. An error stops a run, a warning does not."""

    file: str
    line: int | None
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.message}"


class Columns(Config):
    """Names of the columns of a table."""

    input: str = "input"
    """Column with the input text."""
    output: str = "output"
    """Column with the answer."""
    options: str | None = "options"
    """Column with the list of options (in CSV: joined by `|`); None or absent: none."""
    task: str | None = "task"
    """Column with the task's name; None or absent: the whole file is one task, named after the file."""
    seed: str | None = "seed"
    """Column with the data seed of a demonstration pool; None or absent: one pool for each task."""
    split: str | None = "split"
    """Column that says "train" for rows of the demonstration pool and anything else for queries; None or absent: every
    row is asked, with other rows of its task as demonstrations."""


METAICL_COLUMNS = Columns(task=None, seed=None, split=None)


def row_problems(record: Any, columns: Columns) -> list[str]:
    """Everything that is wrong with a record, in words; empty for a good one."""
    if not isinstance(record, Mapping):
        return [f"expected an object with {columns.input!r} and {columns.output!r}, found {type(record).__name__}"]
    found = []
    for name in (columns.input, columns.output):
        if record.get(name) is None:
            found.append(f"{name!r} is missing")
        elif not isinstance(record[name], str):
            found.append(f"{name!r} is {type(record[name]).__name__}, expected text")
    options = record.get(columns.options) if columns.options else None
    output = record.get(columns.output)
    if output == "":
        found.append(f"{columns.output!r} is empty")
    if options is not None:
        if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
            found.append(f"{columns.options!r} is not a list of texts")
        elif len(set(options)) < len(options):
            found.append(f"{columns.options!r} has an option twice: {options}")
        elif options and isinstance(output, str) and output not in options:
            found.append(f"{columns.output!r} {output!r} is not among the options {options}")
    return found


def seed_problems(record: Any, columns: Columns) -> list[str]:
    """What is wrong with the data seed of a record, in words."""
    value = record.get(columns.seed) if isinstance(record, dict) and columns.seed else None
    try:
        int(value or 0)
    except (TypeError, ValueError):
        return [f"{columns.seed!r} {value!r} is no whole number"]
    return []


def place_of(record: Mapping[str, Any], columns: Columns, stem: str) -> tuple[str, int | None, str | None]:
    """Task, data seed and role of a record; without a task column the task is `stem`."""
    task = record.get(columns.task) if columns.task else None
    seed = record.get(columns.seed) if columns.seed else None
    role = record.get(columns.split) if columns.split else None
    return str(task or stem), None if seed in (None, "") else int(seed), str(role) if role else None


def row_warnings(record: Mapping[str, Any], columns: Columns) -> list[str]:
    """What looks odd about a good record."""
    found = []
    if not record[columns.input].strip():
        found.append(f"{columns.input!r} is empty")
    if not record[columns.output].strip():
        found.append(f"{columns.output!r} is white space")
    if columns.options and len(record.get(columns.options) or ()) == 1:
        found.append("there is only one option")
    return found


def to_row(record: Mapping[str, Any], columns: Columns) -> Row:
    """The row in a good record."""
    options = record.get(columns.options) if columns.options else None
    return Row(record[columns.input], record[columns.output], tuple(options or ()))


@dataclass(frozen=True, slots=True)
class Line:
    """One non-blank line of a JSON-lines file: where it is, and its content or what is wrong with it."""

    number: int
    offset: int
    record: Any
    problem: str | None = None


def json_lines(path: Path) -> Iterator[Line]:
    """The non-blank lines of a file.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            offset = 0
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield _line(number, offset, raw)
                offset += len(raw)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _line(number: int, offset: int, raw: bytes) -> Line:
    try:
        return Line(number, offset, json.loads(raw.decode("utf-8")))
    except UnicodeDecodeError as error:
        return Line(number, offset, None, f"not UTF-8 text (byte {error.start} of the line)")
    except json.JSONDecodeError as error:
        return Line(number, offset, None, f"not valid JSON: {error.msg} (column {error.colno})")


class JsonlRows(LazySequence[Row]):
    """The rows of a JSON-lines file; every line is checked at once, but only its place is kept in memory."""

    def __init__(self, path: Path, columns: Columns = METAICL_COLUMNS) -> None:
        """
        Raises:
            ConfigError: names the first bad line, or the file if it is missing or has no rows.
        """
        self.path, self._columns = path, columns
        self._offsets = array("q")
        self._map: mmap.mmap | None = None
        options: set[tuple[str, ...]] = set()
        for line in json_lines(path):
            problems = [line.problem] if line.problem else row_problems(line.record, columns)
            if problems:
                raise ConfigError(str(Problem(str(path), line.number, problems[0])))
            self._offsets.append(line.offset)
            if len(options) < 2:
                options.add(to_row(line.record, columns).options)
        if not self._offsets:
            raise ConfigError(f"{path}: the file has no rows")
        self.kind: TaskKind = kind_of(options)
        """What kind of task the rows look like."""

    def __len__(self) -> int:
        return len(self._offsets)

    def item(self, index: int) -> Row:
        """One row."""
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = self._offsets[index]
        end = self._map.find(b"\n", start)
        return to_row(json.loads(self._map[start : end if end >= 0 else None]), self._columns)

    def __getstate__(self) -> dict[str, Any]:  # a memory map cannot be sent to a worker process
        return {**self.__dict__, "_map": None}

    def __copy__(self) -> Self:
        return self


def kind_of(options: set[tuple[str, ...]]) -> TaskKind:
    """The kind of a task by the distinct option lists of its rows: none, one and the same, or different ones."""
    if options <= {()}:
        return "free_form"
    return "classification" if len(options) == 1 else "multi_choice"
