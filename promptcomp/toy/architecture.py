"""Building a base LM from a configuration, with the special starts that small models need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from promptcomp.config import Config, ConfigError
from promptcomp.language_model.architectures import start_positions
from promptcomp.language_model.lm_config import PositionalStart


class CopyStart(Config):
    """A structured start for tiny T5 models: heads that look at fixed distances, and heads that look for the same.

    From T5's usual random start the circuit that copies from a context (find the token that looks like this one, take
    what stands beside it) did not form within a few hundred steps; from this start it forms in 200-350. Nothing is
    frozen: training is free to move every weight afterwards.
    """

    encoder_offsets: tuple[int, ...] = (-1, -2, -3, -4, 1, 2, 3)
    """Head i of every encoder layer looks at the token `encoder_offsets[i]` places away (negative: before)."""
    decoder_offsets: tuple[int, ...] = (-1, -2, -3)
    """The same for the decoder's self-attention."""
    peak: float = 8.0
    """Position bias of the wanted distance; all other distances keep their small random bias."""
    content_scale: float = Field(default=0.1, ge=0)
    """Query weights of these heads are multiplied by this, so that the position decides at first."""
    match_scale: float = Field(default=2.0, gt=0)
    """All other heads, and all heads of the cross-attention, start with query weights = key weights x match_scale /
    sqrt(d_kv): they look at what resembles the asking token."""
    self_bias: float = -8.0
    """Position bias of these other heads of the encoder at distance 0: what resembles a token most is itself."""


class Architecture(Config):
    """A Hugging Face model class and its configuration."""

    model_type: str
    """A `model_type` of transformers: llama, gpt2, t5 ..."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Keywords of the configuration class; `vocab_size` and the special ids come from the tokenizer."""
    positional_start: PositionalStart | None = None
    """For Llama with `attention_bias`."""
    copy_start: CopyStart | None = None
    """For T5."""


def build_model(
    architecture: Architecture, vocab_size: int, pad_id: int, bos_id: int | None, eos_id: int
) -> PreTrainedModel:
    """A freshly initialised model; initial weights follow torch's global seed.

    Raises:
        ConfigError: transformers has no such model type, or a special start is asked of a model that cannot have it.
    """
    settings = {"vocab_size": vocab_size, "pad_token_id": pad_id, "bos_token_id": bos_id, "eos_token_id": eos_id}
    try:
        config = AutoConfig.for_model(architecture.model_type, **{**settings, **architecture.settings})
    except ValueError:
        raise ConfigError(
            f"architecture.model_type = {architecture.model_type!r}: not known to transformers; try llama, gpt2 or t5"
        ) from None
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto_class.from_config(config)
    if architecture.positional_start is not None:
        start_positions(model, architecture.positional_start)
    if architecture.copy_start is not None:
        apply_copy_start(model, architecture.copy_start)
    return model


def apply_copy_start(model: PreTrainedModel, start: CopyStart) -> None:
    """Set the initial weights of a T5 model in place.

    Raises:
        ConfigError: the model is no T5, has too few heads, or has no exact bucket for an offset.
    """
    if model.config.model_type != "t5":
        raise ConfigError(f"architecture.copy_start needs model_type t5, not {model.config.model_type!r}")
    buckets: int = model.config.relative_attention_num_buckets
    encoder: Any = model.get_encoder()
    decoder: Any = model.get_decoder()
    _set_self_attention(encoder, [_encoder_bucket(offset, buckets) for offset in start.encoder_offsets], start)
    with torch.no_grad():
        table = encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # [buckets, H]
        table[0, len(start.encoder_offsets) :] = start.self_bias
    _set_self_attention(decoder, [_decoder_bucket(offset, buckets) for offset in start.decoder_offsets], start)
    for block in decoder.block:
        _match(block.layer[1].EncDecAttention, 0, start)


def _encoder_bucket(offset: int, buckets: int) -> int:
    """T5's bucket of a distance in a bidirectional stack; half of the buckets are for tokens that follow."""
    if abs(offset) >= buckets // 4:
        raise ConfigError(f"architecture.copy_start.encoder_offsets: {offset} is too far; exact below {buckets // 4}")
    return abs(offset) + (buckets // 2 if offset > 0 else 0)


def _decoder_bucket(offset: int, buckets: int) -> int:
    if not -buckets // 2 < offset <= 0:
        raise ConfigError(
            f"architecture.copy_start.decoder_offsets: {offset} is not one of 0, -1 ... {1 - buckets // 2}"
        )
    return -offset


@torch.no_grad()
def _set_self_attention(stack: Any, wanted: Sequence[int], start: CopyStart) -> None:
    first = stack.block[0].layer[0].SelfAttention  # its position biases are used by every layer of the stack
    if len(wanted) >= first.n_heads:
        raise ConfigError(f"architecture.copy_start: {len(wanted)} offsets need more than {first.n_heads} heads")
    for head, bucket in enumerate(wanted):
        first.relative_attention_bias.weight[bucket, head] = start.peak
    for block in stack.block:
        attention = block.layer[0].SelfAttention
        attention.q.weight[: len(wanted) * attention.key_value_proj_dim] *= start.content_scale
        _match(attention, len(wanted), start)


@torch.no_grad()
def _match(attention: Any, first_head: int, start: CopyStart) -> None:
    rows = slice(first_head * attention.key_value_proj_dim, None)
    scale = start.match_scale * attention.key_value_proj_dim**-0.5  # T5 does not divide by sqrt(d_kv) itself
    attention.q.weight[rows] = attention.k.weight[rows] * scale
