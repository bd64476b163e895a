"""Rows of in-context-learning data: what a good one is, what is wrong with a bad one, and compact access to files."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from promptcomp.config import Config
from promptcomp.datamodules.sources.records import (
    Asked,
    Found,
    Record,
    name_in,
    no_rows,
    parse_json,
    read_records,
    tell,
    whole_number,
)
from promptcomp.datamodules.tasks import LazySequence, Row, TaskKind
from promptcomp.evaluation.texts import label_of, same_label
from promptcomp.plain import shown


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

    def asked(self) -> Asked:
        """The columns for a reader."""
        optional = [name for name in (self.options, self.task, self.seed, self.split) if name is not None]
        return Asked((self.input, self.output), tuple(optional), lists=(self.options,) if self.options else ())


METAICL_COLUMNS = Columns(seed=None, split=None)


def row_problems(record: Mapping[str, Any], columns: Columns) -> list[str]:
    """Everything that is wrong with a record, in words; empty for a good one."""
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
        else:
            found += option_problems(options, columns.options or "")
            if options and isinstance(output, str) and not any(same_label(output, option) for option in options):
                found.append(f"{columns.output!r} {output!r} is not among the options {options}")
    return found + _place_problems(record, columns)


def option_problems(options: Sequence[str], name: str) -> list[str]:
    """What is wrong with a list of options: an empty one, or one label twice."""
    labels = [label_of(option) for option in options]
    found = [f"{name!r} has an empty option: {list(options)}"] if "" in labels else []
    return found + ([f"{name!r} has an option twice: {list(options)}"] if len(set(labels)) < len(labels) else [])


def _place_problems(record: Mapping[str, Any], columns: Columns) -> list[str]:
    found = []
    for name in (name for name in (columns.task, columns.split) if name is not None):
        try:
            name_in(record.get(name))
        except ValueError:
            found.append(f"{name!r} is {type(record[name]).__name__}, expected text or a whole number")
    value = record.get(columns.seed) if columns.seed else None
    try:
        if value not in (None, "") and whole_number(value) < 0:
            found.append(f"{columns.seed!r} {shown(value, 60)} is negative")
    except ValueError:
        found.append(f"{columns.seed!r} {shown(value, 60)} is no whole number")
    return found


def place_of(record: Mapping[str, Any], columns: Columns, stem: str) -> tuple[str, int | None, str | None]:
    """Task, data seed and role of a good record; without a task column the task is `stem`."""
    task = name_in(record.get(columns.task)) if columns.task else None
    seed = record.get(columns.seed) if columns.seed else None
    role = name_in(record.get(columns.split)) if columns.split else None
    return stem if task is None else task, None if seed in (None, "") else whole_number(seed), role


def row_warnings(record: Mapping[str, Any], columns: Columns) -> list[str]:
    """What looks odd about a good record."""
    found = []
    output, options = record[columns.output], (record.get(columns.options) or ()) if columns.options else ()
    if not record[columns.input].strip():
        found.append(f"{columns.input!r} is empty")
    if not output.strip():
        found.append(f"{columns.output!r} is white space")
    if len(options) == 1:
        found.append("there is only one option")
    if options and output not in options:
        found.append(f"{columns.output!r} {output!r} is the option that differs from it in white space alone")
    return found


def to_row(record: Mapping[str, Any], columns: Columns, where: str = "") -> Row:
    """The row in a good record; its output is written as the option that it is."""
    options = (record.get(columns.options) or ()) if columns.options else ()
    output = record[columns.output]
    if options and output not in options:
        output = next(option for option in options if same_label(output, option))
    return Row(record[columns.input], output, tuple(options), where)


class Duplicates:
    """Tells of good rows of one file that are there twice."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str | None, ...], int] = {}

    def look(self, record: Record, row: Sequence[str | None], what: str, found: Found) -> None:
        """Warn of a row that was seen before."""
        if found is None:  # nobody asks for warnings
            return
        key = tuple(row)
        if key in self._seen:
            record.warn([f"the same {what} as in line {self._seen[key]}"], found)
        self._seen.setdefault(key, record.line)


class JsonlRows(LazySequence[Row]):
    """The rows of a JSON-lines file; every line is checked at once, but only its place is kept in memory."""

    def __init__(
        self, path: Path, task: str | None = None, columns: Columns = METAICL_COLUMNS, found: Found = None
    ) -> None:
        """
        Args:
            path: The file.
            task: The task that all rows belong to; None: any.
            columns: Names of the columns.
            found: Collects what is wrong and odd.

        Raises:
            ConfigError: names the first bad line, or the file if it has no rows (unless collected), or is missing.
        """
        self.path, self._columns = path, columns
        self._offsets, self._lines = array("q"), array("q")
        self._map: mmap.mmap | None = None
        options: set[tuple[str, ...]] = set()
        duplicates, seen = Duplicates(), False
        for record in read_records(path, columns.asked(), ".jsonl"):
            seen = True
            if problems := record.problems(self._problems(record.content, task)):
                for problem in problems:
                    tell(problem, found)
                continue
            row = to_row(record.content, columns)
            self._offsets.append(record.offset)
            self._lines.append(record.line)
            if len(options) < 2:
                options.add(row.options)
            record.warn(row_warnings(record.content, columns), found)
            duplicates.look(record, (row.input, row.output), "input and output", found)
        if not seen:
            tell(no_rows(path), found)
        self.kind: TaskKind = kind_of(options)
        """What kind of task the rows look like."""

    def _problems(self, content: Mapping[str, Any], task: str | None) -> list[str]:
        found = row_problems(content, self._columns)
        if not found and task is not None:
            named = place_of(content, self._columns, task)[0]
            found += [f"the row belongs to task {named!r}, not {task!r}"] if named != task else []
        return found

    def __len__(self) -> int:
        return len(self._offsets)

    def item(self, index: int) -> Row:
        """One row."""
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = self._offsets[index]
        end = self._map.find(b"\n", start)
        content = parse_json(self._map[start : end if end >= 0 else None].decode("utf-8"))
        return to_row(content, self._columns, f"{self.path}:{self._lines[index]}")

    def __getstate__(self) -> dict[str, Any]:  # a memory map cannot be sent to a worker process
        return {**self.__dict__, "_map": None}

    def __copy__(self) -> Self:
        return self


def kind_of(options: set[tuple[str, ...]]) -> TaskKind:
    """The kind of a task by the distinct option lists of its rows: none, one and the same, or different ones."""
    if options <= {()}:
        return "free_form"
    return "classification" if len(options) == 1 else "multi_choice"
