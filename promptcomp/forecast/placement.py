"""How a training run is distributed over devices, and what it costs each of them: arithmetic alone.

Sources: Rajbhandari et al. 2020 (ZeRO, https://arxiv.org/abs/1910.02054; weights, gradients and Adam's moments are
divided by the number of devices); torch.distributed.fsdp.fully_shard (FSDP2,
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html: blocks are gathered before their forward and
again before their backward pass, the next one is prefetched, the outermost group stays gathered in between);
promptcomp.lightning_modules.execution (blocks in half precision where it is mixed, their gradients summed in float32);
ring collectives (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md: an all-gather or a
reduce-scatter of B bytes moves (n - 1) / n B through each of n devices, an all-reduce twice that).
"""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel
from torch import nn

from promptcomp.experiment import Precision, TrainerConfig
from promptcomp.lightning_modules.execution import AUTOCAST, units_of

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a step runs."""

    strategy: Literal["single", "ddp", "fsdp"] = "single"
    num_nodes: int = 1
    devices_per_node: int = 1
    accumulate: int = 1
    activation_checkpointing: bool = False
    offload_optimizer: bool = False
    precision: Precision = "32-true"
    on_gpu: bool = True

    @property
    def devices(self) -> int:
        """All of them."""
        return self.num_nodes * self.devices_per_node

    @property
    def autocast(self) -> torch.dtype | None:
        """The type of matrix products in mixed precision."""
        return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision)

    @property
    def gathered(self) -> torch.dtype | None:
        """The type that sharding gathers blocks in; None: the one that they have."""
        return AUTOCAST.get(self.precision) if self.strategy == "fsdp" else None

    @property
    def weight_type(self) -> torch.dtype | None:
        """The type of all weights; None: each has the one of the configuration."""
        return torch.bfloat16 if self.precision == "bf16-true" else None


def layout_of(trainer: TrainerConfig) -> Layout:
    """The layout that a configuration asks for, whether this machine has such devices or not.

    `devices: auto` counts the GPUs of this machine (one device where there is none).
    """
    has_gpu = torch.cuda.is_available()
    on_gpu = trainer.accelerator == "gpu" or (trainer.accelerator == "auto" and (has_gpu or trainer.devices != "auto"))
    seen = torch.cuda.device_count() if on_gpu else 1
    per_node = max(1, seen) if trainer.devices == "auto" else trainer.devices
    several: Literal["ddp", "single"] = "ddp" if trainer.num_nodes * per_node > 1 else "single"
    return Layout(
        strategy=several if trainer.strategy == "auto" else trainer.strategy,
        num_nodes=trainer.num_nodes,
        devices_per_node=per_node,
        accumulate=trainer.accumulate,
        activation_checkpointing=trainer.activation_checkpointing,
        offload_optimizer=trainer.offload_optimizer,
        precision=trainer.precision,
        on_gpu=on_gpu,
    )


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a group of weights."""

    every: int = 0
    trained: int = 0

    def __add__(self, other: Weights) -> Weights:
        return Weights(self.every + other.every, self.trained + other.trained)


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups that sharding gathers together: every block alone, and all other weights."""

    blocks: tuple[Weights, ...]
    rest: Weights
    largest_tensor: int = 0
    """Bytes of the largest trained tensor."""
    halved: tuple[Weights, ...] = ()
    """The blocks as they are gathered in half precision; their gradients are summed in float32."""

    @property
    def whole(self) -> Weights:
        """Blocks and rest."""
        return sum(self.blocks, self.rest)

    @property
    def gathered(self) -> tuple[Weights, ...]:
        """The blocks as they are gathered."""
        return self.halved or self.blocks

    def summed(self, block: Weights) -> int:
        """Bytes of a gathered block's gradients as they are summed over the devices."""
        return block.trained * (2 if self.halved else 1)


def group_weights(module: nn.Module, layout: Layout) -> Groups:
    """Bytes of the weights of `module` in the groups that sharding makes; shared weights count once."""
    weight_type, gathered = layout.weight_type, layout.gathered
    seen = set[nn.Parameter]()
    blocks: list[list[nn.Parameter]] = []
    for part in [*units_of(module), module]:
        blocks.append([parameter for parameter in part.parameters() if parameter not in seen])
        seen.update(blocks[-1])

    def count(parameters: list[nn.Parameter], kind: torch.dtype | None) -> Weights:
        sizes = [(p.numel() * (kind or p.dtype).itemsize, p.requires_grad) for p in parameters]
        return Weights(sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))

    counted = [count(block, weight_type) for block in blocks]
    halved = tuple(count(block, gathered) for block in blocks[:-1]) if gathered is not None else ()
    largest = max((count([p], weight_type).trained for p in seen), default=0)
    return Groups(tuple(counted[:-1]), counted[-1], largest, halved)


@dataclass(frozen=True, slots=True)
class Step:
    """What one micro-batch keeps on a device, in bytes."""

    activations: int
    """Until the backward pass."""
    working: int
    """Most that one block needs besides: recomputed activations and their gradients."""
    logits: int
    """Logits of student and teacher with what the loss makes of them."""
    teacher_cache: int = 0
    """Keys and values of a context that a pass without gradients keeps."""


class DeviceMemory(BaseModel):
    """Bytes on each device; `total` is the highest sum at one time (before the backward pass or in the update)."""

    weights: int
    gradients: int
    optimizer: int
    """AdamW's two moments, where they are on the device."""
    buffers: int
    """Weights and gradients of the blocks that sharding has gathered."""
    activations: int
    working: int
    logits: int
    teacher_cache: int
    update: int
    """Temporaries of the optimiser's step."""
    total: int


class Communication(BaseModel):
    """Bytes that each device sends (and receives) in one optimiser step."""

    gather_weights: int = 0
    reduce_gradients: int = 0
    total: int = 0


class Host(BaseModel):
    """Memory of one node's host in bytes."""

    loading: int
    """All weights once."""
    optimizer: int
    """AdamW's moments of the node's devices, where they are offloaded."""
    libraries: int = 0
    """What a process holds before it has weights: Python, the imported libraries, the tokenizer."""
    process: int = 0
    """Most that one process takes: libraries and weights, and on CPU all that a step takes; CUDA's libraries aside."""


def device_memory(groups: Groups, step: Step, layout: Layout) -> DeviceMemory:
    """Memory of each device in a training step.

    Gradients have the type of their weights and so have AdamW's moments. Before the backward pass there are gradients
    while micro-batches are accumulated, and under DDP, whose buckets they are views of. On GPUs AdamW updates all
    tensors together (`foreach`) with one temporary of each; on CPU one after the other with two.
    """
    shards = layout.devices if layout.strategy == "fsdp" else 1
    whole = groups.whole
    weights = -(-whole.every // shards)
    gradients = -(-whole.trained // shards)
    optimizer = 0 if layout.offload_optimizer else 2 * gradients
    buffers = 0
    if layout.strategy == "fsdp":
        largest = max(groups.gathered, key=lambda each: each.every, default=Weights())
        # the block at work, the next one, and the flat buffer that it comes in; a block's gradients and their flat copy
        block = 3 * largest.every + largest.trained + groups.summed(largest)
        buffers = groups.rest.every + groups.rest.trained + block
    update = gradients if layout.on_gpu else 2 * -(-groups.largest_tensor // shards)
    update *= not layout.offload_optimizer  # which runs on the host
    held = gradients if layout.accumulate > 1 or layout.strategy == "ddp" else 0
    fixed = weights + optimizer + buffers
    # the loss's gradient is made first, then the blocks' one after the other
    forward = step.activations + max(step.working, step.logits) + step.teacher_cache + held
    return DeviceMemory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buffers=buffers,
        update=update,
        total=fixed + max(forward, gradients + update, gradients + step.working),
        **asdict(step),
    )


def communication(groups: Groups, gathers: float, layout: Layout) -> Communication:
    """Bytes of one optimiser step.

    Args:
        groups: The weights.
        gathers: Bytes of block weights that one micro-batch gathers, over all passes forward and backward.
        layout: DDP reduces once a step, after the last micro-batch; FSDP2 in Lightning after each.
    """
    share = (layout.devices - 1) / layout.devices
    gathered, reduced = 0.0, 2 * share * groups.whole.trained
    if layout.strategy == "single":
        return Communication()
    if layout.strategy == "fsdp":
        gathered = share * (gathers + groups.rest.every) * layout.accumulate
        summed = sum(groups.summed(block) for block in groups.gathered) + groups.rest.trained
        reduced = share * summed * layout.accumulate
    total = round(gathered + reduced)
    return Communication(gather_weights=round(gathered), reduce_gradients=round(reduced), total=total)


def host_memory(groups: Groups, layout: Layout) -> Host:
    """Memory of a node's host; a large LM is read once on each node."""
    share = 1 / layout.num_nodes if layout.strategy == "fsdp" else layout.devices_per_node
    moments = round(2 * groups.whole.trained * share) if layout.offload_optimizer else 0
    return Host(loading=groups.whole.every, optimizer=moments)


def resident_bytes() -> int:
    """What this process holds in memory now (where the system does not say: the most that it has held)."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
        return int(pages) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
