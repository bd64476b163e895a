"""Lightning callbacks and the logger of every run: step series, saving between steps, a clean stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from promptcomp.run.run_directory import MetricsFile, RunDirectory
from promptcomp.stopping import StopSignals, is_preemption


class MetricsLogger(Logger):
    """Writes what the modules log to metrics.csv, one row a step."""

    def __init__(self, run: RunDirectory, resumed_step: int) -> None:
        super().__init__()
        self._file = MetricsFile(run.metrics)
        if self._file.rows:
            self._file.truncate(resumed_step)
        self._save_dir = str(run.path)

    @property
    def name(self) -> str:
        """Lightning asks for one."""
        return "metrics"

    @property
    def version(self) -> str:
        """Lightning asks for one."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return self._save_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsFile:
        """The file itself."""
        return self._file

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row; Lightning counts steps from 0, people from 1."""
        values = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        if values:
            self._file.append((step or 0) + 1, values)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml is in the run directory."""


class Stopped(Exception):
    """A run that a signal has ended; its state is in last.ckpt."""

    def __init__(self, step: int, preempted: bool = False) -> None:
        super().__init__(f"{'made room' if preempted else 'stopped'} after step {step}")
        self.step = step
        self.preempted = preempted


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
        self._process = os.getpid()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the handlers (again: Lightning puts one on SIGTERM that communicates, which ranks may wait in).

        Raises:
            Stopped: a SIGTERM came just before.
        """
        self._process = os.getpid()
        if trainer.received_sigterm:  # Lightning's own handler took it a moment ago
            raise Stopped(trainer.global_step)
        for number in {*self.signals, *StopSignals.numbers()}:
            handler = self._stop.handle if is_preemption(number) else self._handle
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
        _log_right_steps(trainer)
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
        for number, handler in self._previous.items():
            signal.signal(number, handler)
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


def _log_right_steps(trainer: L.Trainer) -> None:
    """Before a step: log by the number of steps that were done. Lightning has a count of its own for this, and counts a
    step twice when it resumes from a checkpoint written right after a dev evaluation."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
