"""Architectures: sizes of well-known ones (a dry run needs no network), changed ones, fewer blocks, a special start."""

from __future__ import annotations

import copy
import math
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from promptcomp.config import ConfigError, read_yaml
from promptcomp.errors import did_you_mean
from promptcomp.language_model.lm_config import PositionalStart, locate


def changed_architecture(found: PretrainedConfig, settings: dict[str, Any], path: str) -> PretrainedConfig:
    """An architecture with some settings changed; `path`, where it was found, is for messages.

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
    """An architecture with its first blocks only; `path`, where it was found, is for messages.

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


def fitting(opened: tuple[PreTrainedModel, dict[str, Any]], path: str) -> PreTrainedModel:
    """A model that was opened with `output_loading_info` and `ignore_mismatched_sizes`; `path` is where.

    Raises:
        ConfigError: its weights are of other shapes than its architecture says, or some are not there.
    """
    hf, found = opened
    if wrong := sorted(found["mismatched_keys"]):
        name, saved, wanted = wrong[0]
        others = f" (one of {len(wrong)} that differ)" if len(wrong) > 1 else ""
        raise ConfigError(
            f"{path}: the weights do not fit config.json: {name} has the shape {[*saved]} in "
            f"{_file_of(name, Path(locate(path)))}, and {[*wanted]} by config.json{others}; give the config.json "
            "that was saved with these weights"
        )
    if missing := sorted(found["missing_keys"]):
        raise ConfigError(
            f"{path}: the weights lack {len(missing)} tensors of a {hf.config.model_type!r} model "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}), which would be random"
        )
    return hf


def _file_of(name: str, folder: Path) -> str:
    """The file of a model's folder that holds a weight, where one does by this name."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            if name in opened.keys():  # noqa: SIM118 (no mapping)
                return file.name
    return "the weights"


def start_positions(model: PreTrainedModel, start: PositionalStart) -> None:
    """Set the look-back heads of a Llama model in place.

    Raises:
        ConfigError: the model is no Llama with attention biases, or has fewer heads than there are offsets.
    """
    if model.config.model_type != "llama" or not model.config.attention_bias:
        raise ConfigError("positional_start needs model_type llama with settings.attention_bias: true")
    heads = model.config.num_key_value_heads
    if len(start.offsets) > heads:
        raise ConfigError(
            f"positional_start.offsets: {len(start.offsets)} numbers, and the model has {heads} heads of keys; give at "
            f"most {heads}"
        )
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


@cache
def known_architectures() -> dict[str, dict[str, Any]]:
    """Keywords of the configuration of well-known models by their names: a dry run of these needs no network."""
    file = Path(str(resources.files("promptcomp") / "assets" / "architectures.yaml"))
    return {name: each["sizes"] for each in read_yaml(file)["architectures"] for name in each["names"]}
