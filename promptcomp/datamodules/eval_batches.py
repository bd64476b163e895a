"""Evaluation batches: which contexts and queries are scored together, the same for every run and method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from promptcomp.batch import EncodedContext
from promptcomp.config import ConfigError


class EvalPart(NamedTuple):
    """Queries `start:stop` of one evaluation context."""

    context: int
    start: int
    stop: int


class EvalContexts(ABC):
    """The contexts of an evaluation split, encoded when asked for."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def length(self, context: int) -> int:
        """Tokens of a context (its place in the order of batches)."""

    @abstractmethod
    def targets(self, context: int) -> Sequence[int]:
        """Number of targets of each query of a context."""

    @abstractmethod
    def encode(self, part: EvalPart) -> EncodedContext:
        """A context with some of its queries."""


def eval_batches(
    contexts: EvalContexts, max_contexts: int, max_targets: int, world_size: int = 1
) -> list[list[EvalPart]]:
    """Cut a split into batches of at most `max_contexts` contexts and about `max_targets` targets.

    The number of batches is a multiple of `world_size` (sharded models need every process to run as often as the
    others), which is reached by halving the largest batches, or joining single queries.

    Raises:
        ConfigError: there are fewer queries than processes.
    """
    batches: list[list[EvalPart]] = []
    current: list[EvalPart] = []
    targets = 0
    for part, size in _parts(contexts, max_targets):
        if current and (len(current) == max_contexts or targets + size > max_targets):
            batches.append(current)
            current, targets = [], 0
        current.append(part)
        targets += size
    if current:
        batches.append(current)
    while len(batches) % world_size:
        batches.sort(key=_num_queries, reverse=True)  # stable, so the same on every process
        if _num_queries(batches[0]) > 1:
            batches.extend(_halves(batches.pop(0)))
        elif len(batches) < world_size:
            raise ConfigError(f"{len(batches)} evaluation queries are too few for {world_size} processes")
        else:  # single queries only: a few batches get two
            rest = len(batches) % world_size
            for i, surplus in enumerate(batches[-rest:]):
                batches[i] = [*batches[i], *surplus]
            del batches[-rest:]
    return batches


def _parts(contexts: EvalContexts, max_targets: int) -> Iterator[tuple[EvalPart, int]]:
    """Parts of contexts with at most `max_targets` targets (but at least one query), long contexts first."""
    for context in sorted(range(len(contexts)), key=lambda i: (-contexts.length(i), i)):
        start, size = 0, 0
        counts = contexts.targets(context)
        for query, count in enumerate(counts):
            if query > start and size + count > max_targets:
                yield EvalPart(context, start, query), size
                start, size = query, 0
            size += count
        yield EvalPart(context, start, len(counts)), size


def _num_queries(batch: Sequence[EvalPart]) -> int:
    return sum(part.stop - part.start for part in batch)


def _halves(batch: Sequence[EvalPart]) -> tuple[list[EvalPart], list[EvalPart]]:
    if len(batch) > 1:
        return list(batch[: len(batch) // 2]), list(batch[len(batch) // 2 :])
    context, start, stop = batch[0]
    middle = (start + stop) // 2
    return [EvalPart(context, start, middle)], [EvalPart(context, middle, stop)]
