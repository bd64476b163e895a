"""What a context costs: bytes of a memory, measured milliseconds, and the sections of results.json that hold them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from promptcomp.evaluation.flops import ModelShape, PrefillFlops
from promptcomp.evaluation.results import Cost, Size
from promptcomp.memory import EncoderStates, KVCache, Memory, SoftPrompt


def size_section(
    shape: ModelShape, *, context_tokens: float, memory_slots: float, stored_bytes: float, query_tokens: float
) -> Size:
    """The `size` section of results.json; lengths and bytes are means over contexts."""
    return Size(
        context_tokens=context_tokens,
        memory_slots=memory_slots,
        compression=context_tokens / memory_slots if memory_slots else None,
        context_bytes=context_tokens * shape.kv_bytes_per_token,
        memory_bytes=stored_bytes,
        memory_kv_bytes=memory_slots * shape.kv_bytes_per_token,
        query_tokens=query_tokens,
    )


def cost_section(
    flops: PrefillFlops,
    *,
    train_seconds: float | None = None,
    steps: int | None = None,
    tokens_per_second: float | None = None,
    compress_ms: float | None = None,
    prefill_ms: float | None = None,
    full_prefill_ms: float | None = None,
) -> Cost:
    """The `cost` section of results.json."""
    return Cost(
        train_seconds=train_seconds,
        steps=steps,
        tokens_per_second=tokens_per_second,
        compress_ms=compress_ms,
        prefill_ms=prefill_ms,
        full_prefill_ms=full_prefill_ms,
        flops_ratio=flops.ratio,
        compress_flops=flops.compress,
        prefill_flops=flops.compressed,
        full_prefill_flops=flops.full,
        cached_full_prefill_flops=flops.cached_full,
        cached_prefill_flops=flops.cached_compressed,
        no_prompt_prefill_flops=flops.no_prompt,
        break_even_queries=flops.break_even_queries if flops.compress else None,
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
        _synchronise(device)
        start = time.perf_counter()
        function()
        _synchronise(device)
        times.append(1000.0 * (time.perf_counter() - start))
    return statistics.median(times)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
