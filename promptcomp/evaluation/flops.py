"""Analytic prefill cost of a language model, from its sizes alone.

A multiply-add is two FLOPs, only matrix products count, attention is causal in decoders. For T new
tokens after P cached positions a decoder takes 2 N T + 4 L H Dh (P T + T (T + 1) / 2), N being the weights of its
blocks, and 2 D V for the one position whose logits start the answer. Lengths may be means over many contexts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from promptcomp.config import ConfigError

MemoryKind = Literal["soft_prompt", "kv_cache", "encoder_states"]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the cost of a language model depends on."""

    family: Literal["decoder", "encoder_decoder"]
    num_layers: int
    """Blocks; of the encoder in an encoder-decoder."""
    num_heads: int
    num_kv_heads: int
    """Fewer than `num_heads` with grouped-query attention."""
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_parameters: int
    """All weights, embeddings included (for the bytes of the model; the FLOPs come from the other fields)."""
    bytes_per_value: int = 4
    gated_mlp: bool = False
    """Three matrices in the feed-forward part and not two."""
    num_decoder_layers: int = 0
    """Decoder blocks of an encoder-decoder."""

    @property
    def attention_weights(self) -> int:
        """Weights of the four projections of one attention."""
        return 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)

    @property
    def mlp_weights(self) -> int:
        """Weights of one feed-forward part."""
        return (3 if self.gated_mlp else 2) * self.hidden_size * self.intermediate_size

    @property
    def head_flops(self) -> float:
        """FLOPs of the logits of one position."""
        return 2.0 * self.hidden_size * self.vocab_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the keys and values of one context token while an answer is made.

        For an encoder-decoder these are the decoder's cross-attention keys and values.
        """
        layers = self.num_layers if self.family == "decoder" else self.num_decoder_layers
        return 2 * layers * self.num_kv_heads * self.head_dim * self.bytes_per_value

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self.num_parameters * self.bytes_per_value


@dataclass(frozen=True, slots=True)
class PrefillFlops:
    """FLOPs until the first answer token of one query, with and without caches, and of compressing once."""

    no_prompt: float
    compressed: float
    full: float
    cached_full: float
    """The context's keys and values (or encoder output) are cached: the honest rival of a compressed prompt."""
    cached_compressed: float
    """The same for the memory: its keys and values are cached."""
    compress: float

    @property
    def ratio(self) -> float:
        """How many times cheaper a query is after compression than with the full context read anew."""
        return self.full / self.compressed

    @property
    def break_even_queries(self) -> int | None:
        """Queries on one context from which compressing is cheaper than reading it each time; None: never."""
        saved = self.full - self.compressed
        return max(1, math.ceil(self.compress / saved)) if saved > 0 else None


def decoder_flops(shape: ModelShape, new: float, cached: float = 0.0) -> float:
    """FLOPs of `new` tokens after `cached` positions in a decoder-only LM, logits of one position included."""
    weights = shape.num_layers * (shape.attention_weights + shape.mlp_weights)
    pairs = cached * new + new * (new + 1) / 2
    return 2.0 * weights * new + 4.0 * shape.num_layers * shape.num_heads * shape.head_dim * pairs + shape.head_flops


def encoder_flops(shape: ModelShape, tokens: float) -> float:
    """FLOPs of the encoder of an encoder-decoder on `tokens` positions (attention in both directions, no logits)."""
    weights = shape.num_layers * (shape.attention_weights + shape.mlp_weights)
    return 2.0 * weights * tokens + 4.0 * shape.num_layers * shape.num_heads * shape.head_dim * tokens**2


def cross_decoder_flops(
    shape: ModelShape, new: float, encoded: float, *, project: bool = True, cached: float = 0.0
) -> float:
    """FLOPs of `new` decoder tokens that read `encoded` encoder positions, logits of one position included.

    Args:
        shape: an encoder-decoder.
        new: decoder tokens.
        encoded: encoder positions.
        project: whether the cross-attention keys and values are worked out or were cached.
        cached: decoder tokens that came before, with their keys and values cached.
    """
    inner = shape.num_heads * shape.head_dim
    kv_weights = 2 * shape.hidden_size * shape.head_dim * shape.num_kv_heads
    own = 2 * shape.attention_weights + shape.mlp_weights - kv_weights
    attended = new * (new + 1) / 2 + new * (cached + encoded)
    layer = 2.0 * own * new + 4.0 * inner * attended + (2.0 * kv_weights * encoded if project else 0.0)
    return shape.num_decoder_layers * layer + shape.head_flops


@dataclass(frozen=True, slots=True)
class RequestFlops:
    """FLOPs of one request: up to its first answer token, and of its whole answer."""

    first_token: float
    answer: float


def decoder_request_flops(shape: ModelShape, *, read: float, seen: float, new_tokens: int) -> RequestFlops:
    """A decoder-only LM reads `read` tokens after `seen` cached positions and writes `new_tokens` tokens."""
    first = decoder_flops(shape, read, seen)
    steps = (decoder_flops(shape, 1, seen + read + i) for i in range(new_tokens - 1))
    return RequestFlops(first, first + sum(steps))


def cross_request_flops(
    shape: ModelShape, *, in_encoder: float, encoded: float, decoded: float, new_tokens: int
) -> RequestFlops:
    """An encoder reads `in_encoder` tokens; a decoder reads `decoded` tokens, attends `encoded` positions and writes.

    The keys and values of the cross-attention are worked out for the first token and kept for the others.
    """
    first = encoder_flops(shape, in_encoder) + cross_decoder_flops(shape, decoded, encoded)
    steps = (cross_decoder_flops(shape, 1, encoded, project=False, cached=decoded + i) for i in range(new_tokens - 1))
    return RequestFlops(first, first + sum(steps))


def break_even(
    ours_once: float, ours_each: float, theirs_once: float, theirs_each: float
) -> tuple[int | None, int | None]:
    """Numbers of uses between which `ours` costs no more than `theirs`: (first, last).

    (None, None): never; (first, None): from there on; (1, last): only up to there, because ours costs less to make and
    more to use.
    """
    ahead, gain = theirs_once - ours_once, theirs_each - ours_each
    if gain > 0:
        return max(1, math.ceil(-ahead / gain)), None
    if ahead + gain < 0:
        return None, None
    return (1, None) if gain == 0 else (1, math.floor(ahead / -gain))


def prefill_flops(
    shape: ModelShape,
    *,
    context_tokens: float,
    memory_slots: float,
    query_tokens: float,
    memory_kind: MemoryKind = "soft_prompt",
    layout: Literal["query_in_encoder", "query_in_decoder"] = "query_in_encoder",
    compress_flops: float = 0.0,
) -> PrefillFlops:
    """FLOPs of one query with no context, a memory, and the full context.

    Args:
        shape: the language model that answers.
        context_tokens: tokens of the full context.
        memory_slots: positions of the memory.
        query_tokens: tokens of the query.
        memory_kind: a soft prompt runs through the LM with the query; a KV cache and encoder states do not.
        layout: where the query stands in an encoder-decoder.
        compress_flops: of making the memory once; the method knows.
    """
    if shape.family == "decoder":
        slots, cached = (memory_slots, 0.0) if memory_kind == "soft_prompt" else (0.0, memory_slots)
        return PrefillFlops(
            no_prompt=decoder_flops(shape, query_tokens),
            compressed=decoder_flops(shape, slots + query_tokens, cached),
            full=decoder_flops(shape, context_tokens + query_tokens),
            cached_full=decoder_flops(shape, query_tokens, context_tokens),
            cached_compressed=decoder_flops(shape, query_tokens, memory_slots),
            compress=compress_flops,
        )
    in_encoder = layout == "query_in_encoder"
    encoded, decoded = (query_tokens, 1.0) if in_encoder else (0.0, query_tokens + 1)

    def whole(context: float) -> float:
        read = context + encoded
        return encoder_flops(shape, read) + cross_decoder_flops(shape, decoded, read)

    def cached_part(context: float) -> float:
        """An encoder reads in both directions, so its output is reusable only when the query is not part of it."""
        if in_encoder:
            return whole(context)
        return cross_decoder_flops(shape, decoded, context, project=False)

    compressed = whole(memory_slots)
    if memory_kind == "encoder_states":  # the states are read, not worked out: slots attend nothing
        compressed = cross_decoder_flops(shape, decoded, memory_slots + encoded)
        if in_encoder:
            attention = 4.0 * shape.num_layers * shape.num_heads * shape.head_dim * encoded * memory_slots
            compressed += encoder_flops(shape, encoded) + attention
    return PrefillFlops(
        no_prompt=whole(0.0),
        compressed=compressed,
        full=whole(context_tokens),
        cached_full=cached_part(context_tokens),
        cached_compressed=compressed if in_encoder else cached_part(memory_slots),
        compress=compress_flops,
    )


_NAMES: dict[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "num_heads": ("num_attention_heads", "n_head", "num_heads"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "d_ff"),
    "num_kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim", "d_kv"),
}
_GATED_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2"})


def shape_of_config(
    config: Mapping[str, Any], num_parameters: int, bytes_per_value: int = 4, *, gated_mlp: bool | None = None
) -> ModelShape:
    """The shape of a model from its HF configuration.

    Args:
        config: `hf_config.to_dict()`.
        num_parameters: all weights of the model.
        bytes_per_value: bytes of a weight and of a cached value (4: float32, 2: bfloat16).
        gated_mlp: None: as the architecture is known to be.

    Raises:
        ConfigError: a size is missing under every name we know.
    """
    kind = str(config.get("model_type", ""))
    hidden = _look_up(config, "hidden_size")
    heads = _look_up(config, "num_heads")
    encoder_decoder = bool(config.get("is_encoder_decoder", False))
    layers = _look_up(config, "num_layers")
    if gated_mlp is None:
        gated_mlp = kind in _GATED_TYPES or str(config.get("feed_forward_proj", "")).startswith("gated")
    return ModelShape(
        family="encoder_decoder" if encoder_decoder else "decoder",
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=_look_up(config, "num_kv_heads", heads),
        head_dim=_look_up(config, "head_dim", hidden // heads),
        hidden_size=hidden,
        intermediate_size=_look_up(config, "intermediate_size", 4 * hidden),
        vocab_size=int(config["vocab_size"]),
        num_parameters=num_parameters,
        bytes_per_value=bytes_per_value,
        gated_mlp=gated_mlp,
        num_decoder_layers=int(config.get("num_decoder_layers") or layers) if encoder_decoder else 0,
    )


def _look_up(config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    for name in _NAMES[field]:
        value = config.get(name)
        if value is not None:
            return int(value)
    if default is None:
        raise ConfigError(f"model configuration: no {field} (looked for {', '.join(_NAMES[field])})")
    return default
