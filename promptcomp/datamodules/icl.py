"""In-context-learning data: tasks as batches of demonstrations, queries and targets.

What is drawn and how it is written is decided in plans.py; this file puts both together. Where MEND's and
MetaICL's released code differ from this, on purpose or by accident, is listed in docs/data.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache

import numpy as np
from torch.utils.data import DataLoader

from promptcomp.batch import EncodedContext, EncodedQuery, EncodedTarget
from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import Counts, ExampleInfo, PromptFormat, Shown
from promptcomp.datamodules.icl_config import ICLConfig
from promptcomp.datamodules.plans import SEPARATORS, Parts, Plan, Planner, Renderer, assemble
from promptcomp.datamodules.sampler import Draw, EvalContexts, EvalPart
from promptcomp.datamodules.sections import Reader, check_split
from promptcomp.datamodules.sources.records import Found, Problem, collecting, tell
from promptcomp.datamodules.tasks import LazySequence, Row, Task, TaskKind, TaskSource
from promptcomp.datamodules.taught import TaughtAnswer, TaughtDataModule
from promptcomp.datamodules.tokens import same_options
from promptcomp.evaluation.texts import looks_of

NULL_INPUT = "N/A"  # MetaICL's input for PMI calibration
_FEW = (
    "there are no options, and other rows of the task have some: it is measured by its loss alone",
    "there is only one option",
)
_TRAINED = "queries are training rows too (same input and output)"
_SHOWN = "queries have the input and output of a demonstration of their task, so that their answers may be shown"
_KEPT_TASKS = 1024  # tasks of a generated source that are kept after they were built


class ICLDataModule(TaughtDataModule):
    """Tasks as batches of demonstrations, queries and targets."""

    config: ICLConfig
    source: TaskSource

    def __init__(self, config: ICLConfig, source: TaskSource, reader: Reader) -> None:
        """
        Raises:
            ConfigError: the budgets do not fit the window.
        """
        super().__init__(config, source, reader)
        self.budget = config.budget(reader.window)
        """Maximum number of tokens of a context; None: no limit."""
        self.planner = Planner(config, reader.seed)
        rule, cap = SEPARATORS[config.separator], config.max_example_tokens
        self.renderer = Renderer(self.cache, rule, config.scoring, config.output_space, cap)
        self._odd_rows = 0
        self._overlaps: list[str] = []
        self._examples: dict[str, tuple[ExampleInfo, ...]] = {}
        self._plans: dict[str, tuple[Plan, ...]] = {}
        self._task = lru_cache(maxsize=_KEPT_TASKS)(lambda index: self._train_tasks[index])

    # ---- what is wrong, and what there is

    def check_rows(self, found: Found) -> None:
        """See the base class."""
        self._odd_rows = 0
        if self.config.task_choice is not None:
            with collecting(found):
                self.config.check_choice(
                    {task.name for split in self.source.splits for task in self.source.tasks(split)}
                )
        self._check_training()
        self._overlaps = []
        if self.config.balance == "examples":
            self._check_pieces(self._train_tasks, found)
        for split in self.eval_splits:
            with collecting(found):
                self._check_pieces({id(plan.task): plan.task for plan in self.eval_plans(split)}.values(), found)
                self._check_options(self.eval_plans(split), found)
                for overlap in self._find_overlaps(split):
                    self._overlaps.append(overlap)
                    tell(Problem("data", None, overlap, "warning"), found)

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

    def _check_pieces(self, tasks: Iterable[Task], found: Found) -> None:
        """Queries and answers without a token, which only what looks empty can have; rows on disk are met when read."""
        rows = (row for task in tasks if not isinstance(task.queries, LazySequence) for row in task.queries)
        for row in rows:
            if not looks_of(row.input) or not looks_of(row.output):
                with collecting(found, row.where.rpartition(":")[0]):
                    self.eval_queries(row, 0)

    def _check_options(self, plans: Sequence[Plan], found: Found) -> None:
        seen: set[tuple[str, ...]] = set()
        for plan in plans if self.config.perturbation == "wrong_labels" else ():
            self.planner.shown_rows(plan)  # raises where there is no wrong label
        few: set[str] = set()
        for task, row in ((plan.task, plan.task.queries[i]) for plan in plans for i in plan.queries):
            if len(row.options) < 2 and task.kind != "free_form" and task.name not in few:
                few.add(task.name)
                odd = Problem.at(row.where or f"task {task.name}", _FEW[len(row.options)], "warning")
                if odd not in (found or ()):  # said where the file was read
                    tell(odd, found)
            if len(row.options) < 2 or row.options in seen:
                continue
            seen.add(row.options)
            ids = [self.renderer.option_ids(option, first=self._queries_come_first) for option in row.options]
            if message := same_options(row.options, ids, self.tokenizer):
                lenient = self.config.lenient and task.kind == "multi_choice"
                self._odd_rows += lenient
                where = row.where or f"task {task.name}"
                tell(Problem.at(where, message, "warning" if lenient else "error"), found)

    def _find_overlaps(self, split: str) -> Iterator[str]:
        """Queries that are in their task's pool of demonstrations as well, where these are other rows, and those that
        are trained on (tables; rows on disk are met when read)."""
        tasks = self._train_tasks if self.config.balance == "examples" else ()
        rows = (row for task in tasks if not isinstance(task.queries, LazySequence) for row in task.queries)
        trained = {(row.input, row.output) for row in rows}
        pools: dict[int, set[tuple[str, str]]] = {}
        shown = also_trained = 0
        for task, queries in ((plan.task, plan.queries) for plan in self.eval_plans(split)):
            has_pool = self.config.num_demonstrations and task.demonstrations is not task.queries
            if has_pool and id(task) not in pools:
                pools[id(task)] = {(row.input, row.output) for row in task.demonstrations}
            for row in (task.queries[i] for i in queries) if has_pool or trained else ():
                shown += (row.input, row.output) in pools.get(id(task), ())
                also_trained += (row.input, row.output) in trained
        yield from (f"{split}: {n} {what}" for n, what in ((shown, _SHOWN), (also_trained, _TRAINED)) if n)

    def notes(self) -> list[str]:
        """Notes on the data: rows whose options the model cannot distinguish, queries that are demonstrations."""
        odd = f"{self._odd_rows} rows have options that the LM cannot distinguish (see promptcomp data validate)"
        return [*([odd] if self._odd_rows else []), *self._overlaps]

    def count(self, split: str) -> Counts:
        """See the base class."""
        if split == "train":
            items = self.num_train_items()
            rows = items if self.config.balance == "examples" else None
            return Counts("train", rows=rows, tasks=len(self._train_tasks), contexts=items)
        plans = self.eval_plans(split)
        pools = {id(pool): len(pool) for plan in plans for pool in (plan.task.demonstrations, plan.task.queries)}
        return Counts(
            split,
            rows=sum(pools.values()),
            tasks=len({plan.task.name for plan in plans}),
            contexts=len(plans),
            shown=sum(len(plan.demonstrations) for plan in plans),
            asked=sum(len(plan.queries) for plan in plans),
        )

    def shown(self, split: str, item: Draw | int, context: EncodedContext, query: EncodedQuery) -> Shown:
        """See the base class."""
        plan = self.eval_plans(split)[item] if isinstance(item, int) else self.train_plan(item)
        parts, truncation = self.demonstration_parts(plan), self.config.truncation
        ids, borders = assemble(parts, self.budget, truncation)
        dropped = len(parts) - len(borders)
        kept = parts[dropped:] if truncation == "left" else parts[: len(borders)]
        cut = sum(part.cut + len(part) for part in kept) - len(ids)
        return Shown(plan.task.name, plan.task.seed, borders, dropped, cut)

    # ---- tasks

    @cached_property
    def _train_tasks(self) -> Sequence[Task]:
        return self._left("train") if "train" in self.source.splits else ()

    def _left(self, split: str) -> Sequence[Task]:
        """The tasks of a split but those that are left out."""
        tasks = self.source.tasks(split)
        if not (out := self.config.dropped_tasks()):
            return tasks
        if not (left := [task for task in tasks if task.name not in out]):
            raise ConfigError(f"data.task_choice: {self.config.task_choice} drops every task of the {split} split")
        return left

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
        return self.eval_queries(replace(row, options=()), 0)[0]

    @property
    def _queries_come_first(self) -> bool:
        return self.config.num_demonstrations == 0

    def train_texts(self, draw: Draw) -> Iterable[str]:
        """See the base class."""
        return self._texts(self.train_plan(draw))

    # ---- contexts

    def demonstration_parts(self, plan: Plan) -> list[Parts]:
        """Ids of every demonstration of a plan, before the budget."""
        return self._parts(self.planner.shown_rows(plan))

    def _parts(self, rows: Sequence[Row]) -> list[Parts]:
        return [self.renderer.demonstration(row.input, row.output, first=i == 0) for i, row in enumerate(rows)]

    def _context_length(self, plan: Plan) -> int:
        return len(assemble(self.demonstration_parts(plan), self.budget, self.config.truncation)[0])

    def encode(self, plan: Plan, queries: Iterable[EncodedQuery]) -> EncodedContext:
        """The context of a plan with the given queries."""
        parts = self.demonstration_parts(plan)
        config = self.config
        ids, borders = assemble(parts, self.budget, config.truncation)
        teacher_ids = None
        if config.teacher_max_context_tokens is not None:
            teacher_ids = tuple(assemble(parts, config.teacher_max_context_tokens, config.truncation)[0])
        number = self._numbers.get(plan.task.name, 0)
        return EncodedContext(tuple(ids), tuple(queries), number, teacher_ids, tuple(borders))

    def _texts(self, plan: Plan) -> Iterator[str]:
        for i, row in enumerate(self.planner.shown_rows(plan)):
            yield from self.renderer.texts(row.input, row.output, first=i == 0, demonstration=True)
        for i in plan.queries:
            row = plan.task.queries[i]
            yield from self.renderer.texts(row.input, row.output, first=self._queries_come_first)

    def answer_target(self, split: str, query: EncodedQuery, answer: TaughtAnswer) -> tuple[int, ...]:
        """As rows have it, without an end; of an empty answer the end is all there is."""
        room = max(1, self.config.max_example_tokens - len(query.ids))
        return (answer.ids or self.prompt_format().stop_ids[:1])[:room]

    # ---- text from outside

    def prompt_format(self) -> PromptFormat:
        """The format of a query after demonstrations; an answer ends where the next demonstration would begin."""
        rule, cache = self.renderer.separator, self.renderer.cache
        query, empty = (self.renderer.texts(text, "", first=self._queries_come_first)[0] for text in ("{input}", ""))
        closing = cache(rule.after_example or rule.before_example)[:1]
        return PromptFormat(query, empty, (*closing, *self.end_ids))

    def demonstration_ids(self, rows: Sequence[Row]) -> tuple[int, ...]:
        """Token ids of rows that are shown as demonstrations, all of them and in this order.

        Raises:
            ConfigError: they do not fit the budget that the method was trained with.
        """
        parts = self._parts(rows)
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
        check_split(split, self.eval_splits)
        if split not in self._plans:
            config, is_dev = self.config, split == "dev"
            count = config.max_dev_tasks if is_dev else config.max_eval_tasks
            limit = config.max_dev_queries if is_dev else config.max_eval_queries
            tasks = self._left(split)
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
        if split not in self._examples:
            asked = [(c, p.task, p.task.queries[i]) for c, p in enumerate(self.eval_plans(split)) for i in p.queries]
            self._examples[split] = tuple(_info(task, row, n, context) for n, (context, task, row) in enumerate(asked))
        return self._examples[split]

    def eval_contexts(self, split: str, *, null: bool = False) -> EvalContexts:
        """The contexts of an evaluation split; `null` replaces the inputs by "N/A"."""
        plans = self.eval_plans(split)
        firsts = np.cumsum([0, *(len(plan.queries) for plan in plans)])
        self.cache.add(text for plan in plans for text in self._texts(plan))

        def targets(context: int) -> Sequence[int]:
            task = plans[context].task
            return [max(1, len(task.queries[i].options)) for i in plans[context].queries]

        def encode(part: EvalPart) -> EncodedContext:
            plan = plans[part.context]
            queries: list[EncodedQuery] = []
            for place in range(part.start, part.stop):
                row = plan.task.queries[plan.queries[place]]
                queries.extend(self.eval_queries(row, int(firsts[part.context]) + place, null))
            return self.encode(plan, queries)

        return EvalContexts(len(plans), lambda context: self._context_length(plans[context]), targets, encode)

    def null_dataloader(self, split: str) -> DataLoader[EncodedContext]:
        """See the base class."""
        return self.contexts_dataloader(self.eval_contexts(split, null=True))

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
        if not self.config.lenient and (missing := self._without_token(parts)):
            raise ConfigError(str(Problem.at(row.where or "data", missing)))
        targets = [EncodedTarget(tuple(part.second), choice) for choice, part in enumerate(parts)]
        if self.config.scoring == "direct":
            return [EncodedQuery(tuple(parts[0].first), tuple(targets), example)]
        pieces = zip(parts, targets, strict=True)
        return [EncodedQuery(tuple(part.first), (target,), example) for part, target in pieces]

    def _without_token(self, parts: Sequence[Parts]) -> str | None:
        """Why nothing can be scored, in words; None: it can."""
        asked, answered = ("input", "output") if self.config.scoring == "direct" else ("output", "input")
        if not all(len(part.first) for part in parts):
            return f"the {asked} has no token for the LM, and an answer has to follow one; try data.separator=arrow"
        if not any(len(part.second) for part in parts):
            return f"the {answered} has no token for the LM, so there is nothing to score"
        return None


def _first_tasks(tasks: Sequence[Task], count: int | None) -> list[Task]:
    """All data seeds of the first `count` task names."""
    if count is None:
        return list(tasks)
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
    kind: TaskKind = task.kind if row.options else "free_form"
    return ExampleInfo(number, task.name, kind, task.seed, context, gold, options, row.input, row.output)
