"""Tasks in a user's own files: a row for each example, with columns that `Columns` names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from promptcomp.config import ConfigError
from promptcomp.datamodules.icl_config import TableData
from promptcomp.datamodules.sources.records import Found, Problem, has_errors, no_rows, read_records, tell, tell_error
from promptcomp.datamodules.sources.rows import (
    Columns,
    Duplicates,
    kind_of,
    place_of,
    row_problems,
    row_warnings,
    to_row,
)
from promptcomp.datamodules.sources.splits import check_tasks, hold_out, warn_of_leaks
from promptcomp.datamodules.tasks import Row, Task, TaskSource
from promptcomp.evaluation.texts import label_of, looks_of, same_label


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of a table with what says where it belongs."""

    row: Row
    task: str
    seed: int | None
    role: str | None


def read_entries(path: Path, columns: Columns, found: Found = None) -> list[Entry]:
    """The rows of a file.

    Args:
        path: The file.
        columns: Names of its columns.
        found: Collects what is wrong and odd, and the reading goes on.

    Raises:
        ConfigError: the file is missing, cannot be read, or has a bad row (with its line) or none, unless collected.
    """
    entries, seen, duplicates = [], False, Duplicates()
    for record in read_records(path, columns.asked()):
        seen = True
        if problems := record.problems(row_problems(record.content, columns)):
            for problem in problems:
                tell(problem, found)
            continue
        row = to_row(record.content, columns, f"{path}:{record.line}")
        entries.append(Entry(row, *place_of(record.content, columns, path.stem)))
        record.warn(row_warnings(record.content, columns), found)
        duplicates.look(record, (entries[-1].task, row.input, row.output), "input and output", found)
    if not seen:
        tell(no_rows(path), found)
    return entries


class TableSource(TaskSource):
    """Lists the tasks of a user's files."""

    def __init__(self, config: TableData) -> None:
        self.config = config
        self._files: dict[Path, list[Entry]] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train" and "dev" where there are any, and "test"."""
        config = self.config
        has_dev = bool(config.dev) or (bool(config.train) and config.dev_share > 0)
        return (*(["train"] if config.train else []), *(["dev"] if has_dev else []), "test")

    def check(self, found: Found = None) -> None:
        """Read every file that the configuration names, then put the tasks of every split together.

        Raises:
            ConfigError: the first bad row or file, unless they are collected.
        """
        config = self.config
        for path in dict.fromkeys([*config.train, *config.dev, *config.test, *config.demonstrations]):
            try:
                self._files[path] = read_entries(path, config.columns, found)
                self._warn_of_spellings(path, found)
            except ConfigError as error:
                tell_error(error, found, str(path))
        if not has_errors(found):
            names = check_tasks(self, found)
            warn_of_leaks(names.get("train", ()), names.get("test", ()), found)

    def _warn_of_spellings(self, path: Path, found: Found) -> None:
        """Outputs that are one label in several spellings, and labels that look like one."""
        spelled: dict[str, str] = {}
        seen: dict[str, str] = {}
        for row in (entry.row for entry in self._files[path] if found is not None):
            label = label_of(row.output)
            if (first := spelled.setdefault(label, row.output)) != row.output:
                text = f"{row.output!r} and {first!r} are one label: white space does not count"
            elif (other := seen.setdefault(looks_of(label), label)) != label:
                text = f"{label!a} and {other!a} look alike, but are two labels"
            else:
                continue
            tell(Problem.at(row.where, text, "warning"), found)

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
        found: list[Entry] = []
        for path in paths:
            if path not in self._files:
                self._files[path] = read_entries(path, self.config.columns)
            found += self._files[path]
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
        options = tuple(sorted({label_of(entry.row.output) for entry in all_members}))
        return [row if row.options else _among(row, options) for row in (entry.row for entry in members)]


def _among(row: Row, options: tuple[str, ...]) -> Row:
    return replace(row, output=next(option for option in options if same_label(option, row.output)), options=options)


def _grouped(entries: Iterable[Entry]) -> dict[tuple[str, int | None], list[Entry]]:
    found: dict[tuple[str, int | None], list[Entry]] = {}
    for entry in entries:
        found.setdefault((entry.task, entry.seed), []).append(entry)
    return found
