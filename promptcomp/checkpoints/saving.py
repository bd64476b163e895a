"""How Lightning's trainer writes, reads and selects our checkpoints.

Under FSDP2 they hold the trained tensors alone too: one gathered file, or a folder of parts. Lightning's own sharded
checkpoints hold the frozen LM as well, cannot be read when it is left out, and number the optimiser's state over all
parameters, so that no other strategy can go on from them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from promptcomp.checkpoints.checkpoint_files import (
    WEIGHTS,
    empty_tensors,
    join,
    read_checkpoint,
    read_header,
    read_into,
    remove,
    replace,
    split,
    write_header,
    write_shard,
    write_whole,
)
from promptcomp.checkpoints.named_state import full_tensor
from promptcomp.checkpoints.trained_state import TrainedState


class AtomicCheckpoints(TorchCheckpointIO):
    """Whole files, written beside the old one and renamed; reads whole and sharded checkpoints alike."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write, flush to the disk, rename.

        Raises:
            OSError: the disk is full or not writable; the checkpoint before is untouched.
        """
        write_whole(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Everything, on the CPU, without pickles (whatever the arguments say).

        Raises:
            ConfigError: it cannot be read, is incomplete, or is none of ours.
        """
        return read_checkpoint(Path(path))


class BestCheckpoint(ModelCheckpoint):
    """The weights with the best dev result, as one file; of equal results the one with the lower loss."""

    def __init__(self, path: Path, monitor: str, mode: str) -> None:
        super().__init__(
            dirpath=path.parent,
            filename=path.stem,
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            save_weights_only=True,
            enable_version_counter=False,
        )
        self._best_loss: float | None = None

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether the present weights are the best so far."""
        is_better = super().check_monitor_top_k(trainer, current)
        loss = float(trainer.callback_metrics["dev/loss"])
        if not is_better and current is not None and self._best_loss is not None and self.monitor != "dev/loss":
            is_better = bool(current == self.best_model_score) and loss < self._best_loss
        if is_better:
            self._best_loss = loss
        return is_better

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, and the loss of the best weights."""
        return {**super().state_dict(), "best_loss": self._best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as before a stop, also of a run that was moved; checkpoints of earlier versions hold no loss."""

        def here(path: str) -> str:
            return path and os.path.join(str(self.dirpath), os.path.basename(path))

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        scores = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "dirpath": self.dirpath, "best_k_models": scores})
        self._best_loss = state_dict.get("best_loss")


class ShardedStrategy(ModelParallelStrategy):
    """Every rank holds a part of every weight and of the optimiser's state.

    With `save_distributed_checkpoint` each writes its part of the checkpoints that training continues from; those of
    weights alone are always whole.
    """

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Our files name the parameters, so Lightning's ordinary way of loading does."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: the module itself puts what it has trained into a checkpoint, still sharded."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state by name, still sharded."""
        return (optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Whole or sharded state into the optimisers."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write parts if there is an optimiser's state and parts are wanted, otherwise gather; all ranks call this.

        Raises:
            OSError: on every rank, if the disk of one is full or not writable; the checkpoint before is untouched.
        """
        path = Path(self.broadcast(str(filepath)))
        if self._save_distributed_checkpoint and "optimizer_states" in checkpoint:
            self._save_parts(checkpoint, path)
            return
        whole = gathered(checkpoint, keep=self.is_global_zero)
        self._on_rank_zero(lambda: self.checkpoint_io.save_checkpoint(whole, path))

    def _save_parts(self, checkpoint: dict[str, Any], path: Path) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        header, tensors = split(checkpoint)

        def make_empty() -> None:
            remove(temporary)
            temporary.mkdir(parents=True)

        def finish() -> None:
            write_header(temporary, header, dict(sizes))
            replace(temporary, path)

        try:
            self._on_rank_zero(make_empty)
            sizes = self._agreed(lambda: write_shard(temporary, tensors, self.global_rank, self.world_size))
            self._on_rank_zero(finish)
        except OSError:
            if self.is_global_zero:
                remove(temporary)
            raise

    def _on_rank_zero(self, work: Callable[[], Any]) -> None:
        self._agreed(lambda: work() if self.is_global_zero else None)

    def _agreed(self, work: Callable[[], Any]) -> list[Any]:
        """Do something on every rank; the results of all, or on every rank the OSError of one."""
        result, failure = None, None
        try:
            result = work()
        except OSError as error:
            failure = (error.errno, error.strerror or str(error), error.filename)
        found: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(found, (result, failure))
        for _, failed in found:
            if failed is not None:
                raise OSError(*failed)
        return [each for each, _ in found]

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Of a folder each rank reads what it holds; of a file what it uses.

        Raises:
            ConfigError: it cannot be read, is incomplete, or does not fit the module.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        if not path.is_dir():
            return read_checkpoint(path)
        module = self.lightning_module
        assert isinstance(module, TrainedState)
        header, parameters = read_header(path), module.trained_parameters()
        shapes = empty_tensors(header)
        weights = {name.removeprefix(WEIGHTS): each for name, each in shapes.items() if name.startswith(WEIGHTS)}
        module.check_trained(weights, header["promptcomp"], "the checkpoint")
        tensors = {
            key: torch.empty_like(parameters[key.split("/")[1]], dtype=shape.dtype, requires_grad=False)
            for key, shape in shapes.items()
        }
        read_into(path, header, tensors)
        return join(header, tensors)


def gathered(checkpoint: Mapping[str, Any], *, keep: bool) -> dict[str, Any]:
    """A checkpoint with whole tensors on the CPU, gathered one after the other (a collective) where they are to be
    kept."""
    header, tensors = split(checkpoint)
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = full_tensor(tensor)
        if keep:
            whole[name] = value.cpu().clone() if value.device.type == "cpu" else value.cpu()
    return join(header, whole) if keep else {}
