"""Lightning callbacks and the logger of every run: step series, saving between steps, a clean stop, a progress bar.

Beside metrics.csv and TensorBoard stand Lightning's own loggers for W&B and MLflow (`trainer.loggers`), each an extra.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor

from promptcomp.documents import read_json
from promptcomp.errors import ConfigError, first_line
from promptcomp.experiment import Experiment
from promptcomp.files import write_atomic
from promptcomp.lightning_modules.adapters import adapted
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.plain import say
from promptcomp.run.run_directory import MetricsFile, RunDirectory
from promptcomp.stopping import StopSignals, is_preemption
from promptcomp.terminal import time_columns

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_PROJECT = "promptcomp"
_SMOOTHING = 0.95
_REFRESH = 0.25
"""Seconds between two updates of the bar."""


class MetricsLogger(Logger):
    """Writes what the modules log to metrics.csv, one row a step, and to TensorBoard's event files, and passes it on to
    other loggers (`trainer.loggers`); Lightning asks for a name and a version.

    A resumed run goes on in the same curves: metrics.csv loses the rows that come again, TensorBoard is told to hide
    them, and the other loggers, which take nothing back, get no value twice.

    Args:
        run: its directory.
        resumed_step: the steps that a resumed run has behind it; 0: a new run.
        others: opens the other loggers.
    """

    name, version = "metrics", ""

    def __init__(
        self, run: RunDirectory, resumed_step: int, others: Callable[[], Sequence[Logger]] = lambda: ()
    ) -> None:
        super().__init__()
        self._file, self._events, self._first = MetricsFile(run.metrics), run.tensorboard, resumed_step + 1
        self._sent = {(row["step"], name) for row in self._file.rows for name, value in row.items() if value}
        if self._file.rows:
            self._file.truncate(resumed_step)
        self._open = others

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row; Lightning counts steps from 0, people from 1."""
        number = (step or 0) + 1
        values = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        if not values:
            return
        self._file.append(number, values)
        for name, value in values.items():
            self._board.add_scalar(name, value, number)
        self._board.flush()  # a run may end at once, and what is on the disk is not lost
        if new := {name: value for name, value in values.items() if (str(number), name) not in self._sent}:
            for other in self._opened:
                other.log_metrics(new, number)

    @property
    @rank_zero_only
    def experiment(self) -> None:
        """Lightning asks for it before the first step, which is when the other loggers are to open."""
        _ = self._opened

    @cached_property
    def _opened(self) -> Sequence[Logger]:
        return self._open()

    @cached_property
    def _board(self) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter  # now: it takes half a second

        return SummaryWriter(str(self._events), purge_step=self._first if self._first > 1 else None)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Training has ended."""
        if "_board" in self.__dict__:
            self._board.close()
        for other in self.__dict__.get("_opened", ()):
            other.finalize(status)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml is in the run directory."""


def check_loggers(experiment: Experiment) -> None:
    """
    Raises:
        ConfigError: one of `trainer.loggers` is not installed.
    """
    for name in experiment.trainer.loggers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f'trainer.loggers: {name} is not installed; pip install "promptcomp[{name}]"')


def open_loggers(experiment: Experiment, run: RunDirectory) -> list[Logger]:
    """Those of `trainer.loggers`; a resumed run goes on in the runs there that loggers.json names.

    Where they write, and as whom, their own environment variables say (WANDB_PROJECT, WANDB_MODE,
    MLFLOW_TRACKING_URI ...).

    Raises:
        ConfigError: one cannot be opened, for want of a key or a network.
    """
    if not experiment.trainer.loggers:
        return []
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    known: dict[str, str] = {}
    with contextlib.suppress(ConfigError):
        known = dict(read_json(run.loggers, "file of the loggers"))
    found: list[Any] = []
    title = run.path.absolute().name
    for name in experiment.trainer.loggers:
        try:
            if name == "wandb":
                number = known.setdefault(name, uuid.uuid4().hex)
                project = os.environ.get("WANDB_PROJECT", _PROJECT)
                found.append(WandbLogger(title, run.path, project=project, id=number))
            else:
                where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.path.absolute() / 'mlflow.db'}"
                found.append(MLFlowLogger(_PROJECT, title, where, run_id=known.get(name)))
                known[name] = str(found[-1].run_id)
            found[-1].log_hyperparams(experiment.model_dump(mode="json"))
        except Exception as error:  # theirs, of many kinds
            raise ConfigError(f"trainer.loggers: {name} cannot be opened: {first_line(error)}") from error
    write_atomic(run.loggers, json.dumps(known) + "\n")
    return found


class Stopped(Exception):
    """A run that a signal has ended; its state is in last.ckpt."""

    def __init__(self, step: int, preempted: bool = False) -> None:
        super().__init__(f"{'preempted' if preempted else 'stopped'} after step {step}")
        self.step = step
        self.preempted = preempted


class TakingUp(L.Callback):
    """What Lightning's own state of a resumed run leaves open."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End at once where patience had ended the run; count micro-batches from its last whole step on."""
        patience = trainer.early_stopping_callback
        if patience is not None and patience.wait_count >= patience.patience:
            trainer.should_stop = True
        batches = trainer.fit_loop.epoch_loop.batch_progress
        done = trainer.global_step * trainer.accumulate_grad_batches
        for counter in (batches.total, batches.current):  # the steps before may have been divided in another way
            for name in ("ready", "started", "processed", "completed"):
                setattr(counter, name, done)


class SaveBetweenSteps(L.Callback):
    """Writes last.ckpt every few steps, and when a signal has come; then it ends the run.

    The signal handler only sets a flag (saving inside a handler can meet a half-done optimiser step); the ranks agree
    on it before the next step and all raise `Stopped`. A second Ctrl-C kills the run; the signals of a cluster
    (`StopSignals`) may repeat. All saving is done before a step, when the logs and the dev evaluation of the last one
    are done: a resumed run neither repeats nor skips them. A signal after the last step is the caller's to act on.
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, run: RunDirectory, every: int) -> None:
        self.run = run
        self.every = every
        self.received: int | None = None
        self._stop = StopSignals.current() or StopSignals()
        self._previous: dict[int, Any] = {}
        self._before = {number: signal.getsignal(number) for number in {*self.signals, *StopSignals.numbers()}}
        """What Lightning has not replaced yet, and has put back itself when it is done."""
        self._process = os.getpid()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the handlers (again: Lightning puts one on SIGTERM that communicates, which ranks may wait in).

        Raises:
            Stopped: a SIGTERM came just before.
        """
        self._process = os.getpid()
        if trainer.received_sigterm:  # Lightning's own handler took it a moment ago
            raise Stopped(trainer.global_step)
        for number in self._before:
            handler = self._stop.handle if is_preemption(number) else self._handle
            with contextlib.suppress(ValueError):  # not in the main thread: signals stay as they are
                self._previous[number] = signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked data worker
            return
        self.received = number
        for each in self.signals:
            if not is_preemption(each):
                signal.signal(each, self._previous.get(each, signal.SIG_DFL))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time, and stop every rank at the same step."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        # Lightning logs by a count of its own, in which the step of a dev evaluation counts twice after a resumption
        trainer.fit_loop.epoch_loop._batches_that_stepped = step
        asked = self._stop.received is not None
        stop = trainer.strategy.reduce_boolean_decision(asked or self.received is not None, all=False)
        if stop or (step > 0 and step % self.every == 0):
            _save(trainer, self.run.last)
        if stop:
            raise Stopped(step, trainer.strategy.reduce_boolean_decision(asked, all=False))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Put the handlers back."""
        self.restore()

    def restore(self) -> None:
        """Put the handlers back, once all is saved: Lightning's own would swallow a signal after the last step."""
        for number in self._previous:
            signal.signal(number, self._before[number] or signal.SIG_DFL)
        self._previous.clear()


def _save(trainer: L.Trainer, path: Path) -> None:
    """Save the state as of the last finished step, although Lightning has counted the next batch as ready."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    counters = (progress.total, progress.current)
    for counter in counters:
        counter.ready -= 1
    try:
        trainer.save_checkpoint(path)
    finally:
        for counter in counters:
            counter.ready += 1


class TrainingProgress(L.Callback):
    """A live bar on a terminal; a plain line at every dev evaluation elsewhere. Only rank 0 prints."""

    def __init__(self, console: Console, max_steps: int, begun: float | None = None) -> None:
        self.console = console
        self.seconds_to_first_step: float | None = None
        """From `begun` (`time.monotonic`; None: not measured) on."""
        self._begun = begun
        self.max_steps = max_steps
        self._loss: Tensor | None = None
        self._tokens: Tensor | int = 0
        self._shown = self._started = self._before = 0.0
        self._tokens_before, self._fit_began = 0, time.monotonic()
        self._first_step = 0
        self._dev = ""
        self._bar = Progress(
            TextColumn("[bold]train[/bold]"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[dev]}", style="green"),
            *time_columns(console),
            console=console,
            refresh_per_second=4,
        )

    @property
    def tokens(self) -> int:
        """Real tokens trained on by all processes, what led to the checkpoint of a resumed run included."""
        return self._tokens_before + int(self._tokens)

    @property
    def seconds(self) -> float:
        """Of training, likewise."""
        return self._before + time.monotonic() - self._fit_began

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"seconds": self.seconds, "tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint that training goes on from."""
        self._before, self._tokens_before = state_dict["seconds"], state_dict["tokens"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Training begins."""
        self._fit_began = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        self._started, self._first_step = time.monotonic(), trainer.global_step
        assert isinstance(pl_module, CompressionModule)
        if trainer.is_global_zero and (adapters := adapted(pl_module.lm.hf)):
            say(self.console, adapters)
        if trainer.is_global_zero and self.console.is_terminal:
            self._bar.add_task("", total=self.max_steps, completed=trainer.global_step, loss="", dev="")
            self._bar.start()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note when the first one comes."""
        if self._begun is not None and self.seconds_to_first_step is None:
            self.seconds_to_first_step = time.monotonic() - self._begun
            if trainer.is_global_zero:
                say(self.console, f"first training step after {self.seconds_to_first_step:.1f} s", "dim")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        assert isinstance(pl_module, CompressionModule)
        self._tokens, loss = pl_module.tokens_trained, pl_module.step_loss
        if loss is None or (batch_idx + 1) % trainer.accumulate_grad_batches or not trainer.is_global_zero:
            return
        self._loss = loss if self._loss is None else torch.lerp(loss, self._loss, _SMOOTHING)
        step, now = trainer.global_step, time.monotonic()
        if self._bar.tasks and (now - self._shown > _REFRESH or step == self.max_steps):
            self._shown = now  # reading the loss waits for the device, so not at every step
            loss_text = f"loss {float(self._loss):.3f}"
            self._bar.update(self._bar.task_ids[0], completed=step, loss=loss_text, dev=self._dev)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the dev result."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        found = {name: trainer.callback_metrics.get(f"dev/{name}") for name in ("accuracy", "loss")}
        parts = [f"dev {name} {float(value):.3f}" for name, value in found.items() if value is not None]
        self._dev = parts[0] if parts else ""
        if not self._bar.tasks:
            done = trainer.global_step
            rate = (done - self._first_step) / max(time.monotonic() - self._started, 1e-9)
            left = (self.max_steps - done) / max(rate, 1e-9)
            loss = "" if self._loss is None else f"  loss {float(self._loss):.3f}"
            shown = f"step {done}/{self.max_steps}{loss}  {'  '.join(parts)}  {rate:.2f} steps/s  {left:.0f} s left"
            say(self.console, shown)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: object = None) -> None:
        """Close the bar."""
        if self._bar.tasks:
            self._bar.stop()

    on_exception = on_train_end
