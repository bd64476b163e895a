"""The Lightning trainer of a run: callbacks, strategy, precision, devices."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.strategies import Strategy

from promptcomp.checkpoints.checkpoint_files import existing, step_of
from promptcomp.checkpoints.saving import AtomicCheckpoints, BestCheckpoint
from promptcomp.config import ConfigError
from promptcomp.datamodules.base import ContextDataModule
from promptcomp.experiment import Experiment, TrainerConfig
from promptcomp.run.callbacks import MetricsLogger, SaveBetweenSteps
from promptcomp.run.cluster_environment import cluster_environment, started_rank
from promptcomp.run.devices import accelerator_of, check_precision, device_count
from promptcomp.run.launching import WatchfulDDP, WatchfulFSDP
from promptcomp.run.progress import TrainingProgress
from promptcomp.run.ranks import SameExperiment
from promptcomp.run.run_directory import RunDirectory


def make_trainer(
    experiment: Experiment, run: RunDirectory, datamodule: ContextDataModule, progress: TrainingProgress, resume: bool
) -> L.Trainer:
    """The Lightning trainer of a run.

    Raises:
        ConfigError: a device or a combination of options that this machine does not have.
    """
    config = experiment.trainer
    _check(config)
    has_dev = "dev" in datamodule.eval_splits
    callbacks: list[Callback] = [SameExperiment(experiment), SaveBetweenSteps(run, config.checkpoint_every), progress]
    if has_dev:
        monitor, mode = monitor_of(config, datamodule)
        callbacks.append(BestCheckpoint(run.best, monitor, mode))
        if config.patience is not None:
            callbacks.append(EarlyStopping(monitor, mode=mode, patience=config.patience))
    elif config.patience is not None:
        raise ConfigError("trainer.patience needs a dev split to look at, and this data has none; set it to null")
    resumed_step = 0
    if resume and (checkpoint := existing(run.last)):
        resumed_step = step_of(checkpoint)
    return L.Trainer(
        accelerator=accelerator_of(config),
        devices=device_count(config),
        num_nodes=config.num_nodes,
        strategy=make_strategy(config),
        logger=MetricsLogger(run, resumed_step),
        callbacks=callbacks,
        plugins=[AtomicCheckpoints(), cluster_environment(config.devices, config.num_nodes)],
        default_root_dir=run.path,
        **loop_settings(config, has_dev),
    )


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


def loop_settings(config: TrainerConfig, has_dev: bool) -> dict[str, Any]:
    """What Lightning's trainer is told of the steps, wherever it keeps what comes out of them."""
    return {
        "precision": config.precision,
        "max_steps": config.max_steps,
        "accumulate_grad_batches": config.accumulate,
        "val_check_interval": config.eval_every * config.accumulate,
        "check_val_every_n_epoch": None,
        "limit_val_batches": None if has_dev else 0,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 10,
        "use_distributed_sampler": False,  # the sampler divides the work itself
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def make_strategy(config: TrainerConfig) -> Strategy | str:
    """One device alone needs no strategy; several hold copies (ddp) or parts (fsdp)."""
    world_size = device_count(config) * config.num_nodes
    timeout = timedelta(seconds=config.timeout_seconds)
    if config.strategy == "fsdp":
        return WatchfulFSDP(
            data_parallel_size=world_size,
            tensor_parallel_size=1,
            save_distributed_checkpoint=config.checkpoints == "sharded",
            timeout=timeout,
        )
    return WatchfulDDP(timeout) if config.strategy == "ddp" or world_size > 1 else "auto"


def _check(config: TrainerConfig) -> None:
    """
    Raises:
        ConfigError: several machines without a launcher, or arithmetic that the devices do not have.
    """
    check_precision(config)
    if config.num_nodes > 1 and started_rank() is None:
        raise ConfigError(
            f"trainer.num_nodes={config.num_nodes}: start the program on every machine with torchrun or srun "
            "(promptcomp fit ... --slurm), which tell the processes where the others are"
        )
