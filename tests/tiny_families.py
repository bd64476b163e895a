"""Tiny random models of (nearly) every causal LM that transformers knows, made from its own configuration classes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

_WIDTH, _LAYERS, _HEADS, _WORDS, _LENGTH = 32, 2, 4, 64, 128
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "n_words", "vocab_size_per_layer_input"), _WORDS),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "word_embed_proj_dim", "lru_width"), _WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "d_inner", "dff"), 2 * _WIDTH),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "intermediate_size_mlp"), 2 * _WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), _LAYERS),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers"), _LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), _HEADS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), _HEADS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), _LENGTH),
    **dict.fromkeys(("head_dim", "d_kv", "rotary_dim", "attention_head_size"), _WIDTH // _HEADS),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim"), _WIDTH // _HEADS),
    **dict.fromkeys(("num_key_value_heads", "index_n_heads", "num_experts_per_tok", "moe_k"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "index_topk"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "ffn_hidden_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("first_k_dense_replace", "n_group", "topk_group", "n_shared_experts"), 1),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_heads"), 4),
    "sliding_window": 7,
    "embedding_size": 32,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
"""Values for the entries that a configuration has."""

_DECODER = {"is_decoder": True}
_WITH_PADDING = {"is_decoder": True, "pad_token_id": 1}
_ALL_HEADS = {"num_key_value_heads": _HEADS}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_CONVOLVED = {"layer_types": ["conv", "full_attention"]}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
_SEEING = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_PIXTRAL = {**_SEEING, "image_size": 28, "patch_size": 14}

_SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bert", "bert-generation", "electra", "ernie", "megatron-bert", "rembert", "roformer"), _DECODER),
    **dict.fromkeys(("camembert", "data2vec-text", "roberta", "roberta-prelayernorm"), _WITH_PADDING),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl"), _WITH_PADDING),
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note_text"), _ALL_HEADS),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3", "sarvam_mla", "youtu"), _ALL_HEADS),
    **dict.fromkeys(("lara_mini", "minimax", "olmo_hybrid", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"), _LINEAR),
    **dict.fromkeys(("lfm2", "lfm2_moe", "lfm3"), _CONVOLVED),
    **dict.fromkeys(("bamba", "granitemoehybrid"), _MAMBA),
    "big_bird": {"is_decoder": True, "attention_type": "original_full"},
    "cohere2_vision": {"vision_config": _SEEING},
    "cwm": {"bos_token_id": 1, "eos_token_id": 2},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "gemma3": {"vision_config": _SEEING},
    "gemma3n_text": {
        "num_hidden_layers": 5,
        "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 4,
        "laurel_rank": 4,
        "activation_sparsity_pattern": None,
    },
    "gemma4_text": {"hidden_size_per_layer_input": 4, "num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 5},
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "llama4_text": {"layer_types": ["full_attention"] * 2, "attention_chunk_size": None, "no_rope_layers": [1, 0]},
    "llava": {"vision_config": _PIXTRAL},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"]},
    "mistral3": {"vision_config": _PIXTRAL},
    "modernbert-decoder": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "local_attention": 8},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1},
    "qwen3_vl": {"vision_config": {"depth": 1, **_SEEING, "num_heads": 2, "out_hidden_size": 32}},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "local"],
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16],
    },
    "roc_bert": {
        "is_decoder": True,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
        "pronunciation_vocab_size": 20,
        "shape_vocab_size": 20,
    },
    "t5": {"decoder_start_token_id": 0, "num_layers": 2},
    "mt5": {"decoder_start_token_id": 0, "num_layers": 2},
    "xlm": {"causal": True, "pad_index": 0},
    "xmod": {"is_decoder": True, "default_language": "en_XX", "pad_token_id": 1},
    "zaya": {"num_experts_per_tok": 1},
}
"""What the sizes alone do not make work, or not make interesting."""

_LEFT_OUT = {
    "blt", "bailing_hybrid", "cohere_compass_text", "dbrx", "dots3_note", "emu3", "gemma3n", "gemma4",
    "gemma4_assistant", "gemma4_unified", "gemma4_unified_assistant", "git", "got_ocr2", "kimi_linear", "llama4",
    "mllama", "moss_transcribe_diarize", "moshi", "musicgen", "musicgen_melody", "phi4_multimodal", "prophetnet",
    "qwen3_5", "qwen3_5_moe", "qwen4_exp", "qwen4_exp_text", "zamba", "zamba2", "inkling2_loop_text", "inkling2_text",
    "inkling_text", "xlstm", "cpmant",
}  # fmt: skip
"""They see pictures or hear as well, draft for others, or cannot be made small by these rules."""

CAUSAL = tuple(kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in _LEFT_OUT)
SEEING = ("cohere2_vision", "gemma3", "llava", "mistral3", "qwen3_vl")
ENCODER_DECODERS = ("t5", "mt5")


def tiny_family(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of a type of transformers, in eval mode: 2 layers, width 32, 64 words, windows of a few tokens.

    Args:
        kind: "llama", "qwen3_vl", "t5", ...
        seed: of the weights; every parameter gets some noise, so that none hides what it does.
        changes: to the configuration.
    """
    made: Any = CONFIG_MAPPING[kind]
    entries = made().to_dict()
    settings: dict[str, Any] = {name: value for name, value in _SIZES.items() if name in entries}
    if isinstance(text := entries.get("text_config"), dict):
        settings = {"text_config": {name: value for name, value in _SIZES.items() if name in text}}
    config = made(**{**settings, **copy.deepcopy(_SPECIAL.get(kind, {})), **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = _factory(kind).from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def _factory(kind: str) -> Any:
    if kind in ENCODER_DECODERS:
        return AutoModelForSeq2SeqLM
    return AutoModelForCausalLM if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else AutoModelForImageTextToText
