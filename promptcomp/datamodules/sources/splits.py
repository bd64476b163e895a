"""The splits of tasks: a part of the training tasks held out to select checkpoints on, and what is odd between them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

from promptcomp.config import ConfigError
from promptcomp.datamodules.sources.records import Found, Problem, tell, tell_error
from promptcomp.datamodules.tasks import Task, TaskSource


def check_tasks(source: TaskSource, found: Found) -> dict[str, list[str]]:
    """Put the tasks of every split together; their names by split.

    Raises:
        ConfigError: a split cannot be made, unless that is collected.
    """
    names: dict[str, list[str]] = {}
    for split in source.splits:
        try:
            names[split] = [task.name for task in source.tasks(split)]
        except ConfigError as error:
            tell_error(error, found)
    return names


def warn_of_leaks(train: Iterable[str], test: Iterable[str], found: Found, where: str = "data") -> None:
    """Warn of tasks that are both trained and tested on."""
    for task in sorted({*train} & {*test}):
        tell(Problem(where, None, f"task {task!r} is both a train and a test task", "warning"), found)


def hold_out(tasks: Sequence[Task], share: float, what: str) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """Split tasks into (training, held out). The choice depends on the tasks' names alone.

    Tasks with options are held out first, because only they can be scored; free-form tasks serve for the loss.

    Args:
        tasks: At least two.
        share: Share of all tasks that is held out (rounded up).
        what: Where the tasks come from, for the error message.

    Raises:
        ConfigError: fewer than two tasks.
    """
    if len(tasks) < 2:
        raise ConfigError(
            f"{what}: of one training task none can be held out as the dev split; name a dev set or switch it off"
        )
    count = min(math.ceil(share * len(tasks)), len(tasks) - 1)
    order = sorted(tasks, key=lambda task: (task.kind == "free_form", hashlib.sha256(task.name.encode()).digest()))
    chosen = {task.name for task in order[:count]}
    return (
        tuple(task for task in tasks if task.name not in chosen),
        tuple(task for task in tasks if task.name in chosen),
    )
