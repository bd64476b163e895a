"""Tasks in a user's own JSONL and CSV files: a row for each example, with columns that `Columns` names."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from promptcomp.config import ConfigError
from promptcomp.datamodules.options import ICLConfig
from promptcomp.datamodules.rows import (
    Columns,
    Problem,
    json_lines,
    kind_of,
    place_of,
    row_problems,
    row_warnings,
    seed_problems,
    to_row,
)
from promptcomp.datamodules.splits import hold_out
from promptcomp.datamodules.tasks import Row, Task

OPTION_SEPARATOR = "|"  # between options in a CSV cell


class TableData(ICLConfig):
    """Your own examples in JSONL or CSV files."""

    name: Literal["table_icl"] = "table_icl"
    train: tuple[Path, ...] = ()
    """Files with the training tasks."""
    test: tuple[Path, ...] = Field(min_length=1)
    """Files with the tasks to test on."""
    dev: tuple[Path, ...] = ()
    """Files with the tasks to select checkpoints on; none: a held-out share of the training tasks (dev_share)."""
    demonstrations: tuple[Path, ...] = ()
    """Files with demonstrations for the dev and test tasks; none: a task's rows with split "train", or else its other
    rows."""
    dev_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training tasks that is held out when `dev` is empty; 0 = no dev split."""
    columns: Columns = Columns()
    """Names of the columns."""
    options_from_outputs: bool = False
    """Give a task without options the list of its distinct outputs."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of a table with what says where it belongs."""

    row: Row
    task: str
    seed: int | None
    role: str | None
    line: int


def read_entries(path: Path, columns: Columns, problems: list[Problem] | None = None) -> Iterator[Entry]:
    """The rows of a JSONL, CSV or TSV file.

    Args:
        path: The file.
        columns: Names of its columns.
        problems: Collects what is wrong, and the reading goes on; None: the first error is raised.

    Raises:
        ConfigError: the file is missing, of an unknown kind, or has a bad row (with its line).
    """
    for number, record, problem in _records(path, columns):
        found = [problem] if problem else [*row_problems(record, columns), *seed_problems(record, columns)]
        if found and problems is None:
            raise ConfigError(str(Problem(str(path), number, found[0])))
        if found and problems is not None:
            problems.extend(Problem(str(path), number, message) for message in found)
            continue
        if problems is not None:
            problems.extend(Problem(str(path), number, text, "warning") for text in row_warnings(record, columns))
        yield Entry(to_row(record, columns), *place_of(record, columns, path.stem), number)


def _records(path: Path, columns: Columns) -> Iterator[tuple[int, Any, str | None]]:
    """Line number, record and problem of every row."""
    if path.suffix == ".jsonl":
        for line in json_lines(path):
            yield line.number, line.record, line.problem
    elif path.suffix in (".csv", ".tsv"):
        yield from csv_records(path, (columns.input, columns.output), columns.options)
    else:
        raise ConfigError(f"{path}: a table should end in .jsonl, .csv or .tsv")


def csv_records(path: Path, required: Sequence[str], options: str | None) -> Iterator[tuple[int, Any, str | None]]:
    """Line number, record and problem of every row of a CSV or TSV file.

    Args:
        path: The file.
        required: Columns that must be there.
        options: Column whose cells are lists; None: none.

    Raises:
        ConfigError: the file is missing, lacks a column, or cannot be read as CSV.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
            header = reader.fieldnames or ()
            for name in required:
                if name not in header:
                    raise ConfigError(f"{path}:1: no column {name!r}; the columns are {', '.join(header) or 'none'}")
            for record in reader:
                if None in record:
                    yield reader.line_num, None, f"more cells than the {len(header)} columns"
                    continue
                if options is not None:
                    cell = record.get(options) or ""
                    record[options] = cell.split(OPTION_SEPARATOR) if cell else []
                yield reader.line_num, record, None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, _bad_byte(path)) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text ({error.reason})") from None
    except csv.Error as error:
        raise ConfigError(f"{path}:{reader.reader.line_num}: not valid CSV: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _bad_byte(path: Path) -> int:
    """Place of the first byte of a file that is not UTF-8 (the decoder counts within a chunk)."""
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return 0


class TableSource:
    """Lists the tasks of a user's files."""

    def __init__(self, config: TableData) -> None:
        self.config = config

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train" and "dev" where there are any, and "test"."""
        config = self.config
        has_dev = bool(config.dev) or (bool(config.train) and config.dev_share > 0)
        return (*(["train"] if config.train else []), *(["dev"] if has_dev else []), "test")

    def files(self) -> list[Path]:
        """Every file that the configuration names."""
        config = self.config
        return list(dict.fromkeys([*config.train, *config.dev, *config.test, *config.demonstrations]))

    @cached_property
    def _train(self) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
        tasks = self._shared_tasks(self._entries(self.config.train))
        if self.config.dev or not self.config.dev_share:
            return tuple(tasks), ()
        return hold_out(tasks, self.config.dev_share, "data.train")

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split.

        Raises:
            ConfigError: the split is unknown, a file is missing, or a row is bad.
        """
        if split not in self.splits:
            raise ConfigError(f"split {split!r} is unknown; there are {', '.join(self.splits)}")
        if split == "train":
            return self._train[0]
        if split == "dev" and not self.config.dev:
            return self._train[1]
        entries = self._entries(self.config.dev if split == "dev" else self.config.test)
        if self.config.demonstrations:
            shown = self._entries(self.config.demonstrations)
            return self._asked_tasks(shown, entries)
        shown = [entry for entry in entries if entry.role == "train"]
        asked = [entry for entry in entries if entry.role != "train"]
        return self._asked_tasks(shown, asked) if shown else self._shared_tasks(entries)

    def _entries(self, paths: Iterable[Path]) -> list[Entry]:
        found = []
        for path in paths:
            entries = list(read_entries(path, self.config.columns))
            if not entries:
                raise ConfigError(f"{path}: the file has no rows")
            found.extend(entries)
        return found

    def _shared_tasks(self, entries: Iterable[Entry]) -> list[Task]:
        """Tasks whose rows are both shown and asked."""
        tasks = []
        for (name, seed), members in _grouped(entries).items():
            rows = self._rows(members, members)
            if len(rows) < 2:
                raise ConfigError(f"task {name!r} has one row and so no demonstration for it; give it more rows")
            tasks.append(Task(name, kind_of({row.options for row in rows}), rows, rows, seed))
        return tasks

    def _asked_tasks(self, shown: Iterable[Entry], asked: Iterable[Entry]) -> list[Task]:
        """Tasks with rows to show and rows to ask, once for each data seed of the rows to show."""
        pools = _grouped(shown)
        questions = _grouped(asked)
        tasks = []
        for (name, seed), members in questions.items():
            seeds = (
                [seed] if (name, seed) in pools else [other for task, other in pools if task == name and seed is None]
            )
            if not seeds:
                raise ConfigError(
                    f"task {name!r}{'' if seed is None else f' (seed {seed})'} has queries and no demonstrations"
                )
            for chosen in seeds:
                pool = pools[name, chosen]
                rows = self._rows(members, [*members, *pool])
                demonstrations = self._rows(pool, [*members, *pool])
                tasks.append(Task(name, kind_of({row.options for row in rows}), demonstrations, rows, chosen))
        return tasks

    def _rows(self, members: Sequence[Entry], all_members: Sequence[Entry]) -> list[Row]:
        if not self.config.options_from_outputs:
            return [entry.row for entry in members]
        options = tuple(sorted({entry.row.output for entry in all_members}))
        return [Row(e.row.input, e.row.output, e.row.options or options) for e in members]


def _grouped(entries: Iterable[Entry]) -> dict[tuple[str, int | None], list[Entry]]:
    found: dict[tuple[str, int | None], list[Entry]] = {}
    for entry in entries:
        found.setdefault((entry.task, entry.seed), []).append(entry)
    return found
