"""Sizes of well-known models, so that a dry run needs neither weights nor a network."""

from __future__ import annotations

from typing import Any

_GPT2 = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024}
_OPT = {"model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048}
_LLAMA = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 2048}
_T5 = {"model_type": "t5", "vocab_size": 32128, "d_kv": 64}
_V11 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def _gpt2(layers: int, heads: int, width: int) -> dict[str, Any]:
    return {**_GPT2, "n_layer": layers, "n_head": heads, "n_embd": width}


def _opt(layers: int, heads: int, width: int) -> dict[str, Any]:
    sizes = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": width, "ffn_dim": 4 * width}
    return {**_OPT, **sizes, "word_embed_proj_dim": width}


def _llama(layers: int, heads: int, width: int, ff: int) -> dict[str, Any]:
    sizes = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": width, "intermediate_size": ff}
    return {**_LLAMA, **sizes}


def _t5(layers: int, heads: int, width: int, ff: int, v11: bool, d_kv: int = 64) -> dict[str, Any]:
    sizes = {"num_layers": layers, "num_decoder_layers": layers, "num_heads": heads, "d_model": width, "d_ff": ff}
    return {**_T5, **sizes, "d_kv": d_kv, **(_V11 if v11 else {})}


def _t5_family() -> dict[str, dict[str, Any]]:
    v10 = {"small": (6, 8, 512, 2048), "base": (12, 12, 768, 3072), "large": (24, 16, 1024, 4096)}
    v11 = {
        "small": (8, 6, 512, 1024),
        "base": (12, 12, 768, 2048),
        "large": (24, 16, 1024, 2816),
        "xl": (24, 32, 2048, 5120),
        "xxl": (24, 64, 4096, 10240),
    }
    table = {
        f"{prefix}t5-{size}": _t5(*shape, v11=False) for size, shape in v10.items() for prefix in ("", "google-t5/")
    }
    for size, shape in v11.items():
        for name in (f"google/flan-t5-{size}", f"google/t5-v1_1-{size}", f"google/t5-{size}-lm-adapt"):
            table[name] = _t5(*shape, v11=True)
    return table


KNOWN_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": _gpt2(12, 12, 768),
    "openai-community/gpt2": _gpt2(12, 12, 768),
    "gpt2-medium": _gpt2(24, 16, 1024),
    "openai-community/gpt2-medium": _gpt2(24, 16, 1024),
    "gpt2-large": _gpt2(36, 20, 1280),
    "openai-community/gpt2-large": _gpt2(36, 20, 1280),
    "gpt2-xl": _gpt2(48, 25, 1600),
    "openai-community/gpt2-xl": _gpt2(48, 25, 1600),
    "facebook/opt-125m": _opt(12, 12, 768),
    "facebook/opt-1.3b": _opt(24, 32, 2048),
    "facebook/opt-2.7b": _opt(32, 32, 2560),
    "facebook/opt-6.7b": _opt(32, 32, 4096),
    "huggyllama/llama-7b": _llama(32, 32, 4096, 11008),
    **_t5_family(),
}
