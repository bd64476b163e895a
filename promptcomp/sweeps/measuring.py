"""What a trial takes, measured: some training steps with the real trainer, some dev and some test batches.

This runs in a separate process (`promptcomp sweep measure`), so that its memory is given back and it may use several
devices as a trial does. The first steps are left out; what is read in parts is scaled up by the number of batches.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from rich.console import Console

from promptcomp.config import ConfigError, build, dump, read_yaml
from promptcomp.datamodules.context_module import ContextDataModule
from promptcomp.evaluation.memory_cost import synchronise
from promptcomp.experiment import Experiment
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.run.assess import assess
from promptcomp.run.callbacks import TrainingProgress
from promptcomp.run.opening import make_parts, quiet, set_threads
from promptcomp.run.run_directory import RunDirectory
from promptcomp.run.trainer import make_trainer

STEPS = 12
"""Steps at most; the first two do not count."""
_WARM_UP = 2
_SECONDS = 30.0
"""After so many seconds the remaining steps are left out (three are always made)."""
_DEV_BATCHES = 8
_TEST_SECONDS = 5.0
"""For each split."""
_NEVER = 1_000_000


@dataclass(frozen=True, slots=True)
class TrialSeconds:
    """Seconds of one trial's parts."""

    step: float
    """One optimiser step."""
    dev: float
    """One look at the dev split."""
    test: float
    """All test splits (without timing the method's cost and without rationales)."""
    start: float
    """Starting Python, reading data and weights."""
    peak_bytes: int
    """Most memory: of the GPU, or of the whole process on a CPU."""

    def trial(self, experiment: Experiment) -> float:
        """Seconds of a whole trial (early stopping not counted on)."""
        steps = experiment.trainer.max_steps
        return self.start + steps * self.step + steps // experiment.trainer.eval_every * self.dev + self.test


class MeasuringFailed(RuntimeError):
    """The measuring process ended without an answer."""


def measured(experiment: Experiment) -> TrialSeconds:
    """Measure an experiment in a process of its own.

    Raises:
        ConfigError: a mistake that a trial would end with too.
        MeasuringFailed: anything else went wrong there (out of memory, ...).
    """
    trainer = experiment.trainer
    if trainer.devices == "auto":  # a sweep's worker gives it one
        experiment = experiment.model_copy(update={"trainer": trainer.model_copy(update={"devices": 1})})
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "experiment.yaml"
        config.write_text(dump(experiment), encoding="utf-8")
        words = [sys.executable, "-m", "promptcomp", "sweep", "measure", str(config)]
        began = time.monotonic()
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        wall = time.monotonic() - began
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    last = lines[-1].removeprefix("error: ") if lines else "nothing was printed"
    if done.returncode == 2:
        raise ConfigError(last)
    if done.returncode:
        raise MeasuringFailed(f"exit code {done.returncode}: {last}")
    found = json.loads(done.stdout.splitlines()[-1])
    inside = found.pop("inside")
    return TrialSeconds(**found, start=max(0.0, wall - inside))


class _Clock(L.Callback):
    """Seconds of every optimiser step and of the dev batches; stops training when the time is up."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.dev = 0.0
        self._began = 0.0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with the dev batches."""
        self._began = _now(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The dev batches are done."""
        self.dev = _now(pl_module) - self._began

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with the steps."""
        self.marks = [_now(pl_module)]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A micro-batch is done."""
        if trainer.global_step < len(self.marks):
            return
        self.marks.append(_now(pl_module))
        late = self.marks[-1] - self.marks[0] > _SECONDS and len(self.marks) > _WARM_UP + 1
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(late, all=False) or trainer.should_stop

    @property
    def step(self) -> float:
        """Seconds of a step: the median of those after the first two."""
        seconds = [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]
        return median(seconds[_WARM_UP:] or seconds[-1:] or [0.0])


def _now(module: L.LightningModule) -> float:
    synchronise(module.device)
    return time.monotonic()


class _Enough(Exception):
    """The time for a split is up."""


def print_measured(config: Path) -> None:
    """Measure here the seconds of a step, of dev and of test, and print one line of JSON (rank 0).

    Raises:
        ConfigError: a mistake in the experiment or its data.
    """
    experiment = build(Experiment, read_yaml(config), source=str(config))
    with tempfile.TemporaryDirectory() as folder, quiet():
        set_threads(experiment)
        L.seed_everything(experiment.seed, verbose=False)
        datamodule, module = make_parts(experiment)
        began, clock, batches = time.monotonic(), _Clock(), 0
        if module.method.trains and experiment.trainer.max_steps:
            trainer = _trainer(experiment, RunDirectory(Path(folder)), datamodule, clock)
            if "dev" in datamodule.eval_splits:
                module.watch(datamodule.examples("dev"))
                batches = len(datamodule.eval_dataloader("dev"))
            trainer.fit(module, datamodule=datamodule)
            if not trainer.is_global_zero:
                return
        else:
            module.configure_model()
        test = _test(experiment, module, datamodule)
    dev, inside = clock.dev * max(1.0, batches / _DEV_BATCHES), time.monotonic() - began
    found = {"step": clock.step, "dev": dev, "test": test, "peak_bytes": _peak_bytes(), "inside": inside}
    print(json.dumps(found))


def _trainer(experiment: Experiment, run: RunDirectory, datamodule: ContextDataModule, clock: _Clock) -> L.Trainer:
    """A trial's trainer that makes a few steps, and dev batches before them."""
    section = experiment.trainer
    never = {"eval_every": _NEVER, "checkpoint_every": _NEVER, "loggers": ()}
    short = section.model_copy(update={"max_steps": STEPS, **never})
    progress = TrainingProgress(Console(quiet=True), STEPS)
    trainer = make_trainer(experiment.model_copy(update={"trainer": short}), run, datamodule, progress, False)
    trainer.num_sanity_val_steps = _DEV_BATCHES if "dev" in datamodule.eval_splits else 0
    trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    return trainer


def _test(experiment: Experiment, module: CompressionModule, datamodule: ContextDataModule) -> float:
    """Seconds of all test splits; batches that a few seconds do not hold take what those after the first took."""
    module.eval()
    total = 0.0
    few = experiment.evaluation.model_copy(update={"bootstrap_resamples": 100})
    for split in experiment.evaluation.splits or datamodule.test_splits:
        marks, left = [time.monotonic()], [0]

        def look(done: int, batches: int, marks: list[float] = marks, left: list[int] = left) -> None:
            marks.append(time.monotonic())
            left[0] = batches - done
            if marks[-1] - marks[0] > _TEST_SECONDS and len(marks) > _WARM_UP and left[0]:
                raise _Enough

        with contextlib.suppress(_Enough):
            assess(module, datamodule, split, few, on_batch=look)
        each = (marks[-1] - marks[1]) / (len(marks) - 2) if len(marks) > _WARM_UP else 0.0
        total += time.monotonic() - marks[0] + left[0] * each
    return total


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
