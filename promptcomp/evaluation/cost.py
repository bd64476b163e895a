"""What a context costs: bytes of a memory and measured milliseconds.

The analytic half is in `promptcomp.evaluation.flops` (no torch) and offered here too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from promptcomp.evaluation.flops import (
    MemoryKind,
    ModelShape,
    PrefillFlops,
    cross_decoder_flops,
    decoder_flops,
    encoder_flops,
    prefill_flops,
    shape_of_config,
)
from promptcomp.memory import EncoderStates, KVCache, Memory, SoftPrompt

__all__ = [
    "MemoryKind",
    "ModelShape",
    "PrefillFlops",
    "count_flops",
    "cross_decoder_flops",
    "decoder_flops",
    "encoder_flops",
    "measure_ms",
    "memory_bytes",
    "prefill_flops",
    "shape_of_config",
    "synchronise",
]

_aten = torch.ops.aten
_FUSED_ATTENTION = (
    _aten._scaled_dot_product_flash_attention_for_cpu,
    _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_efficient_attention,
    _aten._scaled_dot_product_cudnn_attention,
    _aten._scaled_dot_product_fused_attention_overrideable,
)


def memory_bytes(memory: Memory | None) -> float:
    """Bytes of a memory as stored, real slots only, mean over its rows [B]."""
    if memory is None:
        return 0.0
    match memory:
        case SoftPrompt(embeds=embeds):
            per_slot = embeds.shape[-1] * embeds.element_size()
        case KVCache(layers=pairs):
            per_slot = sum(part.shape[1] * part.shape[-1] * part.element_size() for pair in pairs for part in pair)
        case EncoderStates(layers=states):
            per_slot = sum(state.shape[-1] * state.element_size() for state in states)
    return float(memory.num_slots.double().mean()) * per_slot


def measure_ms(
    function: Callable[[], object], *, warmup: int = 3, repeats: int = 20, device: torch.device | str = "cpu"
) -> float:
    """Median wall-clock milliseconds of a call, after `warmup` calls; an accelerator is waited for around each."""
    device = torch.device(device)
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        function()
        synchronise(device)
        times.append(1000.0 * (time.perf_counter() - start))
    return statistics.median(times)


def synchronise(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def count_flops(function: Callable[[], object]) -> int:
    """FLOPs of a call as torch's FlopCounterMode counts them: matrix products, all pairs of an attention."""
    attention: dict[Any, Any] = dict.fromkeys(_FUSED_ATTENTION, _attention_flops)
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        function()
    return int(counter.get_total_flops())


def _attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *rest: Any, **named: Any
) -> int:
    """Fused attention [B, H, S, Dh]. torch has no count for the CPU kernel, and none where heads share keys."""
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[2] * (width + value[3])
