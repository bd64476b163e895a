"""Analytic costs against counted FLOPs of real modules and against a published worked example."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from promptcomp.config import ConfigError
from promptcomp.evaluation.cost import measure_ms, memory_bytes
from promptcomp.evaluation.flops import ModelShape, PrefillFlops, decoder_flops, prefill_flops, shape_of_config
from promptcomp.memory import EncoderStates, KVCache, SoftPrompt

LLAMA_8B = ModelShape("decoder", 32, 32, 8, 128, 4096, 14336, 128256, 8_030_261_248, 2, gated_mlp=True)


def counted(model: torch.nn.Module, **inputs: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(**inputs)
    return counter.get_total_flops()


def shape_of(model) -> ModelShape:
    return shape_of_config(model.config.to_dict(), sum(p.numel() for p in model.parameters()))


@pytest.mark.parametrize("tokens", [7, 24])
def test_decoders_agree_with_the_flop_counter(tokens):
    """The counter takes all T^2 pairs of an attention and T positions of the head; both are put right here."""
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=50, n_positions=64))
    llama = LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            hidden_size=32,
            head_dim=16,
            intermediate_size=48,
            vocab_size=50,
        )
    )
    for model in (gpt2, llama):
        shape = shape_of(model)
        model.set_attn_implementation("eager")
        found = counted(model, input_ids=torch.ones(1, tokens, dtype=torch.long))
        acausal = 4 * shape.num_layers * shape.num_heads * shape.head_dim * (tokens**2 - tokens * (tokens + 1) / 2)
        expected = decoder_flops(shape, tokens) + acausal + (tokens - 1) * shape.head_flops
        assert found == pytest.approx(expected, rel=0.01)  # rotary embeddings


@pytest.mark.parametrize("projection", ["relu", "gated-gelu"])
def test_encoder_decoder_agrees_with_the_flop_counter(projection):
    config = T5Config(
        num_layers=2, num_decoder_layers=3, num_heads=4, d_kv=8, d_model=24, d_ff=40, vocab_size=50,
        feed_forward_proj=projection, decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    model.set_attn_implementation("eager")
    shape = shape_of(model)
    assert (shape.gated_mlp, shape.num_decoder_layers) == (projection == "gated-gelu", 3)
    ids = torch.ones(1, 15, dtype=torch.long)
    found = counted(model, input_ids=ids, decoder_input_ids=ids[:, :1])
    costs = prefill_flops(shape, context_tokens=10, memory_slots=2, query_tokens=5)
    assert found == pytest.approx(costs.full, rel=0.001)
    assert costs.cached_full == costs.full  # an encoder reads both ways: nothing of it can be cached
    in_decoder = prefill_flops(shape, context_tokens=15, memory_slots=2, query_tokens=5, layout="query_in_decoder")
    found = counted(model, input_ids=ids, decoder_input_ids=ids[:, :6])
    acausal = 4 * 3 * 32 * (36 - 21)
    assert found == pytest.approx(in_decoder.full + acausal + 5 * shape.head_flops, rel=0.001)
    assert in_decoder.cached_full < in_decoder.full


def test_worked_example_of_an_eight_billion_model():
    """2,048 prompt tokens, 64 query tokens, 16 slots; published figures in TFLOPs."""
    soft = prefill_flops(LLAMA_8B, context_tokens=2048, memory_slots=16, query_tokens=64)
    cache = prefill_flops(LLAMA_8B, context_tokens=2048, memory_slots=16, query_tokens=64, memory_kind="kv_cache")
    assert soft.full / 1e12 == pytest.approx(30.7, abs=0.05)
    assert soft.cached_full / 1e12 == pytest.approx(0.97, abs=0.01)
    assert cache.compressed / 1e12 == pytest.approx(0.90, abs=0.01)
    assert soft.compressed / 1e12 == pytest.approx(1.12, abs=0.01)
    assert decoder_flops(LLAMA_8B, 2064) / 1e12 == pytest.approx(30.0, abs=0.1)
    assert soft.cached_compressed == cache.compressed
    assert LLAMA_8B.kv_bytes_per_token == 128 * 1024


def test_ratio_and_break_even():
    costs = PrefillFlops(no_prompt=1, compressed=2, full=10, cached_full=1.5, cached_compressed=1.1, compress=17)
    assert costs.ratio == 5
    assert costs.break_even_queries == 3
    assert PrefillFlops(1, 10, 10, 1, 1, 5).break_even_queries is None
    assert PrefillFlops(1, 2, 10, 1, 1, 0).break_even_queries == 1


def test_encoder_states_cost_no_encoder_pass():
    shape = ModelShape("encoder_decoder", 2, 4, 4, 8, 32, 64, 50, 0, num_decoder_layers=2)
    soft = prefill_flops(shape, context_tokens=40, memory_slots=4, query_tokens=5, layout="query_in_decoder")
    states = prefill_flops(
        shape,
        context_tokens=40,
        memory_slots=4,
        query_tokens=5,
        layout="query_in_decoder",
        memory_kind="encoder_states",
    )
    assert states.compressed < soft.compressed < soft.full
    inside = prefill_flops(shape, context_tokens=40, memory_slots=4, query_tokens=5, memory_kind="encoder_states")
    assert inside.no_prompt < inside.compressed < inside.full


def test_memory_bytes_count_real_slots():
    mask = torch.tensor([[True, True, True], [False, False, True]])
    assert memory_bytes(None) == 0
    assert memory_bytes(SoftPrompt(torch.zeros(2, 3, 10), mask)) == 2 * 10 * 4
    layers = tuple((torch.zeros(2, 4, 3, 5, dtype=torch.bfloat16),) * 2 for _ in range(6))
    assert memory_bytes(KVCache(layers, mask, torch.tensor([3, 1]))) == 2 * 6 * 2 * 4 * 5 * 2
    assert memory_bytes(EncoderStates((torch.zeros(2, 3, 8),) * 3, mask)) == 2 * 3 * 8 * 4


def test_configuration_without_a_size_is_refused():
    with pytest.raises(ConfigError, match=r"no hidden_size .looked for hidden_size, n_embd, d_model"):
        shape_of_config({"vocab_size": 5}, 0)


def test_measured_milliseconds_are_a_median_of_warm_calls():
    calls = []
    assert measure_ms(lambda: calls.append(1), warmup=2, repeats=5) >= 0
    assert len(calls) == 7
