"""What a process holds of a sharded tensor: regions, gathering to one place and putting whole values into parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

Region = tuple[slice, ...]
"""Part of a tensor, one range for each dimension."""

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")


def plain_name(name: str) -> str:
    """A parameter's name without what compilation, recomputation or sharding put into it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def region_of(tensor: Tensor) -> Region:
    """Which part of the whole tensor this process holds; everything where it is not sharded."""
    if not isinstance(tensor, DTensor):
        return tuple(slice(0, length) for length in tensor.shape)
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(offset, offset + size) for size, offset in zip(sizes, offsets, strict=True))


def local_part(tensor: Tensor) -> Tensor:
    """This process's part as a plain tensor that shares its memory."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    part: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return part


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor of a sharded one (a collective, the result is on every rank), or the tensor itself."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    mesh = tensor.device_mesh.device_type
    if tensor.device.type != mesh:  # parts that are kept on the CPU travel through the devices' network
        tensor = tensor.to(mesh)
    whole: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
    return whole


def copy_into(target: Tensor, value: Tensor) -> None:
    """Overwrite `target` by a whole tensor of its shape, or by one that is sharded as it is (no collective)."""
    source = local_part(value) if isinstance(value, DTensor) else value[region_of(target)]
    with torch.no_grad():
        local_part(target).copy_(source)


def placed_like(value: Tensor, target: Tensor) -> Tensor:
    """A copy of a whole tensor, sharded and placed as `target`, which has its shape (no collective)."""
    result = torch.empty_like(target, dtype=value.dtype, requires_grad=False)
    copy_into(result, value)
    return result


def overlap(one: Sequence[slice], two: Sequence[slice]) -> Region | None:
    """What two regions have in common; None: nothing."""
    ranges = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, two, strict=True))
    return None if any(each.start >= each.stop for each in ranges) else ranges


def within(region: Sequence[slice], frame: Sequence[slice]) -> Region:
    """A region counted from the start of another that holds it."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(region, frame, strict=True))
