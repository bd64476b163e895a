"""Finding and opening Hugging Face models and tokenizers: folders, hub names and the embedded models."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from promptcomp.config import Config, ConfigError
from promptcomp.language_model.random_start import (
    FromScratch,
    changed_architecture,
    first_layers,
    start_positions,
)
from promptcomp.language_model.window import window_of

EMBEDDED = "embedded:"
ENCODER_DECODERS = ("t5", "mt5")
"""Encoder-decoder families whose attention takes the position from a relative bias that we can set for packed rows."""

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
"""Sizes of well-known models, so that a dry run needs neither weights nor a network."""


class LanguageModelConfig(Config):
    """Which language model to use."""

    path: str
    """A folder, a hub name, or an embedded model: embedded:toy_decoder, embedded:toy_t5."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Type of the weights."""
    attn_implementation: Literal["sdpa", "eager", "flex_attention"] = "sdpa"
    """Attention code; flex_attention (training on GPUs only) skips blocks that a mask hides. Kernels that take no mask
    of their own (flash attention) cannot serve."""
    layout: Literal["query_in_decoder", "query_in_encoder"] = "query_in_decoder"
    """Encoder-decoder only: where the query goes (the memory is always on the encoder's side)."""
    bos: bool | None = None
    """Put the tokenizer's BOS in front of every sequence; null: as the tokenizer itself does."""
    from_scratch: FromScratch | None = None
    """Start with random weights; `path` gives the tokenizer and the architecture (embedded:toy_student has no more)."""
    layers: int | None = Field(None, ge=1)
    """Only the first so many blocks of the model (T5: of its encoder and of its decoder), with their weights."""


def locate(path: str) -> str:
    """The folder of an embedded model; any other name unchanged.

    Raises:
        ConfigError: no embedded model of that name.
    """
    if not path.startswith(EMBEDDED):
        return path
    folder = Path(str(resources.files("promptcomp") / "assets" / path.removeprefix(EMBEDDED)))
    if not (folder / "config.json").is_file():
        shipped = sorted(p.name for p in folder.parent.glob("*") if (p / "config.json").is_file())
        raise ConfigError(f"lm.path = {path!r}: no such embedded model; shipped: {', '.join(shipped) or 'none'}")
    return str(folder)


def open_architecture(config: LanguageModelConfig, *, offline_table: bool = False) -> PretrainedConfig:
    """The architecture alone; with `offline_table`, well-known names need no network.

    Raises:
        ConfigError: nothing can be read there, or the family is not supported.
    """
    path = locate(config.path)
    if offline_table and path in KNOWN_ARCHITECTURES and not Path(path).exists():
        sizes = dict(KNOWN_ARCHITECTURES[path])
        found = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    else:
        try:
            found = AutoConfig.from_pretrained(path, revision=config.revision)
        except (OSError, ValueError) as error:
            raise ConfigError(_unreadable(config.path, "model", error)) from None
    if config.from_scratch is not None and config.from_scratch.settings:
        found = changed_architecture(found, config.from_scratch.settings, config.path)
    if config.layers is not None:
        found = first_layers(found, config.layers, config.path)
    if found.is_encoder_decoder and found.model_type not in ENCODER_DECODERS:
        known = ", ".join(ENCODER_DECODERS)
        kind = found.model_type
        raise ConfigError(f"{config.path}: encoder-decoder models of type {kind!r} are not supported; known: {known}")
    return found


def open_model(config: LanguageModelConfig, architecture: PretrainedConfig) -> PreTrainedModel:
    """The model with its weights, in eval mode; with `from_scratch` they follow torch's global seed.

    Raises:
        ConfigError: the weights are missing, unreadable or do not fit the architecture.
    """
    factory = AutoModelForSeq2SeqLM if architecture.is_encoder_decoder else AutoModelForCausalLM
    if config.from_scratch is not None:
        return _random_model(config, config.from_scratch, factory, architecture)
    try:
        hf = factory.from_pretrained(
            locate(config.path),
            config=architecture,
            revision=config.revision,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attn_implementation,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if config.path.startswith(EMBEDDED) and not list(Path(locate(config.path)).glob("*.safetensors")):
            raise ConfigError(
                f"{config.path} has no weights; start it with random ones: lm.from_scratch={{}}"
            ) from None
        raise ConfigError(_unreadable(config.path, "weights", error)) from None
    return hf.eval()


def _random_model(
    config: LanguageModelConfig, start: FromScratch, factory: Any, architecture: PretrainedConfig
) -> PreTrainedModel:
    hf = factory.from_config(
        architecture, dtype=getattr(torch, config.dtype), attn_implementation=config.attn_implementation
    )
    if start.positional_start is not None:
        start_positions(hf, start.positional_start)
    return hf.eval()


def open_skeleton(config: LanguageModelConfig, architecture: PretrainedConfig) -> PreTrainedModel:
    """The model on the meta device: shapes without weights."""
    factory = AutoModelForSeq2SeqLM if architecture.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        hf = factory.from_config(
            architecture, dtype=getattr(torch, config.dtype), attn_implementation=config.attn_implementation
        ).eval()
    if architecture.is_encoder_decoder and not architecture.scale_decoder_outputs:
        # T5 1.1 has an output head of its own, which transformers learns from the checkpoint only.
        hf.lm_head.weight = nn.Parameter(torch.empty_like(hf.lm_head.weight), requires_grad=False)
    return hf


def open_tokenizer(config: LanguageModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(locate(config.path), revision=config.revision)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(_unreadable(config.path, "tokenizer", error)) from None


def open_window(config: LanguageModelConfig) -> int | None:
    """Most positions that the LM can read, from its architecture alone; None: no limit (T5).

    Raises:
        ConfigError: the architecture cannot be read.
    """
    architecture = open_architecture(config)
    return None if architecture.is_encoder_decoder else window_of(architecture)


def reads_queries_in_encoder(config: LanguageModelConfig) -> bool:
    """Whether queries go to an encoder, which expects EOS at the end of what it reads.

    Raises:
        ConfigError: nothing can be read at the model's path, or its family is not supported.
    """
    return config.layout == "query_in_encoder" and bool(open_architecture(config).is_encoder_decoder)


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer starts a text with BOS by itself (GPT-2 and T5: no; Llama, OPT: yes)."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def reads_bos(config: LanguageModelConfig) -> bool:
    """Whether an LM of this configuration reads BOS; no, where neither it nor a tokenizer on this disk says so."""
    if config.bos is not None:
        return config.bos
    return Path(locate(config.path)).is_dir() and _starts_with_bos(config.path)


@cache
def _starts_with_bos(path: str) -> bool:
    try:
        return adds_bos(open_tokenizer(LanguageModelConfig(path=path)))
    except ConfigError:  # a folder with an architecture and nothing else
        return False


def _unreadable(path: str, what: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"{path}: the {what} cannot be read; give a folder saved by save_pretrained or a reachable hub name ({reason})"
    )
