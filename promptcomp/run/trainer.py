"""The Lightning trainer of a run: callbacks, strategy, precision, devices."""

from __future__ import annotations

from datetime import timedelta

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.strategies import DDPStrategy, Strategy

from promptcomp.config import ConfigError
from promptcomp.datamodules.base import ContextDataModule
from promptcomp.experiment import Experiment, TrainerConfig
from promptcomp.lightning_modules.checkpoint_files import existing, step_of
from promptcomp.run.callbacks import MetricsLogger, SaveBetweenSteps
from promptcomp.run.checkpoints import AtomicCheckpoints
from promptcomp.run.cluster_environment import cluster_environment
from promptcomp.run.directory import RunDirectory
from promptcomp.run.progress import TrainingProgress
from promptcomp.run.ranks import SameExperiment
from promptcomp.run.selection import BestCheckpoint, monitor_of
from promptcomp.run.sharded import ShardedStrategy


def make_trainer(
    experiment: Experiment, run: RunDirectory, datamodule: ContextDataModule, progress: TrainingProgress, resume: bool
) -> L.Trainer:
    """The Lightning trainer of a run.

    Raises:
        ConfigError: a device or a combination of options that this machine does not have.
    """
    config = experiment.trainer
    has_dev = "dev" in datamodule.eval_splits
    callbacks: list[Callback] = [SameExperiment(experiment), SaveBetweenSteps(run, config.checkpoint_every), progress]
    if has_dev:
        monitor, mode = monitor_of(config, datamodule)
        callbacks.append(BestCheckpoint(run, monitor, mode))
        if config.patience is not None:
            callbacks.append(EarlyStopping(monitor, mode=mode, patience=config.patience))
    elif config.patience is not None:
        raise ConfigError("trainer.patience needs a dev split to look at, and this data has none; set it to null")
    resumed_step = 0
    if resume and (checkpoint := existing(run.last)):
        resumed_step = step_of(checkpoint)
    return L.Trainer(
        accelerator=_accelerator(config),
        devices=device_count(config),
        num_nodes=config.num_nodes,
        strategy=make_strategy(config),
        precision=config.precision,
        max_steps=config.max_steps,
        accumulate_grad_batches=config.accumulate,
        val_check_interval=config.eval_every * config.accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=None if has_dev else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        logger=MetricsLogger(run, resumed_step),
        callbacks=callbacks,
        plugins=[AtomicCheckpoints(), cluster_environment(config.devices, config.num_nodes)],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run.path,
    )


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
    if config.strategy == "ddp" or world_size > 1:
        return DDPStrategy(timeout=timeout, gradient_as_bucket_view=True)
    return "auto"


def _accelerator(config: TrainerConfig) -> str:
    """ "auto" is a GPU, else Apple's, else the CPU; fsdp has no use for Apple's."""
    if config.accelerator != "auto":
        return config.accelerator
    if torch.cuda.is_available():
        return "gpu"
    return "mps" if torch.backends.mps.is_available() and config.strategy != "fsdp" else "cpu"


def device_count(config: TrainerConfig) -> int:
    """Devices of this machine that the run uses; "auto": all GPUs, one process on CPU.

    Raises:
        ConfigError: there are no such devices, or not as many.
    """
    accelerator, devices = _accelerator(config), config.devices
    if accelerator == "cpu":
        return 1 if devices == "auto" else devices
    if accelerator == "mps":
        present = int(torch.backends.mps.is_available())
    else:
        present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not present:
        raise ConfigError(f"trainer.accelerator={accelerator}: this machine has none; use trainer.accelerator=cpu")
    wanted = present if devices == "auto" else devices
    if wanted > present:
        raise ConfigError(f"trainer.devices={wanted}, but this machine has {present}; use trainer.devices={present}")
    return wanted
