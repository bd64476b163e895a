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


# layers, heads, width (and width of the feed-forward part)
_GPT2 = {"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600)}
_OPT = {"125m": (12, 12, 768), "1.3b": (24, 32, 2048), "2.7b": (32, 32, 2560), "6.7b": (32, 32, 4096)}
_T5 = {"small": (6, 8, 512, 2048), "base": (12, 12, 768, 3072), "large": (24, 16, 1024, 4096)}
_T5_1_1 = {
    "small": (8, 6, 512, 1024),
    "base": (12, 12, 768, 2048),
    "large": (24, 16, 1024, 2816),
    "xl": (24, 32, 2048, 5120),
    "xxl": (24, 64, 4096, 10240),
}


def _known_architectures() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    common: dict[str, Any] = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024}
    for name, (layers, heads, width) in _GPT2.items():
        sizes = {**common, "n_layer": layers, "n_head": heads, "n_embd": width}
        found |= dict.fromkeys((name, f"openai-community/{name}"), sizes)
    common = {"model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048}
    for name, (layers, heads, width) in _OPT.items():
        sizes = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": width, "ffn_dim": 4 * width}
        found[f"facebook/opt-{name}"] = {**common, **sizes, "word_embed_proj_dim": width}
    found["huggyllama/llama-7b"] = {
        "model_type": "llama",
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_size": 4096,
        "intermediate_size": 11008,
    }
    common = {"model_type": "t5", "vocab_size": 32128, "d_kv": 64}
    changes = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    v11 = ("google/flan-t5-{}", "google/t5-v1_1-{}", "google/t5-{}-lm-adapt")
    for table, names, extra in ((_T5, ("t5-{}", "google-t5/t5-{}"), {}), (_T5_1_1, v11, changes)):
        for size, (layers, heads, width, ff) in table.items():
            stack = {"num_layers": layers, "num_decoder_layers": layers, "num_heads": heads}
            sizes = {**common, **stack, "d_model": width, "d_ff": ff, **extra}
            found |= dict.fromkeys((name.format(size) for name in names), sizes)
    return found


KNOWN_ARCHITECTURES = _known_architectures()
"""Keywords of the configuration of well-known models by their names."""
