"""Which rows make a context: demonstrations and queries, drawn as pure functions of seeds and numbers.

Training draws from (seed, draw number) alone. Evaluation draws from (eval_seed, task name, data seed, number of the
context) alone, so that runs with different seeds are tested on the same prompts.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from promptcomp.config import ConfigError
from promptcomp.datamodules.icl_config import ICLConfig
from promptcomp.datamodules.sampler import Draw
from promptcomp.datamodules.tasks import Row, Task

# Streams 0 and 1 belong to the sampler.
_TRAIN_STREAM, _EVAL_STREAM, _FIXED_STREAM, _QUERY_STREAM, _LABEL_STREAM = range(2, 7)
_KEPT_ORDERS = 4096


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows of one context, as indices into the task's demonstrations (in order) and queries."""

    task: Task
    demonstrations: tuple[int, ...]
    queries: tuple[int, ...]
    label_seed: tuple[int, ...]
    """Seed of random and wrong labels."""


class Planner:
    """Draws plans."""

    def __init__(self, config: ICLConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self._fixed_order = lru_cache(maxsize=_KEPT_ORDERS)(self._draw_fixed_order)

    def train(self, task: Task, anchor: int | None, draw: Draw) -> Plan:
        """The plan of a training draw.

        Args:
            task: The task of the draw.
            anchor: The query that the draw stands for; None: any query of the task.
            draw: Gives the randomness.
        """
        rng = np.random.default_rng((self.seed, _TRAIN_STREAM, draw.number))
        if anchor is None:
            anchor = int(rng.integers(len(task.queries)))
        shared = task.demonstrations is task.queries
        queries = self._train_queries(task, anchor, shared, rng)
        shown = self._demonstrations(task, frozenset(queries) if shared else frozenset(), rng)
        return Plan(task, shown, queries, (self.seed, _LABEL_STREAM, draw.number))

    def _train_queries(self, task: Task, anchor: int, shared: bool, rng: np.random.Generator) -> tuple[int, ...]:
        count = min(self.config.queries_per_context, len(task.queries))
        if shared:  # small tasks keep their demonstrations rather than their number of queries
            count = min(count, max(1, len(task.queries) - self.config.num_demonstrations))
        if count == 1:
            return (anchor,)
        others = rng.choice(len(task.queries) - 1, size=count - 1, replace=False)
        return (anchor, *(int(i) + (int(i) >= anchor) for i in others))

    def evaluation(self, task: Task, limit: int | None) -> Iterator[Plan]:
        """The contexts that ask the queries of a task, each query once.

        Where one context would do but its demonstrations are queries too, further contexts ask those behind other rows.

        Args:
            task: The task with one data seed.
            limit: Most queries of the task; None: all.
        """
        shared = task.demonstrations is task.queries
        size = self.config.eval_queries_per_context
        if size is None:
            # a pool that is asked as well keeps at least one row to ask
            spare = len(task.queries) - self.config.num_demonstrations
            kept_back = frozenset({len(task.queries) - 1}) if shared and spare < 1 else frozenset()
            shown = self._demonstrations(task, kept_back, self._eval_rng(task, 0))
            candidates = [i for i in range(len(task.queries)) if not (shared and i in shown)]
            asked = self._sample(task, candidates, limit)
            yield self._eval_plan(task, 0, shown, asked)
            left = sorted(shown) if shared and shown else []
            chosen = self._sample(task, left, None if limit is None else limit - len(asked))
            yield from self._eval_groups(task, chosen, max(1, spare), shared, first=1)
        else:
            chosen = self._sample(task, range(len(task.queries)), limit)
            yield from self._eval_groups(task, chosen, size, shared, first=0)

    def _eval_groups(self, task: Task, chosen: Sequence[int], size: int, shared: bool, *, first: int) -> Iterator[Plan]:
        """Contexts numbered from `first` on that ask the chosen queries, `size` at a time."""
        for group, start in enumerate(range(0, len(chosen), size), start=first):
            queries = tuple(chosen[start : start + size])
            excluded = frozenset(queries) if shared else frozenset()
            shown = self._demonstrations(task, excluded, self._eval_rng(task, group))
            yield self._eval_plan(task, group, shown, queries)

    def _eval_plan(self, task: Task, group: int, shown: tuple[int, ...], queries: tuple[int, ...]) -> Plan:
        return Plan(task, shown, queries, (self.config.eval_seed, _LABEL_STREAM, *_task_key(task), group))

    def _eval_rng(self, task: Task, group: int) -> np.random.Generator:
        return np.random.default_rng((self.config.eval_seed, _EVAL_STREAM, *_task_key(task), group))

    def _sample(self, task: Task, candidates: Sequence[int], limit: int | None) -> tuple[int, ...]:
        """At most `limit` candidates, the same for all data seeds of a task, in their order."""
        if limit is None or limit >= len(candidates):
            return tuple(candidates)
        rng = np.random.default_rng((self.config.eval_seed, _QUERY_STREAM, _task_key(task)[0]))
        return tuple(candidates[i] for i in sorted(rng.choice(len(candidates), size=limit, replace=False)))

    def _demonstrations(self, task: Task, excluded: frozenset[int], rng: np.random.Generator) -> tuple[int, ...]:
        """Indices of demonstrations: none of `excluded`, in the configured order."""
        size, config = len(task.demonstrations), self.config
        if config.num_demonstrations and size - len(excluded) < 1:
            raise ConfigError(
                f"task {task.name!r} has no demonstration left to show ({size} row(s) in its pool, {len(excluded)} "
                "asked as queries); give it more rows or set num_demonstrations: 0"
            )
        if config.sampling == "fixed":
            drawn = self._fixed_order(_task_key(task), size)
        else:  # as many more as are excluded: the draw does not depend on which ones are
            drawn = rng.choice(size, size=min(size, config.num_demonstrations + len(excluded)), replace=False)
        chosen = [int(i) for i in drawn if int(i) not in excluded][: config.num_demonstrations]
        if config.order == "as_given":
            chosen.sort()
        elif config.order == "reversed":
            chosen.sort(reverse=True)
        return tuple(chosen)

    def _draw_fixed_order(self, task_key: tuple[int, int], size: int) -> np.ndarray:
        """The order in which a pool is shown with fixed sampling; queries of one context may take some places."""
        order = np.random.default_rng((self.config.eval_seed, _FIXED_STREAM, *task_key)).permutation(size)
        most_asked = max(self.config.queries_per_context, self.config.eval_queries_per_context or 1)
        return order[: self.config.num_demonstrations + most_asked].copy()

    def shown_rows(self, plan: Plan) -> list[Row]:
        """The demonstrations of a plan after the configured perturbation."""
        rows = [plan.task.demonstrations[i] for i in plan.demonstrations]
        match self.config.perturbation:
            case "no_labels":
                return [Row(row.input, "", row.options) for row in rows]
            case "no_inputs":
                return [Row("", row.output, row.options) for row in rows]
            case "random_labels":
                return relabel(rows, plan.task.name, np.random.default_rng(plan.label_seed), wrong=False)
            case "wrong_labels":
                return relabel(rows, plan.task.name, np.random.default_rng(plan.label_seed), wrong=True)
            case _:
                return rows


def relabel(rows: Sequence[Row], task: str, rng: np.random.Generator, *, wrong: bool) -> list[Row]:
    """Rows with other outputs: uniform over the options, without the right one if `wrong`.

    Free-form rows take the outputs of the other rows.

    Raises:
        ConfigError: there is no wrong output to choose.
    """
    outputs = tuple(dict.fromkeys(row.output for row in rows))
    result = []
    for row in rows:
        choices = [option for option in row.options or outputs if not (wrong and option == row.output)]
        if not choices:
            raise ConfigError(f"perturbation wrong_labels: task {task!r} has a demonstration with no other option")
        result.append(Row(row.input, choices[int(rng.integers(len(choices)))], row.options))
    return result


def _task_key(task: Task) -> tuple[int, int]:
    return zlib.crc32(task.name.encode()), task.seed or 0
