"""What one token costs a language model, counted on the model itself.

The architecture is built once more on torch's meta device (shapes without data) and reads a few tokens: torch's FLOP
counter sees each of its matrix products, and the cache that it fills holds its keys and values. So grouped or shared
heads, latent caches, gated feed-forward parts and the active experts of a mixture count as the model's own code has
them. Counts for two lengths give what a token costs and what a pair of attending tokens costs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from promptcomp.config import ConfigError
from promptcomp.language_model.cache import Cache, growing, growing_pair, passing

_Shape = tuple[int, ...]
_FEW = 4
"""Tokens of the shorter count; not 1, whose products with one key would look like outer products."""


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


_known: dict[tuple[type, str, torch.dtype], ModelCost] = {}


def model_cost(hf: PreTrainedModel) -> ModelCost:
    """What a model costs as its code and configuration have it, adapters aside; counted once for each architecture.

    Args:
        hf: A causal LM, an encoder-decoder, or the body of one, on any device.

    Raises:
        ConfigError: the work depends on the values of weights, and there are none yet.
    """
    key = type(hf), hf.config.to_json_string(), hf.dtype
    if key not in _known:
        with torch.random.fork_rng(devices=[]):
            _known[key] = _measured(hf)
    return _known[key]


def _measured(hf: PreTrainedModel) -> ModelCost:
    options: dict[str, Any] = {"dtype": hf.dtype, "attn_implementation": "eager"}
    with torch.device("meta"):
        skeleton: Any = type(hf)._from_config(copy.deepcopy(hf.config), **options).eval()
    if hasattr(skeleton, "set_experts_implementation"):  # of the implementations, the one whose shapes are fixed
        skeleton.set_experts_implementation("batched_mm")
    try:
        return _counted(skeleton)
    except (NotImplementedError, RuntimeError):  # shapes that depend on values: the weights say
        if hf.device.type == "meta":
            raise ConfigError(
                f"the cost of models of type {hf.config.model_type!r} depends on their weights; it cannot be estimated "
                "without them"
            ) from None
    was_training = hf.training
    try:
        return _counted(hf.eval())
    finally:
        hf.train(was_training)


def _counted(hf: Any) -> ModelCost:
    if getattr(hf, "is_decoder", True) is False:  # T5's encoder alone
        return _encoder(hf)
    return _encoder_decoder(hf) if hf.config.is_encoder_decoder else _decoder(hf)


def _decoder(hf: Any) -> ModelCost:
    body, few = hf.base_model, _FEW

    def read(model: Any, length: int, cache: Cache) -> int:
        return _flops(lambda: model(input_ids=_ids(hf, length), use_cache=True, **passing(model, cache)))

    cache = growing()
    first = read(body, few, cache)
    held = _bytes(cache)
    token, pair = _token_and_pair(first, read(body, 2 * few, growing()))
    behind = read(body, few, cache)
    return ModelCost(
        "decoder",
        token,
        pair,
        head=(read(hf, few, growing()) - first) / few,
        kv_bytes_per_token=(_bytes(cache) - held) // few,
        cached_token=(behind - few * token - 2 * few**2 * pair) / few,
    )


def _encoder(hf: Any) -> ModelCost:
    few, many = (_flops(partial(hf, input_ids=_ids(hf, length), use_cache=False)) for length in (_FEW, 2 * _FEW))
    token, pair = _token_and_pair(few, many)
    return ModelCost("encoder", encoder_token=token, encoder_pair=pair)


def _encoder_decoder(hf: Any) -> ModelCost:
    decoder, width = hf.get_decoder(), hf.get_input_embeddings().embedding_dim
    few, many, cache = _FEW, 2 * _FEW, growing_pair()

    def decode(length: int, encoded: int, **held: Any) -> int:
        states = torch.zeros(1, encoded, width, device=hf.device, dtype=hf.dtype)
        return _flops(lambda: decoder(input_ids=_ids(hf, length), encoder_hidden_states=states, **held))

    encoder = _encoder(hf.get_encoder())
    base, longer = decode(few, few, use_cache=True, **passing(decoder, cache)), decode(many, few)
    wider, both = decode(few, many), decode(many, many)
    cross_pair = (both - longer - wider + base) / few**2
    cross_token = (wider - base) / few - few * cross_pair
    pair = (longer - 2 * base + few * cross_token) / (2 * few**2)
    whole = _flops(lambda: hf(input_ids=_ids(hf, few), decoder_input_ids=_ids(hf, few)))
    return ModelCost(
        "encoder_decoder",
        token=base / few - cross_token - few * (pair + cross_pair),
        pair=pair,
        head=(whole - base) / few - encoder.encoder_token - few * encoder.encoder_pair,
        kv_bytes_per_token=_bytes(cache.cross_attention_cache) // few,
        encoder_token=encoder.encoder_token,
        encoder_pair=encoder.encoder_pair,
        cross_token=cross_token,
        cross_pair=cross_pair,
    )


def _ids(hf: Any, length: int) -> torch.Tensor:
    return torch.ones(1, length, dtype=torch.long, device=hf.device)


def _token_and_pair(few: int, many: int) -> tuple[float, float]:
    """t and p of t T + p T², from the counts for two lengths."""
    pair = (many - 2 * few) / (2 * _FEW**2)
    return few / _FEW - _FEW * pair, pair


def _bytes(cache: Any) -> int:
    """Keys and values of all layers."""
    return sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))


def _flops(call: Callable[[], object]) -> int:
    with torch.inference_mode(False), torch.no_grad():
        return count_flops(call, outer_products=False)


def count_flops(call: Callable[[], object], *, outer_products: bool = True) -> int:
    """FLOPs of a call as torch's FlopCounterMode counts them: matrix products, all pairs of an attention, and with
    `outer_products` batched ones (the angles of rotary positions), which add nothing up."""
    known = dict(_UNKNOWN_TO_TORCH)
    if not outer_products:
        known[_aten.bmm] = _products
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        call()
    return int(counter.get_total_flops())


def _products(one: _Shape, two: _Shape, *rest: Any, **named: Any) -> int:
    """Batched ones but outer products; rows [S, K], each with the matrix of its own group [G, K, N] (experts)."""
    return 2 * math.prod(one) * two[2] if len(one) == 2 or one[2] > 1 else 0


def _attention(query: _Shape, key: _Shape, value: _Shape, *rest: Any, **named: Any) -> int:
    """Fused attention [B, H, S, Dh]. torch has no count for the CPU kernel, and none where heads share keys."""
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[2] * (width + value[3])


_aten = torch.ops.aten
_KERNELS = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
_UNKNOWN_TO_TORCH: dict[Any, Any] = {
    **{getattr(_aten, f"_scaled_dot_product_{name}"): _attention for name in _KERNELS},
    _aten._scaled_dot_product_fused_attention_overrideable: _attention,
    _aten._grouped_mm: _products,
}
if hasattr(torch.ops.transformers, "grouped_mm_fallback"):
    _UNKNOWN_TO_TORCH[torch.ops.transformers.grouped_mm_fallback] = _products
