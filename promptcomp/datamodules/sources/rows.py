"""Rows of in-context-learning data: what is wrong with a bad one, access to files, the splits of their tasks."""

from __future__ import annotations

import hashlib
import math
import mmap
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from promptcomp.config import Config, ConfigError
from promptcomp.datamodules.sections import check_split
from promptcomp.datamodules.sources.records import (
    Asked,
    Found,
    Named,
    Problem,
    Record,
    collecting,
    good_records,
    has_errors,
    name_in,
    tell,
    text_problems,
    whole_number,
)
from promptcomp.datamodules.sources.row_files import parse_json, read_records
from promptcomp.datamodules.tasks import LazySequence, Row, Task, TaskKind, TaskSource
from promptcomp.evaluation.texts import label_of, looks_of, same_label
from promptcomp.plain import shown

if TYPE_CHECKING:
    from promptcomp.datamodules.icl_config import HFData, MetaICLData, TableData


class Columns(Config):
    """Names of the columns of a table."""

    input: str = "input"
    """Column with the input text."""
    output: str = "output"
    """Column with the answer."""
    options: str | None = "options"
    """Column with the list of options (in CSV: joined by `|`); null or absent: none."""
    task: str | None = "task"
    """Column with the task's name; null or absent: the whole file is one task, named after the file."""
    seed: str | None = "seed"
    """Column with the data seed of a demonstration pool; null or absent: one pool for each task."""
    split: str | None = "split"
    """Column that says "train" for rows of the demonstration pool and anything else for queries; null or absent: every
    row is a query, with other rows of its task as demonstrations."""

    def asked(self) -> Asked:
        """The columns for a reader."""
        optional = [name for name in (self.options, self.task, self.seed, self.split) if name is not None]
        return Asked((self.input, self.output), tuple(optional), lists=(self.options,) if self.options else ())

    def named(self) -> Named:
        """The optional ones to which a user has given a name."""
        return Named(self, "options", "task", "seed", "split")


METAICL_COLUMNS = Columns(seed=None, split=None)


def row_problems(record: Mapping[str, Any], columns: Columns) -> list[str]:
    """Everything that is wrong with a record, in words; empty for a good one."""
    found = text_problems(record, (columns.input, columns.output))
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
                found.append(f"{columns.output!r} {shown(output)} is not among the options {shown(options, 400)}")
    return found + _place_problems(record, columns)


def option_problems(options: Sequence[str], name: str) -> list[str]:
    """What is wrong with a list of options: an empty one, or one label twice."""
    labels = [label_of(option) for option in options]
    written = shown(list(options), 400)
    found = [f"{name!r} has an empty option: {written}"] if "" in labels else []
    return found + ([f"{name!r} has an option twice: {written}"] if len(set(labels)) < len(labels) else [])


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


def place_of(record: Mapping[str, Any], columns: Columns) -> tuple[str | None, int | None, str | None]:
    """Task, data seed and role ("train", in any case) that a good record names."""
    task = name_in(record.get(columns.task)) if columns.task else None
    seed = record.get(columns.seed) if columns.seed else None
    role = name_in(record.get(columns.split)) if columns.split else None
    return task, None if seed in (None, "") else whole_number(seed), role and role.lower()


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
        found.append(f"{columns.output!r} {shown(output)} differs from the option in white space alone")
    return found


def to_row(record: Mapping[str, Any], where: str, columns: Columns) -> Row:
    """The row in a good record; its output is written as the option that it is."""
    options = (record.get(columns.options) or ()) if columns.options else ()
    output = record[columns.output]
    if options and output not in options:
        output = next(option for option in options if same_label(output, option))
    return Row(record[columns.input], output, tuple(options), where)


def spellings(outputs: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Outputs that are one label in several spellings, or labels that look like one: their places, and the warning."""
    spelled: dict[str, str] = {}
    seen: dict[str, str] = {}
    for place, output in enumerate(outputs):
        label = label_of(output)
        if (first := spelled.setdefault(label, output)) != output:
            yield place, f"{shown(output)} and {shown(first)} are one label: white space does not count"
        elif (other := seen.setdefault(_value_of(label) or looks_of(label), label)) != label:
            yield place, f"{label!a} and {other!a} look alike, but are different labels"


def _value_of(label: str) -> str | None:
    """A number in one spelling: spreadsheets make 1.0 of a 1 where a cell of its column is empty; None: it is none."""
    try:
        return repr(float(label))
    except ValueError:
        return None


class Duplicates:
    """Reports rows that occur twice in one file."""

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

    def __init__(self, path: Path, task: str | None = None, found: Found = None) -> None:
        """
        Args:
            path: The file.
            task: The task that all rows belong to; None: any.
            found: Collects what is wrong and odd.

        Raises:
            ConfigError: names the first bad line, or the file if it has no rows (unless collected), or is missing.
        """
        self.path = path
        self._offsets, self._lines = array("q"), array("q")
        self._map: mmap.mmap | None = None
        options: set[tuple[str, ...]] = set()
        duplicates = Duplicates()
        records = read_records(path, METAICL_COLUMNS.asked(), ".jsonl")
        for record in good_records(records, lambda content: self._problems(content, task), found, path):
            row = to_row(record.content, "", METAICL_COLUMNS)
            self._offsets.append(record.offset)
            self._lines.append(record.line)
            if len(options) < 2:
                options.add(row.options)
            record.warn(row_warnings(record.content, METAICL_COLUMNS), found)
            duplicates.look(record, (row.input, row.output), "input and output", found)
        self.kind: TaskKind = kind_of(options)
        """What kind of task the rows look like."""
        super().__init__(len(self._offsets), self._read)

    def _problems(self, content: Mapping[str, Any], task: str | None) -> list[str]:
        found = row_problems(content, METAICL_COLUMNS)
        if not found and task is not None:
            named = place_of(content, METAICL_COLUMNS)[0]
            found += [f"the row belongs to task {named!r}, not {task!r}"] if named not in (None, task) else []
        return found

    def _read(self, index: int) -> Row:
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = self._offsets[index]
        end = self._map.find(b"\n", start)
        content = parse_json(self._map[start : end if end >= 0 else None].decode("utf-8"))
        return to_row(content, f"{self.path}:{self._lines[index]}", METAICL_COLUMNS)

    def __getstate__(self) -> dict[str, Any]:  # a memory map cannot be sent to a worker process
        return {**self.__dict__, "_map": None}


def kind_of(options: Iterable[tuple[str, ...]]) -> TaskKind:
    """The kind of a task by the option lists of its rows: none, one and the same, or different ones."""
    found: set[tuple[str, ...]] = set()
    for each in options:
        found.add(each)
        if len(found) > 1:
            return "multi_choice"
    return "classification" if found - {()} else "free_form"


def warn_of_leaks(train: Iterable[str], test: Iterable[str], found: Found, where: str = "data") -> None:
    """Warn of tasks that are both trained and tested on."""
    for task in sorted({*train} & {*test}):
        tell(Problem(where, None, f"task {task!r} is both a train and a test task", "warning"), found)


def hold_out(tasks: Sequence[Task], share: float, what: str) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """Split tasks into (training, held out), all data seeds of a task on one side. The choice depends on the tasks'
    names alone.

    Tasks with options are held out first, because only they can be scored; free-form tasks serve for the loss.

    Args:
        tasks: Of at least two names.
        share: Share of all tasks that is held out (rounded up).
        what: Where the tasks come from, for the error message.

    Raises:
        ConfigError: fewer than two names.
    """
    order = sorted(tasks, key=lambda task: (task.kind == "free_form", hashlib.sha256(task.name.encode()).digest()))
    names = list(dict.fromkeys(task.name for task in order))
    if len(names) < 2:
        raise ConfigError(
            f"{what}: with one training task, none can be held out as the dev split; name a dev set or switch it off"
        )
    chosen = {*names[: min(math.ceil(share * len(names)), len(names) - 1)]}
    return (
        tuple(task for task in tasks if task.name not in chosen),
        tuple(task for task in tasks if task.name in chosen),
    )


class HeldOutTasks(TaskSource):
    """What the sources of files share: the parts of the training tasks, and the check."""

    config: MetaICLData | HFData | TableData
    _warns_of_leaks: ClassVar[bool] = True

    @property
    def _holds_out(self) -> bool:
        """Whether the dev split is a part of the training tasks."""
        return self.config.dev == "train_tasks"

    @abstractmethod
    def _training_tasks(self) -> Sequence[Task]:
        """All of them."""

    @abstractmethod
    def _evaluated(self, split: str) -> Sequence[Task]:
        """The tasks of a split that is no part of the training tasks."""

    @abstractmethod
    def _read_all(self, found: Found) -> None:
        """Read every file once."""

    @cached_property
    def _train(self) -> tuple[Sequence[Task], Sequence[Task]]:
        """Training tasks and those held out for selection."""
        tasks = self._training_tasks()
        return hold_out(tasks, self.config.dev_share, self._where) if self._holds_out else (tasks, ())

    @property
    def _where(self) -> str:
        """Where the training tasks come from."""
        return "data.train"

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split; those with data seeds come once for each.

        Raises:
            ConfigError: the split is unknown, a file or dataset is missing, or a row is bad.
        """
        check_split(split, self.splits)
        if split == "train":
            return self._train[0]
        return self._train[1] if split == "dev" and self._holds_out else self._evaluated(split)

    def check(self, found: Found = None) -> None:
        """Read every file, then put the tasks of every split together.

        Raises:
            ConfigError: the first bad row or file, unless they are collected.
        """
        self._read_all(found)
        if has_errors(found):
            return
        names: dict[str, list[str]] = {}
        for split in self.splits:
            with collecting(found):
                names[split] = [task.name for task in self.tasks(split)]
        if self._warns_of_leaks:
            warn_of_leaks(names.get("train", ()), names.get("test", ()), found)
