"""Activations that are recomputed in the backward pass change no loss and no gradient, in padded batches too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from promptcomp.batch import RATIONALE, Batch, collate
from promptcomp.language_model import cache
from promptcomp.lightning_modules import METHODS, OptimConfig
from promptcomp.lightning_modules.execution import Execution, Recomputed
from tests.gist_modules import CONTEXTS, DECODERS, ENCODERS, total
from tests.tiny_models import tiny_lm

SPLIT = {"num_slots": 3, "arrangement": "split"}
ARRANGEMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "one pass": ("gist", {"num_slots": 3}),
    "one pass with everything": (
        "gist",
        {"num_slots": 2, "kl_weight": 0.5, "full_prompt_weight": 0.5, "reconstruction_weight": 0.3},
    ),
    "two passes": ("gist", SPLIT),
    "two passes with everything": (
        "gist",
        {**SPLIT, "kl_weight": 0.5, "kl_positions": "all", "full_prompt_weight": 0.5, "reconstruction_weight": 0.3},
    ),
    "two passes with adapters": ("gist", {**SPLIT, "train": "lora", "lora": {"rank": 2}, "reconstruction_weight": 0.3}),
    "two passes through a frozen LM": ("gist", {**SPLIT, "train": "none"}),
    "mend": ("mend", {"num_slots": 3, "projection": "linear", "kl_positions": "targets"}),
    "mend in chunks": ("mend", {"num_slots": 3, "max_chunk_tokens": 5}),
    "full prompt": ("full_prompt", {"train": "lm"}),
    "no prompt": ("no_prompt", {"train": "lora"}),
    "soft prompt": ("prompt_tuning", {"num_slots": 3}),
    "metaicl": ("metaicl", {}),
    "step by step": ("step_by_step", {}),
}


def batch(method: str) -> Batch:
    """Contexts, queries and targets of different lengths, so each is padded."""
    found = collate([row for row in CONTEXTS if row.ids])
    if method == "step_by_step":
        found.role[1] = RATIONALE
    return found


def loss_and_gradients(arrangement: str, model: str, recompute: bool) -> tuple[Tensor, list[Tensor]]:
    """Of one batch in training, with dropout where the model has some."""
    method, options = ARRANGEMENTS[arrangement]
    spec = METHODS[method]
    optim = OptimConfig(lr=1e-2, schedule="constant")
    module = spec(**options).module(tiny_lm(model), optim, max_steps=4, seed=0, task_names=("a", "b"))
    module.execution = Execution(activation_checkpointing=recompute)
    module.configure_model()
    module.train()
    torch.manual_seed(0)
    loss = total(module, batch(method))
    loss.backward()
    return loss.detach(), [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("model", [*DECODERS, *ENCODERS])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_losses_and_gradients_stay(arrangement: str, model: str) -> None:
    kept = loss_and_gradients(arrangement, model, recompute=False)
    again = loss_and_gradients(arrangement, model, recompute=True)
    torch.testing.assert_close(again, kept, rtol=1e-5, atol=1e-7)
    assert any(gradient.abs().max() > 0 for gradient in kept[1])


@pytest.mark.parametrize("by_keyword", [True, False])
def test_a_cache_that_is_there_already_is_read_and_extended_once(by_keyword: bool) -> None:
    """However a block is given its cache."""

    def block(hidden: Tensor, kept: cache.Cache) -> Tensor:
        keys, values = kept.update(hidden * weight, hidden, 0)
        return (keys.exp() * values).sum(-2)

    results = []
    for forward in (block, Recomputed(block)):
        weight = torch.tensor(0.5, requires_grad=True)
        before = torch.arange(8.0).view(1, 1, 2, 4).requires_grad_()
        kept = cache.growing([(before * weight, before)])
        hidden = torch.ones(1, 1, 3, 4)
        states = forward(hidden, kept=kept) if by_keyword else forward(hidden, kept)
        (states.sum() + cache.stored(kept)[0][0].square().sum()).backward()
        results.append((states.detach(), weight.grad, before.grad, kept.get_seq_length()))
    torch.testing.assert_close(results[1], results[0])
    assert results[0][3] == 5
