"""How a module is run, apart from what it computes: transformer blocks recomputed or compiled, processes in turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from promptcomp.language_model.cache import Cache, copy_of

NORMS = (nn.LayerNorm, nn.RMSNorm)
"""PyTorch's norms that take weights."""


@dataclass(frozen=True, slots=True)
class Execution:
    """Options that save memory or time and leave the numbers as they are (up to rounding, where compiled)."""

    activation_checkpointing: bool = False
    offload_optimizer: bool = False
    compile: bool = False


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The transformer blocks of all language models in a module."""
    models = [each for each in module.modules() if isinstance(each, PreTrainedModel)]
    names = {name for model in models for name in model._no_split_modules or ()}
    return [each for each in module.modules() if type(each).__name__ in names]


def prepare_blocks(module: nn.Module, execution: Execution) -> None:
    """Recompute and compile transformer blocks where asked for, in place; before they are sharded."""
    for block in blocks_of(module):
        if execution.activation_checkpointing:
            block.forward = Recomputed(block.forward)
        if execution.compile:
            block.compile(dynamic=True)


@contextmanager
def one_after_another(strategy: Strategy) -> Iterator[None]:
    """The processes of a machine enter the block in turn, so that its memory holds one LM on its way to a GPU.

    Processes that stay on the CPU do not wait: each needs its copy anyway.
    """
    devices = strategy.parallel_devices if isinstance(strategy, ParallelStrategy) else None
    if devices is None or strategy.root_device.type == "cpu":
        yield
        return
    for turn in range(len(devices)):
        if turn == devices.index(strategy.root_device):
            yield
        strategy.barrier()


def let_norms_follow_inputs(module: nn.Module) -> None:
    """Let PyTorch's norms take weights of another type than their input's, which decides (others do so by themselves).

    On CPU `layer_norm` refuses such a mixture and autocast leaves it alone; on CUDA autocast casts it. Names of
    parameters do not change.
    """
    for each in module.modules():
        if isinstance(each, NORMS):
            each.forward = partial(_norm, each)  # type: ignore[method-assign]


def _norm(norm: nn.LayerNorm | nn.RMSNorm, hidden: Tensor) -> Tensor:
    weight = None if norm.weight is None else norm.weight.to(hidden.dtype)
    if isinstance(norm, nn.RMSNorm):
        return F.rms_norm(hidden, list(norm.normalized_shape), weight, norm.eps)
    bias = None if norm.bias is None else norm.bias.to(hidden.dtype)
    return F.layer_norm(hidden, list(norm.normalized_shape), weight, bias, norm.eps)


class Recomputed:
    """A block's forward of which only the inputs are kept; the rest is computed again in the backward pass.

    Not Hugging Face's gradient checkpointing: that is off in a frozen LM (eval mode), whose activations we need too,
    and forbids the caches that gist tokens are read into. Names of parameters do not change.
    """

    def __init__(self, forward: Any) -> None:
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
        if cache is None:
            return checkpoint(self._forward, *args, use_reentrant=False, **kwargs)
        before = copy_of(cache)  # the block adds to its cache, and does so again in the recomputation

        def run(*values: Any, **named: Any) -> tuple[Any, Cache]:
            own = copy_of(before)
            values = tuple(own if value is cache else value for value in values)
            named = {name: own if value is cache else value for name, value in named.items()}
            return self._forward(*values, **named), own

        result, filled = checkpoint(run, *args, use_reentrant=False, **kwargs)
        cache.layers = filled.layers
        return result
