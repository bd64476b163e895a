"""Tiny gist modules and the batch that their tests read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptcomp.batch import Batch, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.language_model import LanguageModelConfig
from promptcomp.lightning_modules import METHODS, OptimConfig
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.lightning_modules.gist import Gist
from tests.tiny_models import save_tokenizer, tiny_hf, tiny_lm

DECODERS = ("gpt2", "llama", "qwen3", "mistral", "opt")
ENCODERS = ("t5_query_in_encoder", "t5_query_in_decoder", "t5v11_query_in_encoder")
EVERY = [(model, attention) for model in (*DECODERS, *ENCODERS) for attention in ("eager", "sdpa")]
CONTEXTS = (
    EncodedContext(
        tuple(range(5, 17)),
        (EncodedQuery((20, 21, 22), (EncodedTarget((30, 31)),)), EncodedQuery((23,), (EncodedTarget((33, 34)),))),
    ),
    EncodedContext((40, 41), (EncodedQuery((24, 25, 26, 27, 28), (EncodedTarget((36, 37)),)),)),
    EncodedContext((), (EncodedQuery((29, 30), (EncodedTarget((38,)),)),)),
)


def batch(*contexts: EncodedContext) -> Batch:
    return collate(contexts or CONTEXTS)


def method(name: str = "gist", lm: Any = "llama", attention: str = "sdpa", **options: Any) -> Any:
    if isinstance(lm, str):
        lm = tiny_lm(lm)
        lm.hf.set_attn_implementation(attention)
    spec = METHODS[name]
    optim = OptimConfig(lr=1e-2, schedule="constant")
    module = spec(**options).module(lm, optim, max_steps=6, seed=0)
    module.configure_model()
    return module.eval()


def gist(lm: Any = "llama", attention: str = "sdpa", **options: Any) -> Gist:
    return method("gist", lm, attention, **{"num_slots": 2, **options})


def saved(folder: Path, kind: str = "llama") -> LanguageModelConfig:
    tiny_hf(kind).save_pretrained(folder)
    save_tokenizer(folder)
    return LanguageModelConfig(path=str(folder))


def total(module: CompressionModule, on: Batch) -> Tensor:
    """The training loss."""
    return torch.stack([term.weight * term.total / term.count for term in module.losses(on)]).sum()


def value(module: CompressionModule) -> float:
    return float(total(module, batch()).detach())


def steps(module: CompressionModule, count: int, on: Batch | None = None) -> list[float]:
    """A few plain optimiser steps; the loss before each."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=5e-3)
    module.train()
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = total(module, on or batch())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    module.eval()
    return losses
