"""Tasks in MetaICL's folder layout (Min et al. 2022, arXiv 2110.15943).

    FOLDER/data/TASK/TASK_<k>_<seed>_<train|dev|test>.jsonl    one row a line: task, input, output, options
    FOLDER/config/PARTITION.json                               {"train": [task, ...], "test": [...]}
    FOLDER/config/tasks/TASK.json                              optional: {"task_type": "classification", ...}
    FOLDER/tasks.json                                          optional: {TASK: {"kind": "classification"}}

Training tasks have one file (k = 16384, seed 100); test tasks have 16 demonstrations for each of five seeds and a test
file. The original selects checkpoints on the test tasks' dev rows; here the default is a held-out share of the training
tasks, so that nothing of the test tasks is seen before the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import cast, get_args

from promptcomp.config import ConfigError
from promptcomp.datamodules.icl_config import MetaICLData
from promptcomp.datamodules.sources.records import Found, NotHere, Problem, collecting, tell
from promptcomp.datamodules.sources.rows import HeldOutTasks, JsonlRows, warn_of_leaks
from promptcomp.datamodules.tasks import Task, TaskKind
from promptcomp.documents import read_json
from promptcomp.files import is_file_name


class MetaICLSource(HeldOutTasks):
    """Lists the tasks of one partition."""

    config: MetaICLData
    _warns_of_leaks = False  # the partition names its tasks: told before they are read

    def __init__(self, config: MetaICLData) -> None:
        """
        Raises:
            ConfigError: the folder or the partition is missing or malformed.
        """
        self.config = config
        folder = config.folder
        if not folder.is_dir():
            raise NotHere(f"data.folder {folder}: no such folder")
        self._partition = read_partition(folder, config.partition)
        self._files: dict[Path, JsonlRows] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train", "dev" unless it is off, "test" and what else the partition file names."""
        others = [name for name in self._partition if name not in ("train", "test")]
        dev = [] if self.config.dev == "none" else ["dev"]
        return ("train", *dev, "test", *others)

    @property
    def _where(self) -> str:
        return f"partition {self.config.partition}"

    def _training_tasks(self) -> Sequence[Task]:
        k, seed = self.config.train_k, self.config.train_seed
        rows = {name: self._rows(name, k, seed, "train") for name in self._partition["train"]}
        return tuple(Task(name, self._kind(name, found), found, found, seed) for name, found in rows.items())

    def _evaluated(self, split: str) -> Sequence[Task]:
        """Test tasks come once for each data seed."""
        config, k, is_dev = self.config, self.config.test_k, split == "dev"
        tasks = []
        for name in self._partition["test" if is_dev else split]:
            for seed in (config.dev_seed,) if is_dev else config.seeds:
                queries = self._rows(name, k, seed, "dev" if is_dev else "test")
                shown = self._rows(name, k, seed, "train")
                tasks.append(Task(name, self._kind(name, queries), shown, queries, seed))
        return tasks

    def path(self, task: str, k: int, seed: int, split: str) -> Path:
        """The file of a task."""
        return self.config.folder / "data" / task / f"{task}_{k}_{seed}_{split}.jsonl"

    def _read_all(self, found: Found) -> None:
        partition = str(self.config.folder / "config" / f"{self.config.partition}.json")
        warn_of_leaks(self._partition["train"], self._partition["test"], found, partition)
        for name, path in self.files():
            if not path.parent.is_dir():
                tell(Problem(partition, None, f"task {name!r} is unknown: no folder {path.parent}"), found)
                continue
            with collecting(found, str(path)):
                self._files[path] = JsonlRows(path, name, found=found)

    def files(self) -> list[tuple[str, Path]]:
        """Every file that the configuration refers to, with its task."""
        config, k = self.config, self.config.test_k
        found = [(name, config.train_k, config.train_seed, "train") for name in self._partition["train"]]
        for split in (name for name in self._partition if name != "train"):
            wanted = product(self._partition[split], config.seeds, ("train", "test"))
            found += [(name, k, seed, part) for name, seed, part in wanted]
        if config.dev == "target_dev":
            found += [(name, k, config.dev_seed, part) for name in self._partition["test"] for part in ("train", "dev")]
        return [(name, self.path(name, count, seed, part)) for name, count, seed, part in dict.fromkeys(found)]

    def _rows(self, task: str, k: int, seed: int, split: str) -> JsonlRows:
        path = self.path(task, k, seed, split)
        if path not in self._files:
            self._files[path] = JsonlRows(path, task)
        return self._files[path]

    @cached_property
    def _kinds(self) -> Mapping[str, TaskKind]:
        path = self.config.folder / "tasks.json"
        if not path.is_file():
            return {}
        found = _read_mapping(path)
        return {name: _kind(entry.get("kind"), path) for name, entry in found.items() if isinstance(entry, Mapping)}

    def _kind(self, name: str, rows: JsonlRows) -> TaskKind:
        if name in self._kinds:
            return self._kinds[name]
        path = self.config.folder / "config" / "tasks" / f"{name}.json"
        return _kind(_read_mapping(path).get("task_type"), path) if path.is_file() else rows.kind


def read_partition(
    folder: Path, name: str, option: str = "data.partition", needed: Sequence[str] = ("train", "test")
) -> dict[str, list[str]]:
    """The task lists of a partition file: "train", "test" and any further lists, which become test splits.

    Raises:
        ConfigError: the file is missing or malformed, or a list is empty.
    """
    path = folder / "config" / f"{name}.json"
    if not is_file_name(name) or not path.is_file():
        known = sorted(found.stem for found in (folder / "config").glob("*.json"))
        raise ConfigError(f"{option} {name!r}: no file {path}; known: {', '.join(known) or 'none'}")
    return read_task_lists(path, needed)


def read_task_lists(path: Path, needed: Sequence[str] = ("train", "test")) -> dict[str, list[str]]:
    """The lists of a partition file.

    Raises:
        ConfigError: the file is missing or malformed, or one of the `needed` lists is empty.
    """
    lists = {split: tasks for split, tasks in _read_mapping(path).items() if isinstance(tasks, list)}
    for split in needed:
        if not lists.get(split):
            raise ConfigError(f"{path}: {split!r} should be a list of task names and is missing or empty")
    for split, tasks in lists.items():
        if not all(isinstance(task, str) and is_file_name(task) and task.isprintable() for task in tasks):
            raise ConfigError(f"{path}: {split!r} should hold task names only, each the name of a folder inside data/")
    return {split: list(dict.fromkeys(tasks)) for split, tasks in lists.items() if tasks and split != "dev"}


def _read_mapping(path: Path) -> Mapping[str, object]:
    found = read_json(path, "file of MetaICL")
    if not isinstance(found, Mapping):
        raise ConfigError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def _kind(name: object, path: Path) -> TaskKind:
    for kind in get_args(TaskKind):
        if isinstance(name, str) and name.replace("-", "_") == kind:
            return cast(TaskKind, kind)
    raise ConfigError(f"{path}: task kind {name!r} is unknown; known: classification, multi-choice, free-form")
