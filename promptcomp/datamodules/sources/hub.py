"""Tasks in one Hugging Face dataset (hub name or local): a row for each example of every task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

from promptcomp.config import ConfigError
from promptcomp.datamodules.icl_config import HFData
from promptcomp.datamodules.sources.arrow import ArrowRows, open_table
from promptcomp.datamodules.sources.metaicl_folder import read_task_lists
from promptcomp.datamodules.sources.records import Asked, Found, has_errors, tell, tell_error
from promptcomp.datamodules.sources.rows import kind_of, place_of, row_problems
from promptcomp.datamodules.sources.splits import check_tasks, hold_out, warn_of_leaks
from promptcomp.datamodules.tasks import Row, Task, TaskSource

Groups = dict[tuple[str, int | None, str], list[int]]
"""Places of the rows of every (task, data seed, role)."""
Split = tuple[Groups, Callable[[Sequence[int]], ArrowRows]]
"""The groups of a split, and what reads the rows at some places."""


class HFSource(TaskSource):
    """Lists the tasks of one dataset."""

    def __init__(self, config: HFData) -> None:
        self.config = config
        self._read: dict[str, Split] = {}
        self._lists = None if config.partition is None else read_task_lists(config.partition)

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train", "dev" unless it is off, and "test"."""
        return ("train", "test") if self.config.dev == "none" else ("train", "dev", "test")

    @cached_property
    def _train(self) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
        groups, take = self._split(self.config.train_split)
        merged: dict[tuple[str, int | None], list[int]] = {}
        for (task, seed, _), places in groups.items():
            if self._wanted(task, "train"):
                merged.setdefault((task, seed), []).extend(places)
        tasks = []
        for (name, seed), places in merged.items():
            rows = take(places)
            tasks.append(Task(name, kind_of(_option_sets(rows)), rows, rows, seed))
        if not tasks:
            raise ConfigError(
                f"dataset {self.config.path}: split {self.config.train_split} has none of the train tasks"
            )
        return (tuple(tasks), ()) if self.config.dev != "train_tasks" else self._held_out(tasks)

    def _held_out(self, tasks: Sequence[Task]) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
        return hold_out(tasks, self.config.dev_share, f"dataset {self.config.path}")

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split; test tasks come once for each data seed.

        Raises:
            ConfigError: the split is unknown, or the dataset cannot be loaded or has bad rows.
        """
        if split not in self.splits:
            raise ConfigError(f"split {split!r} is unknown; there are {', '.join(self.splits)}")
        if split == "train":
            return self._train[0]
        if split == "dev" and self.config.dev == "train_tasks":
            return self._train[1]
        groups, take = self._split(self.config.test_split)
        tasks = []
        for (name, seed, role), places in groups.items():
            chosen = self.config.seeds is None or seed in self.config.seeds
            if role != split or not chosen or not self._wanted(name, "test"):
                continue
            pool = groups.get((name, seed, "train"))
            if pool is None:
                raise ConfigError(
                    f"dataset {self.config.path}: task {name!r} (seed {seed}) has no rows with split 'train'"
                )
            rows = take(places)
            tasks.append(Task(name, kind_of(_option_sets(rows)), take(pool), rows, seed))
        return tasks

    def _wanted(self, task: str, split: str) -> bool:
        return self._lists is None or task in self._lists[split]

    def check(self, found: Found = None) -> None:
        """Read both splits of the dataset, then put the tasks of every split together.

        Raises:
            ConfigError: the first bad row, unless they are collected.
        """
        for split in dict.fromkeys((self.config.train_split, self.config.test_split)):
            try:
                self._split(split, found)
            except ConfigError as error:
                tell_error(error, found)
        if not has_errors(found):
            names = check_tasks(self, found)
            warn_of_leaks(names.get("train", ()), names.get("test", ()), found)

    def _split(self, split: str, found: Found = None) -> Split:
        """Places of the rows of every (task, seed, role), and how to read rows."""
        if split not in self._read:
            columns, path = self.config.columns, self.config.path
            table = open_table(path, self.config.config, split, self._asked(split))
            groups: Groups = {}
            for record in table.records():
                problems = record.problems(row_problems(record.content, columns))
                for problem in problems:
                    tell(problem, found)
                if not problems:
                    task, seed, role = place_of(record.content, columns, path)
                    groups.setdefault((task, seed, role or "train"), []).append(record.line - 1)
            self._read[split] = groups, lambda places: ArrowRows(table, columns, places)
        return self._read[split]

    def _asked(self, split: str) -> Asked:
        """The columns of a split; where rows are tested, they say their task and their role."""
        asked, columns = self.config.columns.asked(), self.config.columns
        named = (columns.task, columns.split) if split == self.config.test_split else (columns.task,)
        return replace(asked, required=(*asked.required, *(name for name in named if name is not None)))


def _option_sets(rows: Sequence[Row]) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for row in rows:
        found.add(row.options)
        if len(found) > 1:  # enough to tell the kind
            break
    return found
