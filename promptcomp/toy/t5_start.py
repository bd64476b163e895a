"""A structured start for tiny T5 models: heads that look at fixed distances, and heads that look for the same thing.

From T5's usual random start the circuit that copies from a context (find the token that looks like this one, take what
stands beside it) did not form within a few hundred steps; from this start it forms in 200-350. Nothing is frozen:
training is free to move every weight afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from transformers import PreTrainedModel

from promptcomp.config import Config, ConfigError


class CopyStart(Config):
    """Initial position biases, and query and key weights, of a T5 model."""

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
