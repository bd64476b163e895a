"""The optimiser that all methods share: AdamW over named parameters and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from promptcomp.checkpoints.named_state import keep_state_by_name
from promptcomp.lightning_modules.method_config import OptimConfig
from promptcomp.lightning_modules.offload import HostAdamW


def learning_rate_factor(step: int, max_steps: int, optim: OptimConfig) -> float:
    """Share of `optim.lr` in the step with this number (from 0)."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - optim.warmup_steps) / max(1, max_steps - optim.warmup_steps))
    falling = 1.0 - progress if optim.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return optim.min_lr_ratio + (1.0 - optim.min_lr_ratio) * falling


def make_optimizer(
    named: Sequence[tuple[str, nn.Parameter]], optim: OptimConfig, *, on_host: bool = False
) -> torch.optim.Optimizer:
    """AdamW over named parameters; matrices decay, vectors do not. `on_host`: with its state in the CPU's memory."""
    groups: list[dict[str, Any]] = [
        {"params": [(n, p) for n, p in named if p.dim() >= 2], "weight_decay": optim.weight_decay},
        {"params": [(n, p) for n, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]
    kept = [group for group in groups if group["params"]]
    optimizer_class = HostAdamW if on_host else torch.optim.AdamW
    optimizer = optimizer_class(kept, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    keep_state_by_name(optimizer)
    return optimizer
