"""Caches are made, passed and read in the same way whatever the release of transformers calls things."""

from __future__ import annotations

from inspect import signature

import pytest
import torch
from torch import Tensor, nn

from promptcomp.language_model import cache
from promptcomp.memory import KVCache
from tests.tiny_models import tiny_hf

FAMILIES = ["gpt2", "llama", "mistral", "opt", "qwen3"]


class Renamed(nn.Module):
    """A model of a later release."""

    def forward(self, tokens: Tensor, cache: object = None) -> object:
        return cache


class Before(nn.Module):
    """A model of an earlier release."""

    def forward(self, tokens: Tensor, past_key_values: object = None) -> object:
        return past_key_values


@pytest.mark.parametrize("model", [Renamed(), Before()], ids=["renamed", "before"])
def test_a_model_takes_its_cache_by_the_name_of_its_release(model: nn.Module) -> None:
    full = cache.growing()
    assert model(torch.zeros(1), **cache.passing(model, full)) is full
    names = {"signature": signature, "model": model}
    exec(cache.KEYWORD_CODE, names)  # noqa: S102 (what exported pages print)
    assert names["keyword"] == cache.keyword(type(model))


@pytest.mark.parametrize("kind", [*FAMILIES, "t5"])
def test_real_models_know_the_name(kind: str) -> None:
    hf = tiny_hf(kind)
    model = hf.get_decoder() if kind == "t5" else hf.base_model
    for part in (model, hf):
        assert cache.keyword(type(part)) in signature(type(part).forward).parameters


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_growing_cache_keeps_what_a_reading_one_only_reads(kind: str) -> None:
    model = tiny_hf(kind).base_model
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    first = cache.growing()
    with torch.no_grad():
        model(input_ids=ids, use_cache=True, **cache.passing(model, first))
        layers = cache.stored(first)
        again, read = (
            cache.growing(layers),
            cache.reading(KVCache(layers, torch.ones(2, 3).bool(), torch.tensor([3, 3]))),
        )
        states = [
            model(input_ids=ids, use_cache=True, **cache.passing(model, each)).last_hidden_state
            for each in (first, again, read)
        ]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    torch.testing.assert_close(states[0], states[2], rtol=0, atol=1e-6)
    assert [each.get_seq_length() for each in (first, again, read)] == [6, 6, 3]
    cache.select_rows(first, torch.tensor([1, 1, 0]))
    assert torch.equal(cache.stored(first)[1][0], cache.stored(again)[1][0][[1, 1, 0]])


def test_what_is_added_to_a_copy_is_not_in_the_cache() -> None:
    one = cache.growing([(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))])
    two = cache.copy_of(one)
    for layer in (0, 1):
        two.update(torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 4), layer)
    assert (one.get_seq_length(), len(one), two.get_seq_length(), len(two)) == (2, 1, 5, 2)
