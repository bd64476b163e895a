"""Blended words: for one training step, each word's embedding is mixed with that of another word.

Contexts are then made of words that are in no vocabulary, so that a compressor that has to read them learns what holds
for words that it has never seen. After mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412), of inputs alone and
with one pair for each word: answers stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Blend:
    """What each word of a vocabulary is mixed with."""

    other: Tensor
    """[V] The other word."""
    share: Tensor
    """[V] How much of the mixture is of the other word; 0 leaves a word as it is."""

    def __call__(self, table: nn.Embedding, ids: tuple[Tensor], found: Tensor) -> Tensor:
        """What a look-up in a token table finds, mixed (a forward hook). Two independent words' mixture keeps their
        length."""
        share = self.share.to(found)[ids[0]].unsqueeze(-1)
        mixed = (1 - share) * found + share * table.forward(self.other.to(ids[0].device)[ids[0]])
        return mixed / ((1 - share).square() + share.square()).sqrt()


@contextmanager
def blended(tables: Iterable[nn.Embedding], blend: Blend | None) -> Iterator[None]:
    """Look-ups in these token tables find mixed words, within this block."""
    with ExitStack() as hooks:
        if blend is not None:
            for table in tables:
                hooks.callback(table.register_forward_hook(blend).remove)
        yield
