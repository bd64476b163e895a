"""In-context-learning data: tasks as batches of demonstrations, queries and targets.

What is drawn and how it is written is decided in plans.py; this file puts both together. Where MEND's and
MetaICL's released code differ from this, on purpose or by accident, is listed in docs/data.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from promptcomp.batch import EncodedContext, EncodedQuery, EncodedTarget
from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import ContextDataModule, Counts, ExampleInfo, PromptFormat
from promptcomp.datamodules.icl_config import ICLConfig
from promptcomp.datamodules.plans import SEPARATORS, Parts, Plan, Planner, Renderer, assemble
from promptcomp.datamodules.sampler import Draw, EvalContexts, EvalPart
from promptcomp.datamodules.sources.records import Found, Problem, collecting, has_errors, tell
from promptcomp.datamodules.tasks import Row, Task, TaskSource
from promptcomp.datamodules.tokens import TokenCache, same_options
from promptcomp.evaluation.predictions import MetricName

NULL_INPUT = "N/A"  # MetaICL's input for PMI calibration
_KEPT_TASKS = 1024  # tasks of a generated source that are kept after they were built


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
            ConfigError: the budgets do not fit the window.
        """
        super().__init__(config, tokenizer, seed=seed, batch_size=batch_size)
        self.config = config
        self.source = source
        self.budget = context_budget(config, window)
        """Most tokens of a context; None: no limit."""
        self.planner = Planner(config, seed)
        self.renderer = Renderer(
            TokenCache(tokenizer),
            SEPARATORS[config.separator],
            config.scoring,
            config.output_space,
            config.max_example_tokens,
        )
        self.eval_splits = tuple(split for split in source.splits if split != "train")
        self._odd_rows = 0
        self._examples: dict[str, tuple[ExampleInfo, ...]] = {}
        self._plans: dict[str, tuple[Plan, ...]] = {}
        self._task = lru_cache(maxsize=_KEPT_TASKS)(self._build_task)

    @property
    def headline(self) -> MetricName:
        """As configured."""
        return self.config.metric

    # ---- what is wrong, and what there is

    def check(self, found: Found = None) -> None:
        """See the base class."""
        self._odd_rows = 0
        self.source.check(found)
        if has_errors(found):
            return
        self._check_training()
        for split in self.eval_splits:
            with collecting(found):
                self._check_options(self.eval_plans(split), found)

    def _check_training(self) -> None:
        """
        Raises:
            ConfigError: a task has one row and so no demonstration for it, or there is none to train on.
        """
        if self.config.balance == "examples" and "train" in self.source.splits:
            if not self.num_train_items():
                raise ConfigError("the train split has no rows")
            small = [t.name for t in self._train_tasks if t.demonstrations is t.queries and len(t.queries) < 2]
            if small and self.config.num_demonstrations:
                raise ConfigError(f"task {small[0]!r} has one row and so no demonstration for it; give it more rows")

    def _check_options(self, plans: Sequence[Plan], found: Found) -> None:
        seen: set[tuple[str, ...]] = set()
        for plan in plans if self.config.perturbation == "wrong_labels" else ():
            self.planner.shown_rows(plan)  # raises where there is no wrong label
        for task, row in ((plan.task, plan.task.queries[i]) for plan in plans for i in plan.queries):
            if len(row.options) < 2 or row.options in seen:
                continue
            seen.add(row.options)
            ids = [self.renderer.option_ids(option, first=self._queries_come_first) for option in row.options]
            if message := same_options(row.options, ids, self.tokenizer):
                lenient = self.config.lenient and task.kind == "multi_choice"
                self._odd_rows += lenient
                where = row.where or f"task {task.name}"
                tell(Problem.at(where, message, "warning" if lenient else "error"), found)

    def notes(self) -> list[str]:
        """What a person should know: rows whose options are the same to the model."""
        if not self._odd_rows:
            return []
        return [f"{self._odd_rows} rows have options that are the same to the LM (see promptcomp data validate)"]

    def counts(self, split: str, *, with_tokens: bool = False) -> Counts:
        """See the base class."""
        if split == "train":
            return self._train_counts(with_tokens)
        plans = self.eval_plans(split)
        rows = {id(pool): len(pool) for plan in plans for pool in (plan.task.demonstrations, plan.task.queries)}
        return Counts(
            split,
            rows=sum(rows.values()),
            tasks=len({plan.task.name for plan in plans}),
            contexts=len(plans),
            shown=sum(len(plan.demonstrations) for plan in plans),
            asked=sum(len(plan.queries) for plan in plans),
            tokens=self.eval_tokens(split) if with_tokens else None,
        )

    def _train_counts(self, with_tokens: bool) -> Counts:
        listed = self.config.balance == "examples"
        tokens = self.train_tokens() if with_tokens else None
        rows = self.num_train_items() if listed else None
        return Counts("train", rows=rows, tasks=len(self._train_tasks), contexts=self.num_train_items(), tokens=tokens)

    # ---- tasks

    @cached_property
    def _train_tasks(self) -> Sequence[Task]:
        return self.source.tasks("train") if "train" in self.source.splits else ()

    def _build_task(self, index: int) -> Task:
        return self._train_tasks[index]

    @cached_property
    def _starts(self) -> np.ndarray:
        """Number of the first example of every training task, and the number of all (balance "examples" only)."""
        return np.cumsum([0, *(len(task.queries) for task in self._train_tasks)])

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Numbers of the tasks by name: training tasks first, then those that occur in evaluation only.

        A generated source (balance "tasks") may hold any number of training tasks; they are not listed.
        """
        names: list[str] = []
        if self.config.balance == "examples":
            names.extend(task.name for task in self._train_tasks)
        for split in self.eval_splits:
            names.extend(plan.task.name for plan in self.eval_plans(split))
        return {name: number for number, name in enumerate(dict.fromkeys(names))}

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks that `Batch.context.task` counts (with balance "tasks", training tasks have number 0)."""
        return tuple(self._numbers)

    # ---- training

    def num_train_items(self) -> int:
        """Training examples, or tasks with balance "tasks"."""
        return len(self._train_tasks) if self.config.balance == "tasks" else int(self._starts[-1])

    def train_plan(self, draw: Draw) -> Plan:
        """The rows of a training draw; a pure function of (seed, draw)."""
        if self.config.balance == "tasks":
            return self.planner.train(self._task(draw.index), None, draw)
        task_index = int(np.searchsorted(self._starts, draw.index, side="right")) - 1
        return self.planner.train(self._task(task_index), draw.index - int(self._starts[task_index]), draw)

    def train_context(self, draw: Draw) -> EncodedContext:
        """The training item of a draw."""
        plan = self.train_plan(draw)
        return self.encode(plan, (self.train_query(plan.task.queries[i]) for i in plan.queries))

    def train_query(self, row: Row) -> EncodedQuery:
        """A row with its output as the only target."""
        one, two = self.renderer.texts(row.input, row.output, first=self._queries_come_first)
        parts = self.renderer.fit(self.renderer.cache(one), self.renderer.cache(two))
        return EncodedQuery(tuple(parts.first), (EncodedTarget(tuple(parts.second)),))

    @property
    def _queries_come_first(self) -> bool:
        return self.config.num_demonstrations == 0

    def train_lengths(self, draws: Sequence[Draw]) -> Sequence[int]:
        """Tokens of the context and of its queries, all padded to the longest one with its target, for each draw."""
        plans = [self.train_plan(draw) for draw in draws]
        self.tokenize(plans)
        return [self._train_length(plan) for plan in plans]

    def _train_length(self, plan: Plan) -> int:
        queries = [self.train_query(plan.task.queries[i]) for i in plan.queries]
        return self.context_length(plan) + len(queries) * max(len(q.ids) + len(q.targets[0].ids) for q in queries)

    # ---- contexts

    def demonstration_parts(self, plan: Plan) -> list[Parts]:
        """Ids of every demonstration of a plan, before the budget."""
        rows = self.planner.shown_rows(plan)
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
        return EncodedContext(tuple(ids), tuple(queries), self._numbers.get(plan.task.name, 0), teacher_ids)

    def tokenize(self, plans: Iterable[Plan]) -> None:
        """Tokenise everything that the plans show or ask in one call."""
        self.renderer.cache.add(text for plan in plans for text in self._texts(plan))

    def _texts(self, plan: Plan) -> Iterator[str]:
        for i, row in enumerate(self.planner.shown_rows(plan)):
            yield from self.renderer.texts(row.input, row.output, first=i == 0, demonstration=True)
        for i in plan.queries:
            row = plan.task.queries[i]
            yield from self.renderer.texts(row.input, row.output, first=self._queries_come_first)

    # ---- text from outside

    def prompt_format(self) -> PromptFormat:
        """A query as it is written behind demonstrations; an answer ends where the next demonstration would begin."""
        rule, cache = self.renderer.separator, self.renderer.cache
        query = self.renderer.texts("{input}", "", first=False)[0]
        closing = cache(rule.after_example or rule.before_example)[:1]
        end = () if self.tokenizer.eos_token_id is None else (self.tokenizer.eos_token_id,)
        return PromptFormat(query, query.replace("{input}", ""), (*closing, *end))

    def context_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of demonstrations that were written out already."""
        return tuple(self.renderer.cache(text))

    def demonstration_ids(self, rows: Sequence[Row]) -> tuple[int, ...]:
        """Token ids of rows that are shown as demonstrations, all of them and in this order.

        Raises:
            ConfigError: they do not fit the budget that the method was trained with.
        """
        parts = [self.renderer.demonstration(row.input, row.output, first=i == 0) for i, row in enumerate(rows)]
        ids, borders = assemble(parts, self.budget, "whole_demonstrations")
        if len(borders) < len(parts):
            raise ConfigError(
                f"{len(parts)} demonstrations take {sum(map(len, parts))} tokens, more than the {self.budget} of the "
                f"run (data.max_context_tokens, or the LM's window); the first {len(borders)} fit"
            )
        return tuple(ids)

    # ---- evaluation

    def eval_plans(self, split: str) -> Sequence[Plan]:
        """The contexts of an evaluation split, in a fixed order.

        Raises:
            ConfigError: the split is unknown or has nothing to ask.
        """
        self.check_split(split, self.eval_splits)
        if split not in self._plans:
            config, is_dev = self.config, split == "dev"
            count = config.max_dev_tasks if is_dev else config.max_eval_tasks
            limit = config.max_dev_queries if is_dev else config.max_eval_queries
            tasks = self.source.tasks(split)
            chosen = _first_tasks(tasks, count)
            self._plans[split] = tuple(plan for task in chosen for plan in self.planner.evaluation(task, limit))
            if not any(plan.queries for plan in self._plans[split]):
                raise ConfigError(f"the {split} split has no queries")
        return self._plans[split]

    def examples(self, split: str) -> Sequence[ExampleInfo]:
        """The examples of an evaluation split; example i is at place i.

        Raises:
            ConfigError: the split is unknown.
        """
        plans = self.eval_plans(split)
        if split not in self._examples:
            found: list[ExampleInfo] = []
            for context, plan in enumerate(plans):
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
        renderer = self.renderer
        text = NULL_INPUT if null else row.input
        pairs = [renderer.texts(text, option, first=self._queries_come_first) for option in options]
        renderer.cache.add(text for pair in pairs for text in pair)
        ids = [(renderer.cache(one), renderer.cache(two)) for one, two in pairs]
        longest = max(len(two) for _, two in ids)
        parts = [renderer.fit(one, two, longest) for one, two in ids]
        targets = [EncodedTarget(tuple(part.second), choice) for choice, part in enumerate(parts)]
        if self.config.scoring == "direct":
            return [EncodedQuery(tuple(parts[0].first), tuple(targets), example)]
        pieces = zip(parts, targets, strict=True)
        return [EncodedQuery(tuple(part.first), (target,), example) for part, target in pieces]


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
    if room < config.max_example_tokens and config.num_demonstrations:
        raise ConfigError(
            f"data.max_example_tokens = {config.max_example_tokens} leaves {max(room, 0)} tokens for demonstrations in "
            f"the LM's window of {window}; use at most {(window - 1) // 2}"
        )
    return room if config.max_context_tokens is None else config.max_context_tokens


def _first_tasks(tasks: Sequence[Task], count: int | None) -> list[Task]:
    """All data seeds of the first `count` task names."""
    if count is None:
        return [tasks[i] for i in range(len(tasks))]
    chosen: list[Task] = []
    names: set[str] = set()
    for i in range(len(tasks)):  # a generated split may be long: build no task that is not needed
        if len(names) == count and tasks[i].seed is None:
            break
        task = tasks[i]
        if task.name in names or len(names) < count:
            names.add(task.name)
            chosen.append(task)
    return chosen


def _info(task: Task, row: Row, number: int, context: int) -> ExampleInfo:
    options = row.options or (row.output,)
    gold = options.index(row.output)
    return ExampleInfo(number, task.name, task.kind, task.seed, context, gold, options, row.input, row.output)
