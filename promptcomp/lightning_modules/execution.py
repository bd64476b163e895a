"""How a module is run, apart from what it computes: recomputation, compilation, where the optimiser's state lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lightning.pytorch.strategies import ParallelStrategy, Strategy
from torch import nn

from promptcomp.lightning_modules.blocks import compile_blocks, recompute_activations


@dataclass(frozen=True, slots=True)
class Execution:
    """Options that save memory or time and leave the numbers as they are (up to rounding, where compiled)."""

    activation_checkpointing: bool = False
    offload_optimizer: bool = False
    compile: bool = False


def prepare_blocks(module: nn.Module, execution: Execution) -> None:
    """Recompute and compile transformer blocks where asked for; before they are sharded."""
    if execution.activation_checkpointing:
        recompute_activations(module)
    if execution.compile:
        compile_blocks(module)


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
