"""Tasks in one Hugging Face dataset (hub name or local): a row for each example of every task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from promptcomp.config import ConfigError
from promptcomp.datamodules.arrow import ArrowRows, open_table
from promptcomp.datamodules.metaicl import read_task_lists
from promptcomp.datamodules.options import ICLConfig
from promptcomp.datamodules.rows import Columns, Problem, kind_of, place_of, row_problems, seed_problems
from promptcomp.datamodules.splits import hold_out
from promptcomp.datamodules.tasks import Row, Task

Groups = dict[tuple[str, int | None, str], list[int]]
"""Places of the rows of every (task, data seed, role)."""


class HFData(ICLConfig):
    """One dataset of the Hugging Face hub (or local, for `datasets`) with the rows of all tasks."""

    name: Literal["hf_icl"] = "hf_icl"
    path: str
    """Name on the hub, or a local folder (MEND's: bigheiniuJ/EvalMetaICLAll)."""
    config: str | None = None
    """Configuration of the dataset, if it has several."""
    train_split: str = "meta_train"
    """Split with the training tasks."""
    test_split: str = "meta_eval_100shot"
    """Split with the test tasks' demonstrations (split "train") and queries (split "test", "dev")."""
    partition: Path | None = None
    """MetaICL partition file {"train": [task, ...], "test": [...]}; None = all tasks of both splits."""
    seeds: tuple[int, ...] | None = None
    """Data seeds to test with; None = all."""
    dev: Literal["train_tasks", "target_dev", "none"] = "train_tasks"
    """Where checkpoints are selected, as for `metaicl`."""
    dev_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training tasks that is held out with dev "train_tasks"."""
    columns: Columns = Columns()
    """Names of the columns."""

    @model_validator(mode="after")
    def _columns_are_named(self) -> HFData:
        if self.columns.task is None or self.columns.split is None:
            raise ValueError("columns.task and columns.split must be named: one dataset holds all tasks")
        return self


class HFSource:
    """Lists the tasks of one dataset."""

    def __init__(self, config: HFData) -> None:
        self.config = config
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
        groups, take = self._eval_split
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

    @cached_property
    def _eval_split(self) -> tuple[Groups, Callable[[Sequence[int]], ArrowRows]]:
        return self._split(self.config.test_split)

    def _wanted(self, task: str, split: str) -> bool:
        return self._lists is None or task in self._lists[split]

    def _split(self, split: str) -> tuple[Groups, Callable[[Sequence[int]], ArrowRows]]:
        """Places of the rows of every (task, seed, role), and how to read rows."""
        columns, path = self.config.columns, self.config.path
        table = open_table(path, self.config.config, split)
        groups: Groups = {}
        place = 0
        for batch in table.to_batches(max_chunksize=4096):
            for record in batch.to_pylist():
                found = [*row_problems(record, columns), *seed_problems(record, columns)]
                if found:
                    raise ConfigError(str(Problem(f"{path}[{split}]", place + 1, found[0])))
                task, seed, role = place_of(record, columns, path)
                groups.setdefault((task, seed, role or "train"), []).append(place)
                place += 1
        return groups, lambda places: ArrowRows(table, columns, places)


def _option_sets(rows: Sequence[Row]) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for row in rows:
        found.add(row.options)
        if len(found) > 1:  # enough to tell the kind
            break
    return found
