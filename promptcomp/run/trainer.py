"""The Lightning trainer of a run: callbacks, strategy, precision, devices, and processes that watch each other.

Lightning's launcher kills all processes without a word when one that it has started dies, and leaves them alone when
the first one dies; here the others end with a message.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning as L
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from promptcomp.checkpoints.checkpoint_files import step_of
from promptcomp.checkpoints.places import existing
from promptcomp.checkpoints.saving import AtomicCheckpoints, BestCheckpoint, ShardedStrategy
from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import ContextDataModule
from promptcomp.errors import Exit, known_code
from promptcomp.experiment import Experiment, TrainerConfig
from promptcomp.run.callbacks import MetricsLogger, SaveBetweenSteps, TakingUp, TrainingProgress, open_loggers
from promptcomp.run.processes import (
    SameExperiment,
    accelerator_of,
    check_attention,
    check_precision,
    cluster_environment,
    device_count,
    started_rank,
)
from promptcomp.run.run_directory import RunDirectory, told_to_children

_LOOK_EVERY = 0.5
"""Seconds."""
_PATIENCE = 5.0
"""Seconds that a process has to end by itself, with its own message, after another one has died."""


def make_trainer(
    experiment: Experiment,
    run: RunDirectory,
    datamodule: ContextDataModule,
    progress: TrainingProgress,
    resume: bool,
    saves: bool = True,
) -> L.Trainer:
    """The Lightning trainer of a run; without `saves` it leaves the step series behind and no checkpoint.

    Raises:
        ConfigError: devices, arithmetic or a combination of options that this machine does not have, or several
            machines without a launcher.
    """
    config = experiment.trainer
    check_precision(config)
    check_attention(experiment)
    if config.num_nodes > 1 and started_rank() is None:
        raise ConfigError(
            f"trainer.num_nodes={config.num_nodes}: start the program on every machine with torchrun or srun "
            "(promptcomp fit ... --slurm), which tell the processes where the others are"
        )
    monitor = monitor_of(config, datamodule)
    saving = [SaveBetweenSteps(run, config.checkpoint_every)] if saves else []
    callbacks: list[Callback] = [SameExperiment(experiment), TakingUp(), *saving, progress]
    if monitor is not None:
        name, mode = monitor
        if saves:
            callbacks.append(BestCheckpoint(run.best, name, mode))
        if config.patience is not None:
            callbacks.append(EarlyStopping(name, mode=mode, patience=config.patience))
    checkpoint = existing(run.last) if resume else None
    resumed_step = 0 if checkpoint is None else step_of(checkpoint)
    trainer = L.Trainer(
        accelerator=accelerator_of(config),
        devices=device_count(config),
        num_nodes=config.num_nodes,
        strategy=make_strategy(config),
        logger=MetricsLogger(run, resumed_step, partial(open_loggers, experiment, run)),
        callbacks=callbacks,
        plugins=[AtomicCheckpoints(), cluster_environment()],
        default_root_dir=run.path,
        enable_checkpointing=saves,
        precision=config.precision,
        max_steps=config.max_steps,
        accumulate_grad_batches=config.accumulate,
        val_check_interval=config.eval_every * config.accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=0 if monitor is None else None,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        use_distributed_sampler=False,  # the sampler divides the work itself
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    strategy: Any = trainer.strategy
    if isinstance(trainer.strategy, ParallelStrategy):  # in place of the launcher that Lightning has just made, if any
        strategy._launcher = WatchfulLauncher(strategy.cluster_environment, strategy.num_processes, strategy.num_nodes)
    return trainer


def monitor_of(config: TrainerConfig, datamodule: ContextDataModule) -> tuple[str, Literal["max", "min"]] | None:
    """The logged dev result that weights are chosen by, and which of its ends is the better one; None: no dev split.

    Raises:
        ConfigError: the dev split has no such result, or there is none and a setting needs it.
    """
    if "dev" not in datamodule.eval_splits:
        if config.patience is not None:
            raise ConfigError("trainer.patience needs a dev split, and this data has none; set it to null")
        if config.select_by != "auto":
            raise ConfigError("trainer.select_by needs a dev split, and this data has none; set it to auto")
        return None
    has_options = datamodule.has_options("dev")
    wanted = config.select_by
    if wanted == "exact_match" and all(len(example.options) > 1 for example in datamodule.examples("dev")):
        wanted = "auto"
    if wanted == "auto":
        wanted = "accuracy" if has_options else "loss"
    if wanted == "accuracy" and not has_options:
        raise ConfigError("trainer.select_by = 'accuracy': the dev split has no options; use loss or exact_match")
    return f"dev/{wanted}", "min" if wanted == "loss" else "max"


def make_strategy(config: TrainerConfig) -> Strategy | str:
    """One device alone needs no strategy; several hold copies (ddp) or parts (fsdp)."""
    world_size = device_count(config) * config.num_nodes
    timeout = timedelta(seconds=config.timeout_seconds)
    if config.strategy == "fsdp":
        return ShardedStrategy(
            data_parallel_size=world_size,
            tensor_parallel_size=1,
            save_distributed_checkpoint=config.checkpoints == "sharded",
            timeout=timeout,
        )
    ddp = DDPStrategy(timeout=timeout, gradient_as_bucket_view=True)
    return ddp if config.strategy == "ddp" or world_size > 1 else "auto"


class WatchfulLauncher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine; each is watched by the first one, and watches it."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the others (on rank 0), begin to watch, and go on."""
        environment = self.cluster_environment
        if isinstance(environment, LightningEnvironment):
            if environment.creates_processes_externally:
                _Watch().start()
            else:
                with told_to_children(Path(trainer.default_root_dir)):
                    self._call_children_scripts()
                _Watch(self.procs).start()
        return function(*args, **kwargs)


def code_of_lost(launcher: object) -> int:
    """The exit code of the first process that a launcher has started and that has failed, waited for; 1: none has."""
    if not isinstance(launcher, WatchfulLauncher):
        return Exit.CRASHED
    watch, deadline = _Watch(launcher.procs), time.monotonic() + _PATIENCE
    while watch.problem() is None and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY)
    return watch.code or Exit.CRASHED


class _Watch:
    """Looks whether a process of the run has ended, and then ends this one with a message.

    Args:
        children: the processes that this one has started; empty: it looks for the one that has started it.
    """

    def __init__(self, children: Sequence[subprocess.Popen[Any]] = ()) -> None:
        self._children, self._parent, self.code = children, os.getppid(), 0

    def start(self) -> None:
        """Look from now on, in a thread."""
        threading.Thread(target=self._look, daemon=True, name="rank-watch").start()

    def problem(self) -> str | None:
        """What has happened to another process."""
        if not self._children:
            return None if os.getppid() == self._parent else "the first process of this run has ended"
        for number, child in enumerate(self._children, start=1):
            if code := child.poll():
                self.code = code
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return f"process {number} of this run {how}"
        return None

    def _look(self) -> NoReturn:
        while (problem := self.problem()) is None:
            time.sleep(_LOOK_EVERY)
        time.sleep(_PATIENCE)  # most of the time the process notices by itself, and this thread ends with it
        for child in self._children:  # they wait for a process that will not answer
            if child.poll() is None:
                child.kill()
        print(f"error: {problem}; continue the run with 'promptcomp fit --resume RUN'", file=sys.stderr, flush=True)
        os._exit(known_code(self.code))
