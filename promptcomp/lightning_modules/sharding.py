"""Weights divided among processes (FSDP2, `torch.distributed.fsdp.fully_shard`), and how whole weights get there.

Every transformer block is a unit of its own, gathered while it works; what is left (embeddings, heads, slots) is the
root's unit and stays gathered during a step. Only rank 0 opens weights: the other ranks build shapes on the meta device
and receive the weights from it, unit by unit, each of which is divided before the next one comes.

Under autocast a block's float32 weights would be cast when they are used, and the copies would live until the backward
pass, gathered or not. So blocks are gathered in autocast's type already: there is nothing to cast and half as much to
send. Each rank's part, the sum of the gradients and the optimiser's state keep the type of the weights, and what flows
between blocks keeps its type too (inputs are not cast).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from promptcomp.lightning_modules.blocks import blocks_of, let_norms_follow_inputs

AUTOCAST = {"bf16-mixed": torch.bfloat16}
"""What blocks are gathered as under a precision of the trainer; under others: as they are."""


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
    source = _Source(module, device) if from_rank_zero else None
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
    """The blocks that are divided and gathered by themselves; the root's unit is all the rest."""
    return [block for block in blocks_of(module) if not _lends_weights(block)]


def _lends_weights(block: nn.Module) -> bool:
    """Whether others use the block's weights: T5's first block holds the position bias that packed rows correct."""
    return any(name.endswith("relative_attention_bias.weight") for name, _ in block.named_parameters())


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
        _check_same(module)

    @torch.no_grad()
    def fill(self, unit: nn.Module) -> None:
        """Put the weights of a unit on every rank, those apart that are divided already."""
        for _, tensor in [*unit.named_parameters(), *unit.named_buffers()]:
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


def _check_same(module: nn.Module) -> None:
    """
    Raises:
        RuntimeError: rank 0 has other tensors than this rank; all ranks know.
    """
    tensors = [*module.named_parameters(), *module.named_buffers()]
    ours = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors]
    every: list[list[tuple[str, tuple[int, ...], str]]] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, ours)
    for rank, theirs in enumerate(every):
        for one, two in zip(every[0], theirs, strict=False):
            if one != two:
                raise RuntimeError(f"rank {rank} has built another module than rank 0: {two} instead of {one}")
        if len(theirs) != len(every[0]):
            raise RuntimeError(f"rank {rank} has {len(theirs)} tensors, rank 0 {len(every[0])}")
