"""Prefill cost of a language model, from what a token and a pair of tokens cost it (`ModelCost`).

A multiply-add is two FLOPs, only matrix products count, attention is causal in decoders. T new tokens after P cached
positions take t T + c P + p (P T + T (T + 1) / 2) in a decoder, and the head for the one position whose logits start
the answer. For a plain transformer with N weights in L blocks, H heads of width Dh and nothing latent in its cache,
t = 2 N, p = 4 L H Dh and c = 0. Lengths may be means over many contexts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from promptcomp.evaluation.results import Cost

if TYPE_CHECKING:
    from promptcomp.language_model.counting import ModelCost

MemoryKind = Literal["soft_prompt", "kv_cache", "encoder_states"]


def decoder_flops(cost: ModelCost, new: float, cached: float = 0.0) -> float:
    """FLOPs of `new` tokens after `cached` positions in a decoder-only LM, logits of one position included."""
    pairs = cached * new + new * (new + 1) / 2
    return cost.token * new + cost.cached_token * cached + cost.pair * pairs + cost.head


def encoder_flops(cost: ModelCost, tokens: float) -> float:
    """FLOPs of the encoder of an encoder-decoder on `tokens` positions (attention in both directions, no logits)."""
    return cost.encoder_token * tokens + cost.encoder_pair * tokens**2


def cross_decoder_flops(
    cost: ModelCost, new: float, encoded: float, *, project: bool = True, cached: float = 0.0
) -> float:
    """FLOPs of `new` decoder tokens that read `encoded` encoder positions, logits of one position included.

    Args:
        cost: an encoder-decoder.
        new: decoder tokens.
        encoded: encoder positions.
        project: whether the cross-attention keys and values are computed or were cached.
        cached: decoder tokens that came before, with their keys and values cached.
    """
    own = cost.pair * (new * (new + 1) / 2 + new * cached)
    across = cost.cross_pair * new * encoded + (cost.cross_token * encoded if project else 0.0)
    return cost.token * new + own + across + cost.head


def read_flops(cost: ModelCost, tokens: float) -> float:
    """FLOPs of reading `tokens` positions without logits: by an encoder where there is one, else by a decoder."""
    if cost.family == "decoder":
        return decoder_flops(cost, tokens) - cost.head
    return encoder_flops(cost, tokens)


def decoder_request_flops(cost: ModelCost, *, read: float, seen: float, new_tokens: int) -> float:
    """FLOPs of a request: a decoder-only LM reads `read` tokens after `seen` cached positions, writes `new_tokens`."""
    first = decoder_flops(cost, read, seen)
    steps = (decoder_flops(cost, 1, seen + read + i) for i in range(new_tokens - 1))
    return first + sum(steps)


def cross_request_flops(
    cost: ModelCost, *, in_encoder: float, encoded: float, decoded: float, new_tokens: int
) -> float:
    """FLOPs of a request: an encoder reads `in_encoder` tokens; a decoder `decoded`, attending `encoded` positions.

    The keys and values of the cross-attention are computed for the first token and kept for the others.
    """
    first = encoder_flops(cost, in_encoder) + cross_decoder_flops(cost, decoded, encoded)
    steps = (cross_decoder_flops(cost, 1, encoded, project=False, cached=decoded + i) for i in range(new_tokens - 1))
    return first + sum(steps)


def break_even(
    ours_once: float, ours_each: float, theirs_once: float, theirs_each: float
) -> tuple[int | None, int | None]:
    """Numbers of uses between which `ours` costs no more than `theirs`: (first, last).

    (None, None): never; (first, None): from there on; (1, last): only up to there, because ours costs less to make and
    more to use.
    """
    ahead, gain = theirs_once - ours_once, theirs_each - ours_each
    if gain > 0:
        return max(1, math.ceil(-ahead / gain - 1e-9)), None  # sums of floats in another order are equal
    if ahead + gain < 0:
        return None, None
    return (1, None) if gain == 0 else (1, math.floor(ahead / -gain))


def prefill_flops(
    cost: ModelCost,
    *,
    context_tokens: float,
    memory_slots: float,
    query_tokens: float,
    front_tokens: float = 0.0,
    memory_kind: MemoryKind = "soft_prompt",
    layout: Literal["query_in_encoder", "query_in_decoder"] = "query_in_encoder",
    compress_flops: float = 0.0,
) -> Cost:
    """FLOPs of one query with no context, a memory, and the full context, and when compressing pays.

    Args:
        cost: of the language model that answers.
        context_tokens: tokens of the full context, those in front of it included.
        memory_slots: positions of the memory.
        query_tokens: tokens of the query.
        front_tokens: tokens that a decoder reads in front of every sequence (BOS); a KV cache needs them no more.
        memory_kind: a soft prompt runs through the LM with the query; a KV cache does not, and encoder states do only
            where the encoder reads the query: they go through its blocks beside it.
        layout: where the query stands in an encoder-decoder.
        compress_flops: of making the memory once; the method knows.
    """
    if cost.family == "decoder":
        slots, cached = (front_tokens + memory_slots, 0.0) if memory_kind == "soft_prompt" else (0.0, memory_slots)
        nothing = decoder_flops(cost, front_tokens + query_tokens)
        ours = decoder_flops(cost, slots + query_tokens, cached)
        full = decoder_flops(cost, context_tokens + query_tokens)
        cached_ours = decoder_flops(cost, query_tokens, slots + cached)
        cached_full = decoder_flops(cost, query_tokens, context_tokens)
    else:
        in_encoder = layout == "query_in_encoder"
        encoded, decoded = (query_tokens, 1.0) if in_encoder else (0.0, query_tokens + 1)

        def whole(context: float) -> float:
            read = context + encoded
            return encoder_flops(cost, read) + cross_decoder_flops(cost, decoded, read)

        nothing, ours, full = whole(0.0), whole(memory_slots), whole(context_tokens)
        if memory_kind == "encoder_states" and not in_encoder:
            ours = cross_decoder_flops(cost, decoded, memory_slots)
        # an encoder reads in both directions, so its output is reusable only when the query is not part of it
        cached_ours, cached_full = ours, full
        if not in_encoder:
            cached_ours = cross_decoder_flops(cost, decoded, memory_slots, project=False)
            cached_full = cross_decoder_flops(cost, decoded, context_tokens, project=False)
    return Cost(
        flops_ratio=full / ours,
        no_prompt_prefill_flops=nothing,
        prefill_flops=ours,
        full_prefill_flops=full,
        cached_prefill_flops=cached_ours,
        cached_full_prefill_flops=cached_full,
        compress_flops=compress_flops,
        break_even_queries=break_even(compress_flops, ours, 0.0, full)[0] if compress_flops else None,
    )
