"""Which weights of a run are the best: by a dev result, ties by the dev loss."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from promptcomp.config import ConfigError
from promptcomp.datamodules.base import ContextDataModule
from promptcomp.experiment import TrainerConfig
from promptcomp.run.run_directory import RunDirectory

_LOSS = "dev/loss"


def monitor_of(config: TrainerConfig, datamodule: ContextDataModule) -> tuple[str, Literal["max", "min"]]:
    """The logged dev result that weights are chosen by, and which of its ends is the better one.

    Raises:
        ConfigError: the dev split has no such result.
    """
    has_options = datamodule.has_options("dev")
    wanted = config.select_by
    if wanted == "exact_match" and all(len(example.options) > 1 for example in datamodule.examples("dev")):
        wanted = "auto"
    if wanted == "auto":
        wanted = "accuracy" if has_options else "loss"
    if wanted == "accuracy" and not has_options:
        raise ConfigError("trainer.select_by = 'accuracy': the dev split has no options; use loss or exact_match")
    return f"dev/{wanted}", "min" if wanted == "loss" else "max"


class BestCheckpoint(ModelCheckpoint):
    """The weights with the best dev result, as checkpoints/best.ckpt; of equal results the one with the lower loss."""

    def __init__(self, run: RunDirectory, monitor: str, mode: str) -> None:
        super().__init__(
            dirpath=run.best.parent,
            filename=run.best.stem,
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
        loss = float(trainer.callback_metrics[_LOSS])
        if not is_better and current is not None and self._best_loss is not None and self.monitor != _LOSS:
            is_better = bool(current == self.best_model_score) and loss < self._best_loss
        if is_better:
            self._best_loss = loss
        return is_better

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, and the loss of the best weights."""
        return {**super().state_dict(), "best_loss": self._best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as before a stop; checkpoints of earlier versions hold no loss."""
        super().load_state_dict(state_dict)
        self._best_loss = state_dict.get("best_loss")
