"""What a context costs: bytes of a memory and measured milliseconds.

The analytic half is in `promptcomp.evaluation.flops` (no torch).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from promptcomp.memory import Memory, memory_tensors


def memory_bytes(memory: Memory | None) -> float:
    """Bytes of a memory as stored, real slots only, mean over its rows [B]."""
    if memory is None:
        return 0.0
    parts = [part[0] for part in memory_tensors(memory).values() if part.is_floating_point()]
    slots = max(1, memory.mask.shape[1])
    return float(memory.num_slots.double().mean()) * sum(p.numel() // slots * p.element_size() for p in parts)


def measure_ms(
    function: Callable[[], object], *, warmup: int = 3, repeats: int = 20, device: torch.device | str = "cpu"
) -> float:
    """Median wall-clock milliseconds of a call, after `warmup` calls; an accelerator is waited for around each."""
    device = torch.device(device)
    for _ in range(warmup):
        function()
    return statistics.median(1000.0 * seconds_of(function, device) for _ in range(repeats))


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of a call; an accelerator is waited for before and after."""
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
