"""Which rows make a context, drawn as pure functions of seeds and numbers, and how they are tokenised.

Training draws from (seed, draw number) alone. Evaluation draws from (eval_seed, task name, data seed, number of the
context) alone, so that runs with different seeds are tested on the same prompts.

A row is written in two parts, tokenised apart and put together: input then output (direct), or output then input
(channel: the model is asked how probable the input is after each label; Min et al. 2022, arXiv 2108.04106). A separator
is tokenised together with the text it precedes, because a byte-level BPE must see " yes", not " " and "yes".
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from promptcomp.config import ConfigError
from promptcomp.datamodules.icl_config import ICLConfig, Scoring, SeparatorName, Truncation
from promptcomp.datamodules.sampler import Draw
from promptcomp.datamodules.tasks import Row, Task
from promptcomp.datamodules.tokens import TokenCache

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
            limit: Maximum number of queries of the task; None: all.
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
        return np.random.default_rng((self.config.eval_seed, _FIXED_STREAM, *task_key)).permutation(size)

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


@dataclass(frozen=True, slots=True)
class Separator:
    """What is written around the two parts of a row."""

    before_example: str = ""
    """In front of every example but the first (the query follows the demonstrations, so it has it too)."""
    after_first: str = ""
    before_second: str = ""
    after_example: str = ""
    """After each demonstration."""
    collapse: bool = False
    """Whether separators around an empty part shrink, as MetaICL's newlines (and not its spaces) do."""


SEPARATORS: dict[SeparatorName, Separator] = {
    "none": Separator(),
    "space": Separator(before_example=" ", before_second=" "),
    "newlines": Separator(before_example="\n\n\n", before_second="\n", collapse=True),
    "arrow": Separator(after_first=" =>", after_example=" \n"),
}


@dataclass(frozen=True, slots=True)
class Parts:
    """Ids of the two parts of an example; `cut` counts tokens that did not fit the per-example cap."""

    first: array[int]
    second: array[int]
    cut: int = 0
    closing: int = 0
    """Ids of the separator at the end of the first part, which stay when it is cut."""

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def first_within(self, room: int) -> array[int]:
        """The first part cut to so many ids, in front of its separator if there is room for both."""
        return within(self.first, room, self.closing)


def within(ids: array[int], room: int, closing: int) -> array[int]:
    """Ids cut to so many, in front of the `closing` ids of the separator at their end if there is room for both."""
    if len(ids) <= room or closing >= room:
        return ids[:room]
    return ids[: room - closing] + ids[len(ids) - closing :]


@dataclass(frozen=True, slots=True)
class Renderer:
    """Writes and tokenises rows.

    `output_space` puts a space in front of every output (direct) that no separator ending in white space precedes;
    byte-level vocabularies need it (MEND: true for GPT-2, false for Llama).
    """

    cache: TokenCache
    separator: Separator
    scoring: Scoring
    output_space: bool
    max_example_tokens: int

    def texts(self, input_text: str, output: str, *, first: bool, demonstration: bool = False) -> tuple[str, str]:
        """Both parts of an example as they are tokenised.

        Args:
            input_text: The row's input.
            output: The row's output, or the option to be scored.
            first: Whether nothing precedes the example.
            demonstration: Whether the example is closed by the separator that follows demonstrations.
        """
        rule = self.separator
        one, two = (input_text, output) if self.scoring == "direct" else (output, input_text)
        before = "" if first else rule.before_example
        between = rule.before_second if two or not rule.collapse else ""
        if rule.collapse and self.scoring == "direct" and not one:
            before = before[:-1]
        if rule.collapse and self.scoring == "channel" and not one:
            between = ""
        if self.output_space and self.scoring == "direct" and two and not (between + two)[0].isspace():
            between += " "
        after = rule.after_example if demonstration else ""
        return before + one + rule.after_first, between + two + after

    def fit(
        self, first: array[int], second: array[int], longest_second: int | None = None, *, demonstration: bool = False
    ) -> Parts:
        """Cut the input (only the output if nothing else helps) so that the example keeps to `max_example_tokens`.

        Args:
            first: Ids of the first part.
            second: Ids of the second part.
            longest_second: Tokens to reserve for the second part (the longest option), so that all options of a query
                see the same input.
            demonstration: Whether the second part ends with the separator that follows demonstrations.
        """
        cap, closing = self.max_example_tokens, len(self.cache(self.separator.after_first))
        ending = len(self.cache(self.separator.after_example)) if demonstration else 0
        whole, reserved = Parts(first, second, closing=closing), max(len(second), longest_second or 0)
        if len(first) + (reserved if self.scoring == "direct" else len(second)) <= cap:
            return whole
        if self.scoring == "direct":
            room = max(cap - reserved, 1 if len(first) else 0)
            kept_first = whole.first_within(room)
        else:
            kept_first = whole.first_within(cap - 1 if len(second) else cap)
        kept_second = within(second, cap - len(kept_first), ending)
        cut = len(first) + len(second) - len(kept_first) - len(kept_second)
        return Parts(kept_first, kept_second, cut, closing)

    def option_ids(self, option: str, *, first: bool) -> tuple[int, ...]:
        """Ids of an option as a query has them, within the per-example cap; they distinguish options for the model."""
        one, two = self.texts("x", option, first=first)
        return tuple(self.cache(two if self.scoring == "direct" else one)[: self.max_example_tokens - 1])

    def demonstration(self, input_text: str, output: str, *, first: bool) -> Parts:
        """Ids of one demonstration, within the per-example cap."""
        one, two = self.texts(input_text, output, first=first, demonstration=True)
        return self.fit(self.cache(one), self.cache(two), demonstration=True)


def assemble(
    demonstrations: Sequence[Parts], budget: int | None, truncation: Truncation
) -> tuple[list[int], list[int]]:
    """Join demonstrations within a token budget.

    Args:
        demonstrations: In the order of the context.
        budget: Maximum number of tokens of the context; None: no limit.
        truncation: "whole_demonstrations" stops before the first one that does not fit. "reference" is MEND's rule:
            that one joins with its first part cut to what is left. "left" keeps the last `budget` tokens (MetaICL).

    Returns:
        The context's ids, and the number of its tokens after each demonstration (the borders).
    """
    ids: list[int] = []
    borders: list[int] = []
    for parts in demonstrations:
        if budget is not None and truncation == "whole_demonstrations" and len(ids) + len(parts) > budget:
            break
        # MEND compares strictly: a demonstration that would fill the budget to the last token counts as too long
        if budget is not None and truncation == "reference" and len(ids) + len(parts) >= budget:
            room = budget - len(ids) - len(parts.second) - 1
            if room >= 0:
                ids.extend([*parts.first_within(room), *parts.second])
                borders.append(len(ids))
            break
        ids.extend(parts.first)
        ids.extend(parts.second)
        borders.append(len(ids))
    if budget is not None and truncation == "left" and len(ids) > budget:
        surplus = len(ids) - budget
        return ids[surplus:], [border - surplus for border in borders if border > surplus]
    return ids, borders
