"""Example and Batch: the contract between data and methods.

Shape legend (used in the whole package): G contexts, N queries, M targets, C context tokens, Q query tokens,
T target tokens, K slots, D hidden size, H heads, L layers, V vocabulary.

A batch is a small forest: M targets belong to N queries, which belong to G contexts. Training has one target to a query
(M = N); option scoring has one target to each option; several queries may share one context, which is then compressed
once. Contexts and queries are padded on the left and targets on the right, so `[query | target]` has no hole.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Final, Self

import torch
from torch import Tensor

ANSWER: Final = 0
"""Role of a target that answers its query."""
RATIONALE: Final = 1
"""Role of a target that explains the answer."""


@dataclass(frozen=True, slots=True)
class EncodedTarget:
    """Token ids of one candidate continuation of a query."""

    ids: tuple[int, ...]
    choice: int = 0
    """Which option of its example this is."""
    role: int = ANSWER
    """Which task of its example it is a target of: `ANSWER` or `RATIONALE`."""


@dataclass(frozen=True, slots=True)
class EncodedQuery:
    """Token ids of one query with the targets to be trained on or scored.

    In channel scoring one example gives one query for each option, so the example is named apart from the query.
    """

    ids: tuple[int, ...]
    targets: tuple[EncodedTarget, ...]
    example: int = 0
    """Number of the example within its split (stable over runs and methods)."""


@dataclass(frozen=True, slots=True)
class EncodedContext:
    """Token ids of one context (demonstrations or an instruction; no BOS) with the queries that share it."""

    ids: tuple[int, ...]
    queries: tuple[EncodedQuery, ...]
    task: int = 0
    """Number of the task in the datamodule's `task_names` (per-task prompts need it)."""
    teacher_ids: tuple[int, ...] | None = None
    """What the teacher reads when its token budget differs; None: the same ids."""
    borders: tuple[int, ...] = ()
    """The number of its tokens after each demonstration; empty: it is not made of demonstrations."""


@dataclass(slots=True)
class Context:
    """What a compressor reads. `ids`, `mask`: [G, C], left-padded; `task`: [G]. `part` [G, C]: which demonstration a
    token belongs to; None where contexts are not made of demonstrations.

    Not frozen, like Batch, because Lightning's true half and double precision refuse to convert frozen dataclasses.
    """

    ids: Tensor
    mask: Tensor
    task: Tensor
    part: Tensor | None = None


@dataclass(slots=True)
class Batch:
    """One batch of contexts, queries and targets (see the module docstring for the forest and the padding)."""

    context: Context
    teacher_context: Context
    """The context as the teacher reads it; the same object as `context` unless its token budget differs."""
    query_ids: Tensor  # [N, Q] left-padded
    query_mask: Tensor  # [N, Q] bool
    target_ids: Tensor  # [M, T] right-padded
    target_mask: Tensor  # [M, T] bool
    context_of: Tensor  # [N] row of each query's context
    query_of: Tensor  # [M] row of each target's query
    example: Tensor  # [M] number of the example each target belongs to
    choice: Tensor  # [M] which option of its example each target is
    role: Tensor  # [M] which task of its example each target belongs to (ANSWER, RATIONALE)
    siblings: tuple[Batch, ...] = ()
    """In the first micro-batch of an optimiser step: the others of this process. Their counts are needed at once."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        shared = self.teacher_context is self.context
        moved = {f.name: _move(getattr(self, f.name), device) for f in fields(self)}
        if shared:
            moved["teacher_context"] = moved["context"]
        return replace(self, **moved)

    def of_role(self, role: int) -> tuple[Self, Tensor]:
        """The targets of one role and the queries they belong to, and the rows [n] of these queries in this batch."""
        return self.of_targets((self.role == role).nonzero().squeeze(1))

    def of_targets(self, targets: Tensor) -> tuple[Self, Tensor]:
        """Some targets [m] and the queries they hang on, and the rows [n] of these queries in this batch."""
        queries, query_of = self.query_of[targets].unique(return_inverse=True)
        mask = self.target_mask[targets]
        width = int(mask.sum(-1).max()) if len(mask) else 0  # without columns of nothing but padding
        chosen = replace(
            self,
            query_ids=self.query_ids[queries],
            query_mask=self.query_mask[queries],
            context_of=self.context_of[queries],
            target_ids=self.target_ids[targets][:, :width],
            target_mask=mask[:, :width],
            query_of=query_of,
            example=self.example[targets],
            choice=self.choice[targets],
            role=self.role[targets],
            siblings=(),
        )
        return chosen, queries

    def of_contexts(self, cue: int) -> Self:
        """The contexts once more, with one query each, the token `cue`, whose target is the context itself."""
        rows = torch.arange(self.context.ids.shape[0], device=self.context.ids.device)
        order = (~self.context.mask).long().argsort(dim=1, stable=True)  # real tokens first: targets pad on the right
        return replace(
            self,
            query_ids=torch.full_like(rows, cue)[:, None],
            query_mask=torch.ones_like(rows, dtype=torch.bool)[:, None],
            context_of=rows,
            target_ids=self.context.ids.gather(1, order),
            target_mask=self.context.mask.gather(1, order),
            query_of=rows,
            example=rows,
            choice=torch.zeros_like(rows),
            role=torch.zeros_like(rows),
            siblings=(),
        )

    @property
    def num_tokens(self) -> Tensor:
        """Real (unpadded) tokens of contexts, queries and targets, a scalar on the batch's device."""
        return self.context.mask.sum() + self.query_mask.sum() + self.target_mask.sum()


def _move(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, tuple):
        return tuple(each.to(device) for each in value)
    if isinstance(value, Context):
        part = None if value.part is None else value.part.to(device)
        return Context(value.ids.to(device), value.mask.to(device), value.task.to(device), part)
    return value.to(device)


def pad(rows: Sequence[Sequence[int]], pad_id: int, side: str) -> tuple[Tensor, Tensor]:
    """Pad token rows on `side` ("left" or "right"). Returns ids and a bool mask, both [rows, longest]."""
    width = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        if row:
            where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
            ids[i, where] = torch.tensor(row, dtype=torch.long)
            mask[i, where] = True
    return ids, mask


def _parts(contexts: Sequence[EncodedContext]) -> Tensor | None:
    """The demonstration of each token, left-padded with 0; None where a context names no borders."""
    if not all(context.borders for context in contexts):
        return None
    return pad([[bisect_right(c.borders, place) for place in range(len(c.ids))] for c in contexts], 0, "left")[0]


def collate(contexts: Sequence[EncodedContext]) -> Batch:
    """Make a Batch of encoded contexts; the only place where padding is decided. It is token 0: that is one that the LM
    has, which a tokenizer's own padding need not be."""
    queries = [(row, query) for row, context in enumerate(contexts) for query in context.queries]
    targets = [(row, query, target) for row, (_, query) in enumerate(queries) for target in query.targets]
    column = partial(torch.tensor, dtype=torch.long)
    task = column([context.task for context in contexts])
    student = Context(*pad([context.ids for context in contexts], 0, "left"), task, _parts(contexts))
    teacher = student
    if any(context.teacher_ids is not None for context in contexts):
        teacher_rows = [c.ids if c.teacher_ids is None else c.teacher_ids for c in contexts]
        teacher = Context(*pad(teacher_rows, 0, "left"), task)
    query_ids, query_mask = pad([query.ids for _, query in queries], 0, "left")
    target_ids, target_mask = pad([target.ids for _, _, target in targets], 0, "right")
    return Batch(
        context=student,
        teacher_context=teacher,
        query_ids=query_ids,
        query_mask=query_mask,
        target_ids=target_ids,
        target_mask=target_mask,
        context_of=column([row for row, _ in queries]),
        query_of=column([row for row, _, _ in targets]),
        example=column([query.example for _, query, _ in targets]),
        choice=column([target.choice for _, _, target in targets]),
        role=column([target.role for _, _, target in targets]),
    )
