"""Training steps that the memory and GPU benchmarks share."""

from __future__ import annotations

import random
from contextlib import nullcontext
from typing import Any

import torch

from promptcomp.batch import Batch, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.forecast.activations import Work
from promptcomp.lightning_modules.base import CompressionModule

METHOD_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gist": ("gist", {"num_slots": 4}),
    "gist_lora": ("gist", {"num_slots": 4, "train": "lora"}),
    "gist_lora_reconstruction": (
        "gist",
        {"num_slots": 4, "train": "lora", "arrangement": "split", "reconstruction_weight": 0.3},
    ),
    "mend": ("mend", {"num_slots": 16}),
    "prompt_tuning": ("prompt_tuning", {"num_slots": 16, "share": "shared"}),
    "full_prompt_lora": ("full_prompt", {"train": "lora"}),
    "step_by_step": ("step_by_step", {}),
}


def make_batch(work: Work, vocabulary: int) -> Batch:
    """Random rows that fill their budgets."""
    rng = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocabulary) for _ in range(count))

    query = work.example - work.target
    rows = [
        EncodedContext(
            ids(work.context),
            tuple(EncodedQuery(ids(query), (EncodedTarget(ids(work.target), 0),), n) for n in range(work.queries)),
        )
        for _ in range(work.contexts)
    ]
    return collate(rows)


def train_step(module: CompressionModule, batch: Batch, optimizer: torch.optim.Optimizer, precision: str) -> None:
    """Forward, backward, clipping and update."""
    device = next(module.parameters()).device.type
    mixed = torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
    optimizer.zero_grad()
    with mixed:
        loss = torch.stack([t.weight * t.total / t.count for t in module.losses(batch)]).sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], 1.0)
    optimizer.step()
