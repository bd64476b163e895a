"""In-context-learning data: draws demonstrations and queries from tasks and encodes them.

What MEND's release does differently on purpose or by accident is listed in docs/data.md; the sampling rules are:
training draws one anchor query (or task), up to `queries_per_context` queries of its task and the demonstrations from
(seed, draw number) alone; evaluation draws from (eval_seed, task name, data seed, number of the context) alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from promptcomp.batch import EncodedContext, EncodedQuery, EncodedTarget
from promptcomp.config import ConfigError
from promptcomp.datamodules.base import (
    ContextDataModule,
    EvalContexts,
    EvalPart,
    ExampleInfo,
    ICLConfig,
)
from promptcomp.datamodules.rendering import SEPARATORS, Parts, Renderer, assemble
from promptcomp.datamodules.sampler import Draw
from promptcomp.datamodules.tasks import Row, Task, TaskSource
from promptcomp.datamodules.tokens import TokenCache

_TRAIN_STREAM, _EVAL_STREAM, _FIXED_STREAM, _QUERY_STREAM, _LABEL_STREAM = range(2, 7)
NULL_INPUT = "N/A"  # MetaICL's input for PMI calibration
_KEPT_TASKS = 1024  # tasks of a generated source that are kept after they were built


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rows make a context: indices of demonstrations (in order) and of queries."""

    task: Task
    task_number: int
    demonstrations: tuple[int, ...]
    queries: tuple[int, ...]
    label_seed: tuple[int, ...]
    """Seed of random and wrong labels."""


class ICLDataModule(ContextDataModule):
    """Tasks as batches of demonstrations, queries and targets."""

    def __init__(
        self,
        config: ICLConfig,
        source: TaskSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        batch_size: int,
        window: int | None = None,
    ) -> None:
        """
        Args:
            config: Options of in-context-learning data.
            source: Lists the tasks.
            tokenizer: The LM's tokenizer.
            seed: The run's seed.
            batch_size: Contexts of one micro-batch over all processes.
            window: Most positions the LM can read; None: no limit.

        Raises:
            ConfigError: the budgets do not fit the window, or a split is empty.
        """
        super().__init__(config, tokenizer, seed=seed, batch_size=batch_size)
        self.config = config
        self.source = source
        self.budget = context_budget(config, window)
        self.renderer = Renderer(
            TokenCache(tokenizer),
            SEPARATORS[config.separator],
            config.scoring,
            config.output_space,
            config.max_example_tokens,
        )
        self.eval_splits = tuple(split for split in source.splits if split != "train")
        self._examples: dict[str, tuple[ExampleInfo, ...]] = {}
        self._plans: dict[str, tuple[Plan, ...]] = {}
        self._task = lru_cache(maxsize=_KEPT_TASKS)(self._build_task)
        self._fixed_order = lru_cache(maxsize=_KEPT_TASKS)(self._draw_fixed_order)

    # ---- tasks

    @cached_property
    def _train_tasks(self) -> Sequence[Task]:
        return self.source.tasks("train") if "train" in self.source.splits else ()

    def _build_task(self, index: int) -> Task:
        return self._train_tasks[index]

    @cached_property
    def _starts(self) -> np.ndarray:
        """Number of the first example of every task, and the number of all (only where examples are counted)."""
        sizes = [len(self._task(i).queries) for i in range(len(self._train_tasks))]
        return np.cumsum([0, *sizes])

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Numbers of the tasks by name: training tasks first, then those that occur in evaluation only.

        A generated source (balance "tasks") may hold any number of unnamed training tasks; they are not listed.
        """
        names: list[str] = []
        if self.config.balance == "examples":
            names.extend(task.name for task in self._train_tasks)
        for split in self.eval_splits:
            names.extend(task.name for task in self.source.tasks(split))
        return {name: number for number, name in enumerate(dict.fromkeys(names))}

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks that `Batch.context.task` counts."""
        return tuple(self._numbers)

    # ---- training

    def num_train_items(self) -> int:
        """Training examples, or tasks with balance "tasks"."""
        return len(self._train_tasks) if self.config.balance == "tasks" else int(self._starts[-1])

    def train_plan(self, draw: Draw) -> Plan:
        """The rows of a training draw; a pure function of (seed, draw)."""
        rng = np.random.default_rng((self.seed, _TRAIN_STREAM, draw.number))
        if self.config.balance == "tasks":
            task_index = draw.index
            task = self._task(task_index)
            anchor = int(rng.integers(len(task.queries)))
        else:
            task_index = int(np.searchsorted(self._starts, draw.index, side="right")) - 1
            task = self._task(task_index)
            anchor = draw.index - int(self._starts[task_index])
        shared = task.demonstrations is task.queries
        queries = self._train_queries(task, anchor, shared, rng)
        excluded = frozenset(queries) if shared else frozenset()
        demonstrations = self._demonstrations(task, excluded, rng)
        return Plan(
            task,
            self._numbers.get(task.name, 0),
            demonstrations,
            queries,
            (self.seed, _LABEL_STREAM, draw.number),
        )

    def _train_queries(self, task: Task, anchor: int, shared: bool, rng: np.random.Generator) -> tuple[int, ...]:
        count = min(self.config.queries_per_context, len(task.queries))
        if shared:  # small tasks keep their demonstrations rather than their number of queries
            count = min(count, max(1, len(task.queries) - self.config.num_demonstrations))
        if count == 1:
            return (anchor,)
        others = rng.choice(len(task.queries) - 1, size=count - 1, replace=False)
        return (anchor, *(int(i) + (int(i) >= anchor) for i in others))

    def _demonstrations(self, task: Task, excluded: frozenset[int], rng: np.random.Generator) -> tuple[int, ...]:
        """Indices of demonstrations: none of `excluded`, in the configured order."""
        size, config = len(task.demonstrations), self.config
        if config.num_demonstrations and size - len(excluded) < 1:
            raise ConfigError(
                f"task {task.name!r} has no demonstration left to show ({size} row(s) in its pool, {len(excluded)} asked "
                "as queries); give it more rows or set num_demonstrations: 0"
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

    def train_context(self, draw: Draw) -> EncodedContext:
        """The training item of a draw."""
        plan = self.train_plan(draw)
        self.tokenize([plan])
        queries = [self._train_query(plan.task.queries[i]) for i in plan.queries]
        return self.encode(plan, queries)

    def _train_query(self, row: Row) -> EncodedQuery:
        first = self.config.num_demonstrations == 0
        one, two = self.renderer.texts(row.input, row.output, first=first)
        parts = self.renderer.fit(self.renderer.cache(one), self.renderer.cache(two))
        return EncodedQuery(tuple(parts.first), (EncodedTarget(tuple(parts.second)),))

    def train_lengths(self, draws: Sequence[Draw]) -> Sequence[int]:
        """Tokens of the context and of the longest query with its target, for each draw."""
        plans = [self.train_plan(draw) for draw in draws]
        self.tokenize(plans)
        return [self._train_length(plan) for plan in plans]

    def _train_length(self, plan: Plan) -> int:
        queries = [self._train_query(plan.task.queries[i]) for i in plan.queries]
        return self.context_length(plan) + max(len(q.ids) + len(q.targets[0].ids) for q in queries)

    # ---- contexts

    def shown_rows(self, plan: Plan) -> list[Row]:
        """The demonstrations of a plan after the configured perturbation."""
        rows = [plan.task.demonstrations[i] for i in plan.demonstrations]
        kind = self.config.perturbation
        if kind == "no_labels":
            return [Row(row.input, "", row.options) for row in rows]
        if kind == "no_inputs":
            return [Row("", row.output, row.options) for row in rows]
        if kind in ("random_labels", "wrong_labels"):
            return relabel(rows, plan.task.name, np.random.default_rng(plan.label_seed), wrong=kind == "wrong_labels")
        return rows

    def demonstration_parts(self, plan: Plan) -> list[Parts]:
        """Ids of every demonstration of a plan, before the budget."""
        rows = self.shown_rows(plan)
        return [self.renderer.demonstration(row.input, row.output, first=i == 0) for i, row in enumerate(rows)]

    def context_length(self, plan: Plan) -> int:
        """Tokens of a plan's context as the student reads it."""
        return len(assemble(self.demonstration_parts(plan), self.budget, self.config.truncation)[0])

    def encode(self, plan: Plan, queries: Iterable[EncodedQuery]) -> EncodedContext:
        """The context of a plan with the given queries."""
        parts = self.demonstration_parts(plan)
        config = self.config
        ids, _ = assemble(parts, self.budget, config.truncation)
        teacher_ids = None
        if config.teacher_max_context_tokens is not None:
            teacher_ids = tuple(assemble(parts, config.teacher_max_context_tokens, config.truncation)[0])
        return EncodedContext(tuple(ids), tuple(queries), plan.task_number, teacher_ids)

    def tokenize(self, plans: Iterable[Plan]) -> None:
        """Tokenise everything the plans show or ask in one call."""
        self.renderer.cache.add(text for plan in plans for text in self._texts(plan))

    def _texts(self, plan: Plan) -> Iterator[str]:
        for i, row in enumerate(self.shown_rows(plan)):
            yield from self.renderer.texts(row.input, row.output, first=i == 0, demonstration=True)
        for i in plan.queries:
            row = plan.task.queries[i]
            yield from self.renderer.texts(row.input, row.output, first=self.config.num_demonstrations == 0)

    # ---- evaluation

    def eval_plans(self, split: str) -> Sequence[Plan]:
        """The contexts of an evaluation split, in a fixed order."""
        if split not in self._plans:
            config = self.config
            tasks = self.source.tasks(split)
            count = config.max_dev_tasks if split == "dev" else config.max_eval_tasks
            tasks = [tasks[i] for i in range(len(tasks) if count is None else min(count, len(tasks)))]
            self._plans[split] = tuple(plan for task in tasks for plan in self._task_plans(task, split))
            if not self._plans[split]:
                raise ConfigError(f"the {split} split has no queries")
        return self._plans[split]

    def _task_plans(self, task: Task, split: str) -> Iterator[Plan]:
        config = self.config
        limit = config.max_dev_queries if split == "dev" else config.max_eval_queries
        shared = task.demonstrations is task.queries
        size = config.eval_queries_per_context
        number = self._numbers[task.name]
        label_seed = (config.eval_seed, _LABEL_STREAM, *_task_key(task))
        if size is None:
            rng = self._eval_rng(task, 0)
            # a pool that is asked as well must keep one row to ask
            kept_back = frozenset((len(task.queries) - 1,)) if shared and self._pool_is_small(task) else frozenset()
            shown = self._demonstrations(task, kept_back, rng)
            candidates = [i for i in range(len(task.queries)) if not (shared and i in shown)]
            queries = self._sample(task, candidates, limit)
            yield Plan(task, number, shown, queries, (*label_seed, 0))
            return
        chosen = self._sample(task, range(len(task.queries)), limit)
        for group, start in enumerate(range(0, len(chosen), size)):
            queries = chosen[start : start + size]
            shown = self._demonstrations(
                task, frozenset(queries) if shared else frozenset(), self._eval_rng(task, group)
            )
            yield Plan(task, number, shown, queries, (*label_seed, group))

    def _pool_is_small(self, task: Task) -> bool:
        return len(task.demonstrations) <= self.config.num_demonstrations

    def _eval_rng(self, task: Task, group: int) -> np.random.Generator:
        return np.random.default_rng((self.config.eval_seed, _EVAL_STREAM, *_task_key(task), group))

    def _sample(self, task: Task, candidates: Sequence[int], limit: int | None) -> tuple[int, ...]:
        if limit is None or limit >= len(candidates):
            return tuple(candidates)
        rng = np.random.default_rng((self.config.eval_seed, _QUERY_STREAM, zlib.crc32(task.name.encode())))
        places = sorted(rng.choice(len(candidates), size=limit, replace=False))
        return tuple(candidates[i] for i in places)

    def examples(self, split: str) -> Sequence[ExampleInfo]:
        """The examples of an evaluation split; example i is at place i.

        Raises:
            ConfigError: the split is unknown.
        """
        if split not in self.eval_splits:
            raise ConfigError(f"split {split!r} is unknown; this data has {', '.join(self.eval_splits) or 'none'}")
        if split not in self._examples:
            found: list[ExampleInfo] = []
            for context, plan in enumerate(self.eval_plans(split)):
                for i in plan.queries:
                    found.append(_info(plan.task, plan.task.queries[i], len(found), context))
            self._examples[split] = tuple(found)
        return self._examples[split]

    def eval_contexts(self, split: str, *, null: bool = False) -> EvalContexts:
        """The contexts of an evaluation split, encoded when asked for."""
        return _ICLEvalContexts(self, self.eval_plans(split), null)

    def eval_queries(self, row: Row, example: int, null: bool = False) -> list[EncodedQuery]:
        """A row with all its options: one query (direct), or one for each option (channel)."""
        options = row.options or (row.output,)
        first = self.config.num_demonstrations == 0
        renderer = self.renderer
        text = NULL_INPUT if null else row.input
        pairs = [renderer.texts(text, option, first=first) for option in options]
        renderer.cache.add(text for pair in pairs for text in pair)
        ids = [(renderer.cache(one), renderer.cache(two)) for one, two in pairs]
        longest = max(len(two) for _, two in ids)
        parts = [renderer.fit(one, two, longest) for one, two in ids]
        targets = [EncodedTarget(tuple(part.second), choice) for choice, part in enumerate(parts)]
        if self.config.scoring == "direct":
            return [EncodedQuery(tuple(parts[0].first), tuple(targets), example)]
        return [
            EncodedQuery(tuple(part.first), (target,), example) for part, target in zip(parts, targets, strict=True)
        ]


class _ICLEvalContexts(EvalContexts):
    def __init__(self, module: ICLDataModule, plans: Sequence[Plan], null: bool) -> None:
        self._module, self._plans, self._null = module, plans, null
        self._firsts = np.cumsum([0, *(len(plan.queries) for plan in plans)])
        module.tokenize(plans)

    def __len__(self) -> int:
        return len(self._plans)

    def length(self, context: int) -> int:
        return self._module.context_length(self._plans[context])

    def targets(self, context: int) -> Sequence[int]:
        plan = self._plans[context]
        return [max(1, len(plan.task.queries[i].options)) for i in plan.queries]

    def encode(self, part: EvalPart) -> EncodedContext:
        plan = self._plans[part.context]
        queries: list[EncodedQuery] = []
        for place in range(part.start, part.stop):
            row = plan.task.queries[plan.queries[place]]
            queries.extend(self._module.eval_queries(row, int(self._firsts[part.context]) + place, self._null))
        return self._module.encode(plan, queries)


def context_budget(config: ICLConfig, window: int | None) -> int | None:
    """Most tokens of a context, given the LM's window [positions].

    Raises:
        ConfigError: a context with a query and its target may not fit the window.
    """
    if window is None:
        return config.max_context_tokens
    room = window - config.max_example_tokens - 1  # one position for a BOS token
    for name in ("max_context_tokens", "teacher_max_context_tokens"):
        budget = getattr(config, name)
        if budget is not None and budget > room:
            raise ConfigError(
                f"data.{name} = {budget}: with an example of {config.max_example_tokens} tokens "
                f"(data.max_example_tokens) it exceeds the LM's window of {window}; use at most {max(room, 0)}"
            )
    if room < 1 and config.num_demonstrations:
        raise ConfigError(
            f"data.max_example_tokens = {config.max_example_tokens} leaves no room for demonstrations in the LM's "
            f"window of {window}; use at most {window // 4}"
        )
    return room if config.max_context_tokens is None else config.max_context_tokens


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


def _info(task: Task, row: Row, number: int, context: int) -> ExampleInfo:
    options = row.options or (row.output,)
    gold = options.index(row.output)
    return ExampleInfo(number, task.name, task.kind, task.seed, context, gold, options, row.input, row.output)
