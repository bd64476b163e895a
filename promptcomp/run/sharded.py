"""FSDP2 as a Lightning strategy whose checkpoint files are those of one process.

Lightning's ModelParallelStrategy gathers every weight, the frozen LM's too, and numbers the optimiser's state by the
place among all parameters. Here only what is trained is gathered, tensor by tensor, and the state is numbered as one
process numbers it. So a run may go on under another strategy or on another number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.lightning_modules.sharding import full_tensor, shard_like
from promptcomp.lightning_modules.trained import read_checkpoint


class ShardedStrategy(ModelParallelStrategy):
    """Every rank holds a part of every weight and of the optimiser's state."""

    @property
    def _module(self) -> CompressionModule:
        assert isinstance(self.lightning_module, CompressionModule)
        return self.lightning_module

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the states of a gathered checkpoint to `load_optimizer_state_dict`."""
        return not self._save_distributed_checkpoint

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trained tensors: whole on rank 0, with distributed checkpoints this rank's shards; a collective."""
        named = {name: p for name, p in self._module.named_parameters() if p.requires_grad}
        if self._save_distributed_checkpoint:
            return {name: parameter.detach() for name, parameter in named.items()}
        return {name: whole for name, p in named.items() if (whole := self._gathered(p)) is not None}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimiser's state as one process would save it, on rank 0; a collective."""
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        parameters = _parameters(optimizer)
        state = optimizer.state_dict()
        whole = {
            number: {key: self._gathered(value, parameters[number]) for key, value in values.items()}
            for number, values in state["state"].items()
        }
        return {"state": whole, "param_groups": state["param_groups"]} if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank reads a gathered checkpoint and keeps its part."""
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return super().load_checkpoint(path, weights_only=weights_only)
        return read_checkpoint(path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Put this rank's shards of the trained tensors in place."""
        named = dict(self._module.named_parameters())
        with torch.no_grad():
            for name, whole in checkpoint.get("state_dict", {}).items():
                named[name].copy_(shard_like(whole, named[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Put this rank's shards of the optimiser's state in place."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = _parameters(optimizer)
            shards = {
                number: {key: _shard_of(value, parameters[number]) for key, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({"state": shards, "param_groups": state["param_groups"]})

    def _gathered(self, value: Any, like: Tensor | None = None) -> Any:
        """A whole tensor on the CPU of rank 0, None elsewhere; what is no tensor and what is whole stays as it is."""
        if not isinstance(value, Tensor):
            return value
        if isinstance(like, DTensor) and not isinstance(value, DTensor) and value.shape == like.to_local().shape:
            value = _as_shard(value, like)
        whole = full_tensor(value)
        return whole.cpu() if self.is_global_zero else None


def _as_shard(value: Tensor, like: DTensor) -> DTensor:
    """A rank's part of the optimiser's state, kept as a plain tensor, as the shard that it is."""
    local = value.to(like.device_mesh.device_type)
    return DTensor.from_local(local, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def _shard_of(value: Any, like: Tensor) -> Any:
    """This rank's shard of a state that has the parameter's shape; counters stay as they are."""
    return shard_like(value, like.detach()) if isinstance(value, Tensor) and value.shape == like.shape else value


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    """In the order in which the state numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
