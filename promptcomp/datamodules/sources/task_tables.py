"""Tasks in tables, a row for each example with columns that `Columns` names: your own files, or one dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from promptcomp.config import ConfigError
from promptcomp.datamodules.icl_config import HFData, TableData
from promptcomp.datamodules.sources.arrow import arrow_rows, open_table
from promptcomp.datamodules.sources.metaicl_folder import read_task_lists
from promptcomp.datamodules.sources.records import (
    Asked,
    Found,
    Named,
    Problem,
    collecting,
    good_records,
    has_errors,
    tell,
)
from promptcomp.datamodules.sources.row_files import read_records
from promptcomp.datamodules.sources.rows import (
    Columns,
    Duplicates,
    HeldOutTasks,
    kind_of,
    place_of,
    row_problems,
    row_warnings,
    spellings,
    to_row,
)
from promptcomp.datamodules.tasks import LazySequence, Row, Task
from promptcomp.errors import did_you_mean
from promptcomp.evaluation.texts import label_of, same_label


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of a table with what says where it belongs."""

    row: Row
    task: str
    seed: int | None
    role: str | None
    is_named: bool
    """Whether the row itself says its task; otherwise the file's name does."""


def read_entries(path: Path, columns: Columns, found: Found = None, named: Named | None = None) -> list[Entry]:
    """The rows of a file.

    Args:
        path: The file.
        columns: Names of its columns.
        found: Collects what is wrong and odd, and the reading goes on.
        named: Is shown every row.

    Raises:
        ConfigError: the file is missing, cannot be read, or has a bad row (with its line) or none, unless collected.
    """
    entries, duplicates = list[Entry](), Duplicates()
    records = read_records(path, columns.asked())
    for record in good_records(records, lambda content: row_problems(content, columns), found, path, named=named):
        row = to_row(record.content, f"{path}:{record.line}", columns)
        task, seed, role = place_of(record.content, columns)
        entries.append(Entry(row, path.stem if task is None else task, seed, role, is_named=task is not None))
        record.warn(row_warnings(record.content, columns), found)
        duplicates.look(record, (entries[-1].task, row.input, row.output), "input and output", found)
    return entries


class TableSource(HeldOutTasks):
    """Lists the tasks of a user's files."""

    config: TableData

    def __init__(self, config: TableData) -> None:
        self.config = config
        self._files: dict[Path, list[Entry]] = {}
        self._named = config.columns.named()
        self._unasked: dict[tuple[str, int | None], None] = {}

    def check(self, found: Found = None) -> None:
        """See the base class; demonstrations of a data seed that no query has are warned of."""
        super().check(found)
        for task, seed in self._unasked:
            which = "without a seed" if seed is None else f"of seed {seed}"
            text = f"task {task!r}: the demonstrations {which} are not shown, as all its queries have other seeds"
            tell(Problem("data", None, text, "warning"), found)

    def _read_all(self, found: Found) -> None:
        config = self.config
        for path in dict.fromkeys([*config.train, *config.dev, *config.test, *config.demonstrations]):
            with collecting(found, str(path)):
                self._files[path] = read_entries(path, config.columns, found, self._named)
        if found is not None:
            self._warn_of_spellings(found)
        if not has_errors(found):
            self._named.check(found)
            for paths in (config.train, config.dev, config.test, config.demonstrations):
                self._check_names(paths, found)

    def _check_names(self, paths: Iterable[Path], found: Found) -> None:
        """Files that are a task each, and have the same name in two folders."""
        first: dict[str, Path] = {}
        for path in paths:
            if not all(entry.is_named for entry in self._files[path]) and first.setdefault(path.stem, path) != path:
                text = (
                    f"a task is named after its file, and {first[path.stem]} is task {path.stem!r} already; "
                    "rename one, or name the tasks in a column (data.columns.task)"
                )
                tell(Problem(str(path), None, text), found)

    def _warn_of_spellings(self, found: list[Problem]) -> None:
        """Outputs of a task that are one label in several spellings, and labels that look like one."""
        tasks: dict[str, list[Row]] = {}
        for entry in chain.from_iterable(self._files.values()):
            tasks.setdefault(entry.task, []).append(entry.row)
        for rows in tasks.values():
            for place, text in spellings(row.output for row in rows):
                tell(Problem.at(rows[place].where, text, "warning"), found)

    @property
    def _holds_out(self) -> bool:
        return not self.config.dev and self.config.dev_share > 0

    def _training_tasks(self) -> Sequence[Task]:
        return self._shared_tasks(self._entries(self.config.train))

    def _evaluated(self, split: str) -> Sequence[Task]:
        entries = self._entries(self.config.dev if split == "dev" else self.config.test)
        shown = [entry for entry in entries if entry.role == "train"]
        asked = [entry for entry in entries if entry.role != "train"]
        if self.config.demonstrations:
            return self._asked_tasks(self._entries(self.config.demonstrations), asked)
        pooled = {entry.task for entry in shown}
        shared = [entry for entry in asked if entry.task not in pooled]
        return [
            *self._asked_tasks(shown, (entry for entry in asked if entry.task in pooled)),
            *self._shared_tasks(shared),
        ]

    def _entries(self, paths: Iterable[Path]) -> list[Entry]:
        found: list[Entry] = []
        for path in paths:
            if path not in self._files:
                self._files[path] = read_entries(path, self.config.columns, named=self._named)
            found += self._files[path]
        return found

    def _shared_tasks(self, entries: Iterable[Entry]) -> list[Task]:
        """Tasks whose rows are both demonstrations and queries."""
        tasks = []
        for (name, seed), members in _grouped(entries).items():
            rows = self._rows(members, members)
            if len(rows) < 2 and self.config.num_demonstrations:
                raise ConfigError(f"task {name!r} has one row and so no demonstration for it; give it more rows")
            tasks.append(Task(name, kind_of(row.options for row in rows), rows, rows, seed))
        return tasks

    def _asked_tasks(self, shown: Iterable[Entry], asked: Iterable[Entry]) -> list[Task]:
        """Tasks with demonstrations and queries, once for each data seed of the demonstrations."""
        pools = _grouped(shown)
        questions = _grouped(asked)
        tasks = []
        for (name, seed), members in questions.items():
            seeds = [other for task, other in pools if task == name and seed in (None, other)]
            if not seeds:
                raise ConfigError(
                    f"task {name!r}{'' if seed is None else f' (seed {seed})'} has queries and no demonstrations"
                )
            for chosen in seeds:
                pool = pools[name, chosen]
                rows = self._rows(members, [*members, *pool])
                demonstrations = self._rows(pool, [*members, *pool])
                tasks.append(Task(name, kind_of(row.options for row in rows), demonstrations, rows, chosen))
        asked_of, shown_to = {name for name, _ in questions}, {(task.name, task.seed) for task in tasks}
        self._unasked |= {pool: None for pool in pools if pool[0] in asked_of and pool not in shown_to}
        return tasks

    def _rows(self, members: Sequence[Entry], all_members: Sequence[Entry]) -> list[Row]:
        if not self.config.options_from_outputs:
            return [entry.row for entry in members]
        options = tuple(sorted({label_of(entry.row.output) for entry in all_members}))
        return [row if row.options else _among(row, options) for row in (entry.row for entry in members)]


def _among(row: Row, options: tuple[str, ...]) -> Row:
    return replace(row, output=next(option for option in options if same_label(option, row.output)), options=options)


def _grouped(entries: Iterable[Entry]) -> dict[tuple[str, int | None], list[Entry]]:
    found: dict[tuple[str, int | None], list[Entry]] = {}
    for entry in entries:
        found.setdefault((entry.task, entry.seed), []).append(entry)
    return found


Groups = dict[tuple[str, int | None, str], list[int]]
"""Places of the rows of every (task, data seed, role)."""
Split = tuple[Groups, Callable[[Sequence[int]], LazySequence[Row]]]
"""The groups of a split, and what reads the rows at some places."""


_ROLES = ("train", "dev", "test")


class HFSource(HeldOutTasks):
    """Lists the tasks of one dataset."""

    config: HFData

    def __init__(self, config: HFData) -> None:
        self.config = config
        self._read: dict[str, Split] = {}
        self._named = config.columns.named()
        self._lists = None if config.partition is None else read_task_lists(config.partition)

    @property
    def _where(self) -> str:
        return f"dataset {self.config.path}"

    def _training_tasks(self) -> Sequence[Task]:
        groups, take = self._split(self.config.train_split)
        merged: dict[tuple[str, int | None], list[int]] = {}
        for (task, seed, _), places in groups.items():
            if self._wanted(task, "train"):
                merged.setdefault((task, seed), []).extend(places)
        tasks = []
        for (name, seed), places in merged.items():
            rows = take(places)
            tasks.append(Task(name, kind_of(row.options for row in rows), rows, rows, seed))
        if not tasks:
            raise ConfigError(f"{self._where}: split {self.config.train_split} has none of the train tasks")
        return tasks

    def _evaluated(self, split: str) -> Sequence[Task]:
        """Test tasks come once for each data seed."""
        groups, take = self._split(self.config.test_split)
        known = {seed for _, seed, _ in groups if seed is not None}
        if lost := [seed for seed in self.config.seeds or () if seed not in known]:
            there = ", ".join(map(str, sorted(known))) or "none"
            where = f"{self._where} (split {self.config.test_split})"
            raise ConfigError(f"data.seeds: no row of {where} has the seed {lost[0]}; there are {there}")
        tasks = []
        for (name, seed, role), places in groups.items():
            chosen = self.config.seeds is None or seed in self.config.seeds
            if role != split or not chosen or not self._wanted(name, "test"):
                continue
            pool = groups.get((name, seed, "train"))
            if pool is None:
                raise ConfigError(f"{self._where}: task {name!r} (seed {seed}) has no rows with split 'train'")
            rows = take(places)
            tasks.append(Task(name, kind_of(row.options for row in rows), take(pool), rows, seed))
        return tasks

    def _wanted(self, task: str, split: str) -> bool:
        return self._lists is None or task in self._lists[split]

    def _read_all(self, found: Found) -> None:
        for split in dict.fromkeys((self.config.train_split, self.config.test_split)):
            with collecting(found):
                self._split(split, found)
        if not has_errors(found):
            self._named.check(found)

    def _split(self, split: str, found: Found = None) -> Split:
        """Places of the rows of every (task, seed, role), and how to read rows."""
        if split not in self._read:
            columns, path = self.config.columns, self.config.path
            table = open_table(path, self.config.config, split, self._asked(split))
            make = partial(to_row, columns=columns)
            groups: Groups = {}

            def wrong(content: Mapping[str, Any]) -> list[str]:
                if (problems := row_problems(content, columns)) or split != self.config.test_split:
                    return problems
                role = place_of(content, columns)[2]
                unknown = f"{columns.split!r} is {role!r}, expected {', '.join(_ROLES)}"
                return [] if role in _ROLES else [unknown if role else f"{columns.split!r} is missing"]

            for record in good_records(table.records(), wrong, found, named=self._named):
                task, seed, role = place_of(record.content, columns)
                groups.setdefault((path if task is None else task, seed, role or "train"), []).append(record.line - 1)
            with collecting(found):
                self._check_listed(split, {task for task, _, _ in groups})
            names = (columns.input, columns.output, columns.options)
            self._read[split] = groups, lambda places: arrow_rows(table, names, make, places)
        return self._read[split]

    def _check_listed(self, split: str, there: set[str]) -> None:
        for name, of in (("train", self.config.train_split), ("test", self.config.test_split)):
            lost = [task for task in self._lists[name] if task not in there] if self._lists and of == split else []
            if lost:
                gone = f"{self.config.partition}: {name!r} names tasks that split {split} of {self._where} lacks"
                raise ConfigError(f"{gone}: {', '.join(map(repr, lost))}; {did_you_mean(lost[0], sorted(there))}")

    def _asked(self, split: str) -> Asked:
        """The columns of a split; where rows are tested, they say their task and their role."""
        asked, columns = self.config.columns.asked(), self.config.columns
        named = (columns.task, columns.split) if split == self.config.test_split else (columns.task,)
        return replace(asked, required=(*asked.required, *(name for name in named if name is not None)))
