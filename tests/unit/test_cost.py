"""Costs that are counted on a model against counts of the real model, and formulas against a worked example."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from promptcomp.config import ConfigError
from promptcomp.evaluation.flops import decoder_flops, encoder_flops, prefill_flops
from promptcomp.evaluation.memory_cost import measure_ms, memory_bytes
from promptcomp.language_model.cache import growing, growing_pair, passing
from promptcomp.language_model.counting import ModelCost, count_flops, model_cost
from promptcomp.memory import EncoderStates, KVCache, SoftPrompt
from tests.families import FAMILIES, SIZES, family
from tests.tiny_models import tiny_hf

LLAMA_8B = ModelCost(
    "decoder",
    token=2 * 32 * (2 * 4096 * 128 * (32 + 8) + 3 * 4096 * 14336),
    pair=4 * 32 * 32 * 128,
    head=2 * 4096 * 128256,
    kv_bytes_per_token=2 * 32 * 8 * 128 * 2,
)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_model_says_what_its_tokens_cost(name: str) -> None:
    """The counter takes all pairs of an attention and the logits of all T positions; both are put right here."""
    hf = family(name)
    hf.set_attn_implementation("eager")
    cost = model_cost(hf)
    cache = growing()

    def read(length: int) -> float:
        ids = torch.arange(length)[None] % 60
        return count_flops(lambda: hf(ids, use_cache=True, **passing(hf, cache)))

    whole, later = read(21), read(5)
    assert whole == pytest.approx(decoder_flops(cost, 21) + cost.pair * (21**2 - 21 * 11) + 20 * cost.head, rel=0.01)
    behind = decoder_flops(cost, 5, 21) + cost.pair * (25 - 15) + 4 * cost.head
    assert later == pytest.approx(behind, rel=0.01)
    held = sum(part.numel() * part.element_size() for each in cache.layers for part in (each.keys, each.values))
    assert held == 26 * cost.kv_bytes_per_token


@pytest.mark.parametrize("kind", ["t5", "t5v11"])
@torch.no_grad()
def test_an_encoder_decoder_says_what_its_tokens_cost(kind: str) -> None:
    hf = tiny_hf(kind)
    hf.set_attn_implementation("eager")
    cost, ids = model_cost(hf), torch.ones(1, 15, dtype=torch.long)
    found = count_flops(lambda: hf(input_ids=ids, decoder_input_ids=ids[:, :1]))
    costs = prefill_flops(cost, context_tokens=10, memory_slots=2, query_tokens=5)
    assert found == costs.full_prefill_flops
    assert (
        costs.cached_full_prefill_flops == costs.full_prefill_flops
    )  # an encoder reads both ways: nothing of it can be cached
    in_decoder = prefill_flops(cost, context_tokens=15, memory_slots=2, query_tokens=5, layout="query_in_decoder")
    found = count_flops(lambda: hf(input_ids=ids, decoder_input_ids=ids[:, :6]))
    assert found == in_decoder.full_prefill_flops + cost.pair * (36 - 21) + 5 * cost.head
    assert in_decoder.cached_full_prefill_flops < in_decoder.full_prefill_flops
    encoder = hf.get_encoder()
    assert count_flops(lambda: encoder(ids)) == encoder_flops(model_cost(encoder), 15) == encoder_flops(cost, 15)
    decoder, cache = hf.get_decoder(), growing_pair()
    decoder(ids[:, :3], encoder_hidden_states=torch.zeros(1, 7, 32), use_cache=True, **passing(decoder, cache))
    held = sum(part.nbytes for each in cache.cross_attention_cache.layers for part in (each.keys, each.values))
    assert held == 7 * cost.kv_bytes_per_token


def test_adapters_precision_and_the_device_do_not_matter() -> None:
    hf = family("llama, grouped queries")
    half = model_cost(family("llama, grouped queries").to(torch.bfloat16))
    with torch.device("meta"):
        skeleton = LlamaForCausalLM(hf.config)
    assert model_cost(skeleton) == model_cost(hf)
    assert (half.token, 2 * half.kv_bytes_per_token) == (model_cost(hf).token, model_cost(hf).kv_bytes_per_token)
    state = torch.random.get_rng_state()
    model_cost(family("granite"))
    hf.requires_grad_(False)
    assert model_cost(hf.base_model).head == 0  # type: ignore[arg-type]
    assert state.shape == torch.random.get_rng_state().shape


@torch.no_grad()
def test_experts_whose_work_depends_on_values_are_counted_with_their_weights() -> None:
    config = AutoConfig.for_model(
        "jetmoe", **{**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}, kv_channels=8
    )
    hf = AutoModelForCausalLM.from_config(config).eval()
    cost = model_cost(hf)
    found = count_flops(lambda: hf(torch.arange(21)[None]))
    assert found == pytest.approx(decoder_flops(cost, 21) + cost.pair * (21**2 - 21 * 11) + 20 * cost.head, rel=0.01)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.for_model("jetmoe", vocab_size=7, num_hidden_layers=1))
    with pytest.raises(ConfigError, match="'jetmoe' depends on their weights"):
        model_cost(skeleton)


def test_worked_example_of_an_eight_billion_model() -> None:
    """2,048 prompt tokens, 64 query tokens, 16 slots; published figures in TFLOPs."""
    soft = prefill_flops(LLAMA_8B, context_tokens=2048, memory_slots=16, query_tokens=64)
    cache = prefill_flops(LLAMA_8B, context_tokens=2048, memory_slots=16, query_tokens=64, memory_kind="kv_cache")
    assert soft.full_prefill_flops / 1e12 == pytest.approx(30.7, abs=0.05)
    assert soft.cached_full_prefill_flops / 1e12 == pytest.approx(0.97, abs=0.01)
    assert cache.prefill_flops / 1e12 == pytest.approx(0.90, abs=0.01)
    assert soft.prefill_flops / 1e12 == pytest.approx(1.12, abs=0.01)
    assert decoder_flops(LLAMA_8B, 2064) / 1e12 == pytest.approx(30.0, abs=0.1)
    assert soft.cached_prefill_flops == cache.prefill_flops
    assert LLAMA_8B.kv_bytes_per_token == 128 * 1024


def test_a_beginning_is_read_wherever_nothing_is_cached() -> None:
    """BOS stands in front of queries and vectors; a cache has seen it."""
    lengths = {"context_tokens": 101, "memory_slots": 4, "query_tokens": 10}
    soft = prefill_flops(LLAMA_8B, **lengths, front_tokens=1)
    assert soft.no_prompt_prefill_flops == decoder_flops(LLAMA_8B, 11)
    assert soft.prefill_flops == decoder_flops(LLAMA_8B, 15)
    assert soft.cached_prefill_flops == decoder_flops(LLAMA_8B, 10, 5)
    assert soft.full_prefill_flops == decoder_flops(LLAMA_8B, 111)
    kept = prefill_flops(LLAMA_8B, **lengths, front_tokens=1, memory_kind="kv_cache")
    assert kept.prefill_flops == kept.cached_prefill_flops == decoder_flops(LLAMA_8B, 10, 4)


def test_ratio_and_break_even() -> None:
    cost = prefill_flops(LLAMA_8B, context_tokens=100, memory_slots=4, query_tokens=10, compress_flops=1e13)
    assert cost.flops_ratio == cost.full_prefill_flops / cost.prefill_flops
    assert cost.break_even_queries == math.ceil(1e13 / (cost.full_prefill_flops - cost.prefill_flops)) > 1
    for same in ({"context_tokens": 4}, {"compress_flops": 0.0}):  # it never pays; there is nothing to pay for
        lengths = {"context_tokens": 100, "memory_slots": 4, "query_tokens": 10, "compress_flops": 5.0, **same}
        assert prefill_flops(LLAMA_8B, **lengths).break_even_queries is None


def test_encoder_states_cost_no_encoder_pass():
    cost = model_cost(tiny_hf("t5"))
    soft = prefill_flops(cost, context_tokens=40, memory_slots=4, query_tokens=5, layout="query_in_decoder")
    states = prefill_flops(
        cost,
        context_tokens=40,
        memory_slots=4,
        query_tokens=5,
        layout="query_in_decoder",
        memory_kind="encoder_states",
    )
    assert states.prefill_flops < soft.prefill_flops < soft.full_prefill_flops
    inside = prefill_flops(cost, context_tokens=40, memory_slots=4, query_tokens=5, memory_kind="encoder_states")
    vectors = prefill_flops(cost, context_tokens=40, memory_slots=4, query_tokens=5)
    assert inside.no_prompt_prefill_flops < inside.prefill_flops == vectors.prefill_flops < inside.full_prefill_flops


def test_memory_bytes_count_real_slots():
    mask = torch.tensor([[True, True, True], [False, False, True]])
    assert memory_bytes(None) == 0
    assert memory_bytes(SoftPrompt(torch.zeros(2, 3, 10), mask)) == 2 * 10 * 4
    layers = tuple((torch.zeros(2, 4, 3, 5, dtype=torch.bfloat16),) * 2 for _ in range(6))
    assert memory_bytes(KVCache(layers, mask, torch.tensor([3, 1]))) == 2 * 6 * 2 * 4 * 5 * 2
    assert memory_bytes(EncoderStates((torch.zeros(2, 3, 8),) * 3, mask)) == 2 * 3 * 8 * 4


def test_measured_milliseconds_are_a_median_of_warm_calls():
    calls = []
    assert measure_ms(lambda: calls.append(1), warmup=2, repeats=5) >= 0
    assert len(calls) == 7
