"""The one place that knows the cache API of transformers: making, filling, reading and passing caches.

Keys and values of a layer have shape [B, H, S, Dh]. Models take their cache by a name that depends on the release of
transformers (`cache` from 5.24 on, `past_key_values` before), so it is read off the model's own forward.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator
from functools import cache as remembering
from typing import cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from promptcomp.memory import KVCache

__all__ = ["KEYWORD_CODE", "Cache", "copy_of", "growing", "keyword", "passing", "reading", "select_rows", "stored"]

_NEW, _OLD = "cache", "past_key_values"
KEYWORD_CODE = f'keyword = "{_NEW}" if "{_NEW}" in signature(model.forward).parameters else "{_OLD}"'
"""Python for users of any release of transformers: `keyword` of their `model`. It needs `from inspect import signature`
before it."""


def passing(model: nn.Module, cache: Cache) -> dict[str, Cache]:
    """`cache` as a keyword argument of `model`."""
    return {keyword(type(model)): cache}  # type: ignore[arg-type]  # classes can be hashed


@remembering
def keyword(model: type[nn.Module]) -> str:
    """The name by which models of a class take a cache."""
    return _NEW if _NEW in inspect.signature(model.forward).parameters else _OLD


def growing(layers: Iterable[tuple[Tensor, Tensor]] = ()) -> DynamicCache:
    """A cache that keeps what is read, behind the keys and values of `layers`."""
    cache = DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    return cache


def growing_pair() -> EncoderDecoderCache:
    """A cache of a decoder that reads encoder states as well."""
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def select_rows(cache: Cache, index: Tensor) -> None:
    """Keep (and repeat) the rows `index` [N]."""
    cache.reorder_cache(cast(torch.LongTensor, index))


def _own_layers(cache: Cache) -> Iterator[DynamicLayer]:
    """The layers that hold what the model itself has read (an encoder-decoder's: of its decoder)."""
    for layer in (cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache).layers:
        assert isinstance(layer, DynamicLayer)
        yield layer


def _filled(layer: DynamicLayer) -> tuple[Tensor, Tensor]:
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys, layer.values


def under(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """The rows of both; where one is shorter along `dim`, zeros stand on its left."""
    width = max(first.shape[dim], second.shape[dim])

    def wide(tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = width - tensor.shape[dim]
        return torch.cat([tensor.new_zeros(shape), tensor], dim) if shape[dim] else tensor

    return torch.cat([wide(first), wide(second)])


def join_caches(cache: Cache, other: Cache) -> None:
    """Take in the rows of another cache, behind one's own; what is shorter is padded on the left."""
    pairs = list(zip(_own_layers(cache), _own_layers(other), strict=True))
    if isinstance(cache, EncoderDecoderCache) and isinstance(other, EncoderDecoderCache):
        across = (cache.cross_attention_cache, other.cross_attention_cache)
        pairs += zip(*map(_own_layers, across), strict=True)
    for mine, more in pairs:
        mine.keys, mine.values = (under(*both, -2) for both in zip(_filled(mine), _filled(more), strict=True))


def cut_columns(cache: Cache, count: int) -> None:
    """Let go of the first columns (not of what an encoder has read)."""
    for layer in _own_layers(cache) if count else ():
        layer.keys, layer.values = (tensor[..., count:, :] for tensor in _filled(layer))


class _ReadOnlyLayer(DynamicLayer):
    """A cache layer that is read together with the new tokens and keeps none of them."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)


def reading(memory: KVCache) -> Cache:
    """A memory as a cache that stays as it is."""
    cache = DynamicCache()
    cache.layers = [_ReadOnlyLayer(keys, values) for keys, values in memory.layers]
    return cache


def stored(cache: DynamicCache) -> tuple[tuple[Tensor, Tensor], ...]:
    """Keys and values of every layer of a filled cache."""
    return tuple(map(_filled, _own_layers(cache)))


def copy_of(cache: Cache) -> Cache:
    """A cache of the same tensors: what is added to the one is not in the other."""
    found = copy.copy(cache)
    found.layers = [copy.copy(layer) for layer in cache.layers]
    return found
