"""Which items stand in which batch.

Training (`StepSampler`): a pure function of (seed, step), the same for every number of processes. Evaluation
(`eval_batches`): a function of the data alone, the same for every run and method.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from promptcomp.batch import EncodedContext
from promptcomp.config import ConfigError

_EPOCH_STREAM, _WINDOW_STREAM = 0, 1


@dataclass(frozen=True, slots=True, order=True)
class Draw:
    """One training item: `index` says which, `number` counts all items ever drawn.

    Whatever is random about the item is a pure function of (seed, number), so that a resumed run, a data-loading worker
    and another number of processes all see the same item.
    """

    index: int
    number: int


class StepSampler(Sampler[list[Draw]]):
    """An endless batch sampler: rank r of W processes yields its slice of one global batch per step.

    Position p of the endless sequence of draws belongs to epoch p // num_items and is the item at place p % num_items
    of that epoch's permutation; the permutation is made of (seed, epoch) alone. Batches are cut from windows of
    `window * batch_size` consecutive positions: sorted by length, cut, and the batches shuffled, so that a batch pads
    little and the order still looks random. A window does not stop at the end of an epoch.

    With `max_tokens`, a batch holds as many draws as fit when padded to the longest one. What does not fill a batch at
    the end of a window joins the next window, and the direction of filling alternates so that nothing waits for long.
    The batches before `start_step` then have to be planned again (not encoded), because their number is not known
    beforehand.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_step: int | Callable[[], int] = 0,
        window: int = 1,
        lengths_of: Callable[[Sequence[Draw]], Sequence[int]] | None = None,
        max_tokens: int | None = None,
        micro_batches: int = 1,
    ) -> None:
        """
        Args:
            num_items: Items in one epoch.
            batch_size: Global number of draws in a step (with `max_tokens`: only the unit of the window's size).
            seed: Seed of all orders.
            rank: This process.
            world_size: Number of processes.
            start_step: Step to begin with; a callable is asked whenever an iteration begins, so that a
                loader that is iterated again goes on where the training stands.
            window: Batches in a window; 1 leaves the plain random order.
            lengths_of: Padded-relevant lengths [tokens] of draws; needed for `window > 1` and for `max_tokens`.
            max_tokens: Most padded tokens in a global (micro-)batch; a draw that has more is a batch of its own.
            micro_batches: Parts that a step is cut into; a part is what the sampler yields. With `max_tokens` a step
                is this number of batches.

        Raises:
            ConfigError: there are no items, or a part cannot give every process at least one item.
        """
        if num_items < 1:
            raise ConfigError("there is nothing to train on: the train split is empty")
        if batch_size < world_size * micro_batches:
            parts = f" in {micro_batches} micro-batches each" if micro_batches > 1 else ""
            raise ConfigError(
                f"batch_size = {batch_size} gives some of the {world_size} processes{parts} nothing to do; "
                f"use at least {world_size * micro_batches} (it counts the contexts of all processes)"
            )
        if lengths_of is None and max_tokens is not None:
            raise ValueError("max_tokens needs lengths_of")
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.rank, self.world_size, self.start_step = rank, world_size, start_step
        self.window = window if lengths_of is not None else 1
        self._lengths_of, self._max_tokens = lengths_of, max_tokens
        self.micro_batches = micro_batches
        self._orders: dict[int, np.ndarray] = {}

    def __iter__(self) -> Iterator[list[Draw]]:
        start = self.start_step if isinstance(self.start_step, int) else self.start_step()
        if self._max_tokens is not None:
            parts: Iterator[list[Draw]] = self.global_batches(start * self.micro_batches)
        else:
            parts = (part for batch in self.global_batches(start) for part in self._parts(batch))
        for part in parts:
            yield part[self.rank :: self.world_size]

    def _parts(self, batch: list[Draw]) -> Iterator[list[Draw]]:
        for number in range(self.micro_batches):
            first = number * len(batch) // self.micro_batches
            yield batch[first : (number + 1) * len(batch) // self.micro_batches]

    def global_batches(self, start: int = 0) -> Iterator[list[Draw]]:
        """The batches of all processes together, from step (with `max_tokens`: micro-batch) `start` on."""
        if self._max_tokens is not None:
            yield from self._by_tokens(start)
        number = start // self.window
        skip = start % self.window
        while True:
            yield from self._window_batches(number)[skip:]
            number, skip = number + 1, 0

    def _draws(self, window: int) -> list[Draw]:
        size = self.window * self.batch_size
        return [self._draw(position) for position in range(window * size, (window + 1) * size)]

    def _draw(self, position: int) -> Draw:
        epoch, place = divmod(position, self.num_items)
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            generator = np.random.default_rng((self.seed, _EPOCH_STREAM, epoch))
            self._orders[epoch] = generator.permutation(self.num_items)
        return Draw(int(self._orders[epoch][place]), position)

    def _shuffled(self, batches: list[list[Draw]], window: int) -> list[list[Draw]]:
        order = np.random.default_rng((self.seed, _WINDOW_STREAM, window)).permutation(len(batches))
        return [batches[i] for i in order]

    def _window_batches(self, window: int) -> list[list[Draw]]:
        draws = self._draws(window)
        if self.window > 1 and self._lengths_of is not None:
            lengths = self._lengths_of(draws)
            draws = [draws[i] for i in sorted(range(len(draws)), key=lambda i: (lengths[i], i))]
        batches = [draws[i : i + self.batch_size] for i in range(0, len(draws), self.batch_size)]
        return self._shuffled(batches, window) if self.window > 1 else batches

    def _by_tokens(self, start: int) -> Iterator[list[Draw]]:
        assert self._lengths_of is not None
        assert self._max_tokens is not None
        step, window = 0, 0
        waiting: deque[tuple[int, Draw]] = deque()
        while True:
            draws = self._draws(window)
            pool = sorted([*waiting, *zip(self._lengths_of(draws), draws, strict=True)], reverse=window % 2 == 0)
            batches, waiting = self._fill(pool, self._max_tokens)
            for batch in self._shuffled(batches, window):
                if step >= start:
                    yield batch
                step += 1
            window += 1

    def _fill(
        self, pool: Sequence[tuple[int, Draw]], max_tokens: int
    ) -> tuple[list[list[Draw]], deque[tuple[int, Draw]]]:
        """Full batches of a pool sorted by length (either way), and what is left over."""
        batches: list[list[Draw]] = []
        current: deque[tuple[int, Draw]] = deque()
        for length, draw in pool:
            longest = max(length, current[0][0]) if current else length  # the pool is sorted
            if current and longest * (len(current) + 1) > max_tokens:
                if len(current) < self.world_size:
                    raise ConfigError(
                        f"max_batch_tokens = {max_tokens} holds {len(current)} context(s) of {longest} tokens, "
                        f"fewer than the {self.world_size} processes; use at least {self.world_size * longest}"
                    )
                batches.append([member for _, member in current])
                current = deque()
            current.append((length, draw))
        return batches, current


class EvalPart(NamedTuple):
    """Queries `start:stop` of one evaluation context."""

    context: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class EvalContexts:
    """The contexts of an evaluation split, encoded when asked for."""

    count: int
    length: Callable[[int], int]
    """Tokens of a context (its place in the order of batches)."""
    targets: Callable[[int], Sequence[int]]
    """Number of targets of each query of a context."""
    encode: Callable[[EvalPart], EncodedContext]
    """A context with some of its queries."""

    def __len__(self) -> int:
        return self.count

    def whole(self, context: int) -> EncodedContext:
        """A context with all of its queries."""
        return self.encode(EvalPart(context, 0, len(self.targets(context))))


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
