"""Memory: what a compressor makes of a context.

Three forms cover every method; `None` stands for no prompt at all. Rows may have different numbers of real slots, so
each form carries a mask. `rows` gives each query its context's memory (a view where nothing has to be copied).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor


@dataclass(frozen=True, slots=True)
class SoftPrompt:
    """Vectors put in front of the query's token embeddings. `embeds` [B, K, D], `mask` [B, K] bool."""

    embeds: Tensor
    mask: Tensor

    def rows(self, index: Tensor) -> Self:
        """The memory of the rows `index` [N]."""
        return type(self)(self.embeds[index], self.mask[index])

    @property
    def num_slots(self) -> Tensor:
        """Real slots of each row [B]."""
        return self.mask.sum(-1)


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of a decoder-only LM at the slots: per layer [B, H, K, Dh] each; `mask` [B, K] bool.

    `next_position` [B] is the position id of the token that follows (for a gist it is not the number of slots).
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor
    next_position: Tensor

    def rows(self, index: Tensor) -> Self:
        """The memory of the rows `index` [N]."""
        layers = tuple((keys[index], values[index]) for keys, values in self.layers)
        return type(self)(layers, self.mask[index], self.next_position[index])

    @property
    def num_slots(self) -> Tensor:
        """Real slots of each row [B]."""
        return self.mask.sum(-1)


@dataclass(frozen=True, slots=True)
class EncoderStates:
    """States of an encoder-decoder LM's encoder at the slots; `mask` [B, K] bool.

    `layers` holds the input of every encoder block and, last, the encoder's output: [B, K, D] each. A decoder that
    reads the slots alone needs only `layers[-1]`.
    """

    layers: tuple[Tensor, ...]
    mask: Tensor

    def rows(self, index: Tensor) -> Self:
        """The memory of the rows `index` [N]."""
        return type(self)(tuple(layer[index] for layer in self.layers), self.mask[index])

    @property
    def num_slots(self) -> Tensor:
        """Real slots of each row [B]."""
        return self.mask.sum(-1)


Memory = SoftPrompt | KVCache | EncoderStates
