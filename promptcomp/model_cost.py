"""What one token costs a language model; it is counted by promptcomp.language_model.counting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ModelCost:
    """FLOPs (a multiply-add is two) and bytes of a model; its formulas are in promptcomp.evaluation.flops."""

    family: Literal["decoder", "encoder", "encoder_decoder"]
    token: float = 0.0
    """Of reading a token, attention aside; of an encoder-decoder, in its decoder."""
    pair: float = 0.0
    """Of a token that attends another."""
    head: float = 0.0
    """Of the logits of one position."""
    kv_bytes_per_token: int = 0
    """Bytes that a context token holds while an answer is made (encoder-decoder: in the decoder's cross-attention)."""
    cached_token: float = 0.0
    """Of each cached position in every pass, attention aside: latent keys and values are made whole again."""
    encoder_token: float = 0.0
    encoder_pair: float = 0.0
    cross_token: float = 0.0
    """Of the keys and values that the decoder's cross-attention makes of an encoded position."""
    cross_pair: float = 0.0
