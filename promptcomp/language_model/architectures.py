"""Architectures: sizes of well-known ones (a dry run needs no network), changed ones, fewer blocks, a special start."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from promptcomp.config import ConfigError
from promptcomp.errors import did_you_mean
from promptcomp.language_model.lm_config import PositionalStart

_GPT2 = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024}
_OPT = {"model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048}
_LLAMA = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 2048}
_T5 = {"model_type": "t5", "vocab_size": 32128, "d_kv": 64}
_V11 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def changed_architecture(found: PretrainedConfig, settings: dict[str, Any], path: str) -> PretrainedConfig:
    """An architecture with some settings changed.

    Args:
        found: The architecture.
        settings: What to change.
        path: Where it was found, for the error message.

    Raises:
        ConfigError: a setting that the architecture does not have, or that does not fit the others.
    """
    saved, kind = found.to_dict(), found.model_type
    for name in settings:
        if name not in saved:
            hint = did_you_mean(name, saved, f"see the config.json of {path}")
            raise ConfigError(f"lm.from_scratch.settings.{name}: {kind} has no such setting; {hint}")
    derived = {"model_type"}
    if {"hidden_size", "num_attention_heads"} & set(settings):  # follow from these, unless given as well
        derived |= {"head_dim"}
        derived |= {"num_key_value_heads"} if saved.get("num_key_value_heads") == found.num_attention_heads else set()
    kept = {name: value for name, value in saved.items() if name not in derived}
    try:
        return AutoConfig.for_model(kind, **{**kept, **settings})
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"lm.from_scratch.settings = {settings}: not a valid architecture ({reason})") from None


def first_layers(found: PretrainedConfig, layers: int, path: str) -> PretrainedConfig:
    """An architecture with its first blocks only; weights of the others are left where they are.

    Args:
        found: The architecture.
        layers: How many blocks to keep.
        path: Where it was found, for the error message.

    Raises:
        ConfigError: it does not have so many.
    """
    most = found.num_hidden_layers
    if found.is_encoder_decoder:
        most = max(most, found.num_decoder_layers)
    if layers > most:
        raise ConfigError(f"layers = {layers}: {path} has {most} layers")
    shorter = copy.deepcopy(found)
    shorter.num_hidden_layers = min(layers, found.num_hidden_layers)
    if found.is_encoder_decoder:
        shorter.num_decoder_layers = min(layers, found.num_decoder_layers)
    kinds = found.to_dict().get("layer_types")  # which layers slide, in models that mix
    if kinds is not None:
        shorter.layer_types = kinds[:layers]
    return shorter


def start_positions(model: PreTrainedModel, start: PositionalStart) -> None:
    """Set the look-back heads of a Llama model in place.

    Raises:
        ConfigError: the model is no Llama with attention biases.
    """
    if model.config.model_type != "llama" or not model.config.attention_bias:
        raise ConfigError("positional_start needs model_type llama with settings.attention_bias: true")
    attention = model.model.layers[0].self_attn
    inverse_frequencies = model.model.rotary_emb.inv_freq  # [head_dim / 2]
    head_dim = 2 * len(inverse_frequencies)
    gap = (1 - torch.cos(inverse_frequencies)).sum().item()
    size = math.sqrt(start.peak * math.sqrt(head_dim) / gap)
    with torch.no_grad():
        for head, offset in enumerate(start.offsets):
            rows = slice(head * head_dim, (head + 1) * head_dim)
            angle = -offset * inverse_frequencies
            attention.q_proj.bias[rows] = size * torch.cat([torch.cos(angle), torch.sin(angle)])
            attention.k_proj.bias[rows] = size * torch.cat([torch.ones_like(angle), torch.zeros_like(angle)])
            attention.q_proj.weight[rows] *= start.content_scale
            attention.k_proj.weight[rows] *= start.content_scale


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
