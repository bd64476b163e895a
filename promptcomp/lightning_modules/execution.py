"""How a module is run, apart from what it computes: blocks recomputed or compiled, weights sharded over processes.

With FSDP2 every transformer block is a separate unit, gathered while it works; what is left (embeddings, heads,
slots) is the root's unit and stays gathered during a step. Only rank 0 opens weights: the other ranks build shapes on
the meta device and receive the weights from it, unit by unit, each of which is divided before the next one comes.

Under autocast a block's float32 weights would be cast when they are used, and the copies would live until the backward
pass, gathered or not. So blocks are gathered in autocast's type already: there is nothing to cast and half as much to
send. Each rank's part, the sum of the gradients and the optimiser's state keep the type of the weights, and what flows
between blocks keeps its type too (inputs are not cast).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from promptcomp.language_model.cache import Cache, copy_of

NORMS = (nn.LayerNorm, nn.RMSNorm)
"""PyTorch's norms that take weights."""
AUTOCAST = {"bf16-mixed": torch.bfloat16}
"""What blocks are gathered as under a precision of the trainer; under others: as they are."""


@dataclass(frozen=True, slots=True)
class Execution:
    """Options that save memory or time without changing results (up to rounding, where compiled)."""

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


def shard(
    module: nn.Module,
    mesh: DeviceMesh,
    methods: Iterable[str],
    device: torch.device,
    *,
    from_rank_zero: bool,
    precision: str = "32-true",
) -> None:
    """Divide a module's parameters among the ranks of a mesh, in place; a collective.

    Args:
        module: the root.
        mesh: one dimension.
        methods: of the root, besides `forward`, that need its parameters gathered.
        device: of the shards.
        from_rank_zero: rank 0 has the weights, the others shapes on the meta device; false: every rank has them.
        precision: of the trainer; in mixed precision `forward` and `methods` have to run under autocast.

    Raises:
        RuntimeError: the ranks have built different modules.
    """
    units = units_of(module)
    source = None
    if from_rank_zero:
        ours = [(name, tuple(each.shape), str(each.dtype)) for name, each in _tensors(module)]
        every: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(every, ours)
        for rank, theirs in enumerate(every):
            for one, two in zip_longest(every[0], theirs):
                if one != two:
                    raise RuntimeError(f"rank {rank} has built another module than rank 0: {two} instead of {one}")
        source = _Source(module, device)
    policy = MixedPrecisionPolicy()
    if precision in AUTOCAST:
        policy = MixedPrecisionPolicy(AUTOCAST[precision], reduce_dtype=torch.float32, cast_forward_inputs=False)
        for unit in units:
            let_norms_follow_inputs(unit)
    for unit in [*units, module]:
        if source is not None:
            source.fill(unit)
        fully_shard(unit, mesh=mesh, mp_policy=MixedPrecisionPolicy() if unit is module else policy)
    for name in methods:
        register_fsdp_forward_method(module, name)


def units_of(module: nn.Module) -> list[nn.Module]:
    """The blocks that are divided and gathered by themselves; the root's unit is all the rest.

    Not T5's first block: it holds the position bias that packed rows correct.
    """
    lent = "relative_attention_bias.weight"
    return [each for each in blocks_of(module) if not any(name.endswith(lent) for name, _ in each.named_parameters())]


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


class _Source:
    """Rank 0 as the source of weights. Tensors that several modules share stay shared."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._device = device
        self._is_rank_zero = torch.distributed.get_rank() == 0
        self._places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
        for each in module.modules():
            for name, tensor in [*each._parameters.items(), *each._buffers.items()]:
                if tensor is not None:
                    self._places[id(tensor)].append((each, name))

    @torch.no_grad()
    def fill(self, unit: nn.Module) -> None:
        """Put the weights of a unit on every rank, those apart that are divided already."""
        for _, tensor in _tensors(unit):
            if isinstance(tensor, DTensor) or id(tensor) not in self._places:
                continue
            places = self._places.pop(id(tensor))
            if self._is_rank_zero:
                whole = tensor.detach().to(self._device).contiguous()
            else:
                whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
            if whole.numel():
                torch.distributed.broadcast(whole, src=0)
            new = nn.Parameter(whole, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else whole
            for owner, name in places:
                table = owner._parameters if name in owner._parameters else owner._buffers
                table[name] = new  # type: ignore[assignment]
