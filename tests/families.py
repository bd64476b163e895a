"""Tiny random decoder-only models of many families."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

NONE = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    **NONE,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
WIDE = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
LATENT = {
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "llama, grouped queries": ("llama", WIDE),
    "falcon, one key for all heads": ("falcon", {**SIZES, "multi_query": True, "new_decoder_architecture": False}),
    "deepseek_v3, latent cache": (
        "deepseek_v3",
        {
            **SIZES,
            **EXPERTS,
            **LATENT,
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "mixtral": ("mixtral", {**WIDE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("qwen3_moe", {**WIDE, **EXPERTS, "num_experts": 8}),
    "gpt_oss": ("gpt_oss", {**WIDE, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": None}),
    "gemma3, sliding": ("gemma3_text", {**WIDE, "sliding_window": 8}),
    "phi3": ("phi3", SIZES),
    "gpt_neox": ("gpt_neox", SIZES),
    "opt": ("opt", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16}),
    "granite": ("granite", SIZES),
    "olmo2": ("olmo2", SIZES),
    "stablelm": ("stablelm", {**SIZES, "num_key_value_heads": 4}),
    "bloom": ("bloom", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "modernbert-decoder, a head with a transform": ("modernbert-decoder", SIZES),
}


def family(name: str, **more: Any) -> PreTrainedModel:
    """A tiny random model."""
    kind, options = FAMILIES[name]
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options, **more)).eval()
