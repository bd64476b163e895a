"""What a person sees while a run trains: step, loss, running held-out accuracy, speed and time left."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from promptcomp.lightning_modules.adapters import adapted
from promptcomp.lightning_modules.base import CompressionModule

_SMOOTHING = 0.95
_REFRESH = 0.25
"""Seconds between two updates of the bar."""


class TrainingProgress(L.Callback):
    """A live bar on a terminal; a plain line at every dev evaluation elsewhere. Only rank 0 prints."""

    def __init__(self, console: Console, max_steps: int) -> None:
        self.console = console
        self.max_steps = max_steps
        self._loss: Tensor | None = None
        self._tokens: Tensor | int = 0
        self._shown = 0.0
        self._dev = ""
        self._started = 0.0
        self._first_step = 0
        self._progress: Progress | None = None
        self._bar: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        self._started = time.monotonic()
        self._first_step = trainer.global_step
        assert isinstance(pl_module, CompressionModule)
        if trainer.is_global_zero and (adapters := adapted(pl_module.lm.hf)):
            self.console.print(adapters, highlight=False, markup=False, soft_wrap=True)
        if not trainer.is_global_zero or not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("[bold]train[/bold]"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[dev]}", style="green"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            refresh_per_second=4,
        )
        self._progress.start()
        self._bar = self._progress.add_task("", total=self.max_steps, completed=trainer.global_step, loss="", dev="")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, CompressionModule)
        self._tokens = pl_module.tokens_trained
        loss = pl_module.step_loss
        if loss is None or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._loss = loss if self._loss is None else torch.lerp(loss, self._loss, _SMOOTHING)
        now = time.monotonic()
        if self._progress is not None and (now - self._shown > _REFRESH or trainer.global_step == self.max_steps):
            self._shown = now  # reading the loss waits for the device, so not at every step
            self._progress.update(
                self._bar, completed=trainer.global_step, loss=f"loss {float(self._loss):.3f}", dev=self._dev
            )

    @property
    def tokens(self) -> int:
        """Real tokens trained on by all processes since the start or the resumption."""
        return int(self._tokens)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the dev result."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        parts = [
            f"dev {name} {float(metrics[f'dev/{name}']):.3f}"
            for name in ("accuracy", "loss")
            if f"dev/{name}" in metrics
        ]
        self._dev = parts[0] if parts else ""
        if self._progress is None:
            done = trainer.global_step
            spent = time.monotonic() - self._started
            rate = (done - self._first_step) / max(spent, 1e-9)
            left = (self.max_steps - done) / max(rate, 1e-9)
            loss = "" if self._loss is None else f"  loss {float(self._loss):.3f}"
            self.console.print(
                f"step {done}/{self.max_steps}{loss}  {'  '.join(parts)}  {rate:.2f} steps/s  {left:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
