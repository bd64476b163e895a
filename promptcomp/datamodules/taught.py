"""Data whose targets may be the LM's own answers behind the full context (`data.targets: teacher`)."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from promptcomp.batch import EncodedContext, EncodedQuery
from promptcomp.datamodules.context_module import ContextDataModule


class TaughtAnswer(NamedTuple):
    """What the LM answers to a query behind its full context."""

    ids: tuple[int, ...]
    ended: bool
    """Whether it came to an end within the limit of tokens."""


def teacher_ids(context: EncodedContext) -> tuple[int, ...]:
    """The context as the teacher reads it."""
    return context.ids if context.teacher_ids is None else context.teacher_ids


def asked_key(context: EncodedContext, query: EncodedQuery) -> str:
    """What names a query behind a context, as the teacher reads it."""
    return hashlib.sha256(json.dumps([teacher_ids(context), query.ids]).encode()).hexdigest()


class TaughtDataModule(ContextDataModule):
    """Base of instructions and demonstrations.

    Attributes:
        taught: What the LM answers, by `asked_key`; None: the targets are those of the rows, or it was not asked yet.
    """

    taught: Mapping[str, TaughtAnswer] | None = None

    @abstractmethod
    def answer_target(self, split: str, query: EncodedQuery, answer: TaughtAnswer) -> tuple[int, ...]:
        """What is trained on where the LM has answered so."""

    def with_targets(self, split: str, context: EncodedContext) -> EncodedContext:
        """With the LM's answers as targets; several options stay, as a choice is held against the right one."""
        if self.taught is None:
            return context
        queries = []
        for query in context.queries:
            if len(query.targets) == 1:
                answer = self.answer_target(split, query, self.taught[asked_key(context, query)])
                query = replace(query, targets=(replace(query.targets[0], ids=answer),))
            queries.append(query)
        return replace(context, queries=tuple(queries))

    def teacher_answers(self, split: str) -> dict[int, TaughtAnswer]:
        """What the LM answers to the examples of an evaluation split, by their numbers; empty: it was not asked."""
        if self.taught is None:
            return {}
        contexts = self.eval_contexts(split)
        return {
            query.example: self.taught[asked_key(context, query)]
            for context in map(contexts.whole, range(len(contexts)))
            for query in context.queries
        }
