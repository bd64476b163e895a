"""Tensors by parameter name, whole or sharded, and the optimiser's state by the same names.

torch numbers parameters in the order in which an optimiser has met them. The hooks here replace the numbers by names
when a state is taken, and find the numbers again when one is loaded; whole tensors are cut to the parts that a process
holds. So a state can be loaded under another strategy or number of processes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

from promptcomp.config import ConfigError

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")


def plain_name(name: str) -> str:
    """A parameter's name without what compilation, recomputation or sharding put into it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def region_of(tensor: Tensor) -> tuple[slice, ...]:
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


def keep_state_by_name(optimizer: Optimizer) -> None:
    """Make `state_dict()` speak of names, and `load_state_dict` understand them (and the numbers of older files);
    the optimiser was made with named parameters."""
    optimizer.register_state_dict_post_hook(_to_names)
    optimizer.register_load_state_dict_pre_hook(_to_numbers)


def _to_names(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    groups = [{**group, "params": [*group["param_names"]]} for group in state["param_groups"]]
    numbers = (number for group in state["param_groups"] for number in group["params"])
    names = (name for group in groups for name in group.pop("param_names"))
    of = {n: (name, p) for n, name, p in zip(numbers, names, _parameters(optimizer), strict=True)}
    found = {
        of[n][0]: {key: _like_parameter(value, of[n][1]) for key, value in each.items()}
        for n, each in state["state"].items()
    }
    return {"state": found, "param_groups": groups}


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _like_parameter(value: Any, parameter: Tensor) -> Any:
    """A moment that is kept as a plain tensor of this process's part says how it is sharded."""
    is_plain = isinstance(value, Tensor) and not isinstance(value, DTensor)
    if not (is_plain and isinstance(parameter, DTensor) and value.dim() and value.shape == local_part(parameter).shape):
        return value
    mesh = parameter.device_mesh
    sizes: dict[str, Any] = {"shape": parameter.shape, "stride": parameter.stride()}
    return DTensor.from_local(value.to(mesh.device_type), mesh, parameter.placements, run_check=False, **sizes)


def _to_numbers(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state that torch expects for this optimiser; its tensors are copies, placed as the parameters are."""
    if any("param_names" in group for group in state["param_groups"]):
        state = _to_names(optimizer, state)  # format 1
    saved_group = {name: group for group in state["param_groups"] for name in group["params"]}
    ours = [name for group in optimizer.param_groups for name in group["param_names"]]
    if differing := sorted(set(ours) ^ set(saved_group)):
        raise ConfigError(
            f"the checkpoint's optimiser state is for other parameters ({', '.join(map(str, differing[:3]))}); "
            "start a new run with method.init_from instead"
        )
    parameters, number_of = dict(zip(ours, _parameters(optimizer), strict=True)), {n: i for i, n in enumerate(ours)}
    groups = []
    for group in optimizer.param_groups:
        names = [*group["param_names"]]
        settings = {key: value for key, value in saved_group[names[0]].items() if key != "params"}
        groups.append({**settings, "params": [number_of[name] for name in names], "param_names": names})
    found = {
        number_of[name]: {key: _placed(value, parameters[name]) for key, value in each.items()}
        for name, each in state["state"].items()
    }
    return {"state": found, "param_groups": groups}


def _placed(value: Any, parameter: Tensor) -> Any:
    """A copy (a file may be behind the tensor), sharded as its parameter; numbers (steps) as they are."""
    if not isinstance(value, Tensor):
        return value
    if value.shape != parameter.shape or value.dim() == 0:
        return value.detach().clone()
    result = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
    copy_into(result, value)
    return result
