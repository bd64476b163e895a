"""Which devices of this machine a run uses."""

from __future__ import annotations

import os

import torch

from promptcomp.config import ConfigError
from promptcomp.experiment import TrainerConfig
from promptcomp.run.cluster_environment import started_by_srun


def accelerator_of(config: TrainerConfig) -> str:
    """ "auto" is a GPU, else Apple's, else the CPU; fsdp has no use for Apple's."""
    if config.accelerator != "auto":
        return config.accelerator
    if torch.cuda.is_available():
        return "gpu"
    return "mps" if torch.backends.mps.is_available() and config.strategy != "fsdp" else "cpu"


def device_of(config: TrainerConfig) -> torch.device:
    """The device of work that one process does alone."""
    accelerator = accelerator_of(config)
    return torch.device({"gpu": "cuda"}.get(accelerator, accelerator))


def device_count(config: TrainerConfig) -> int:
    """Devices of this machine that the run uses; "auto": one for each process that was started, else all GPUs.

    Raises:
        ConfigError: there are no such devices, not as many, or not as many as processes.
    """
    accelerator, started = accelerator_of(config), _started_here(config)
    devices = started if started is not None else config.devices
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


def check_precision(config: TrainerConfig) -> None:
    """
    Raises:
        ConfigError: the arithmetic does not exist on the devices.
    """
    if config.precision == "16-mixed" and accelerator_of(config) == "cpu":
        raise ConfigError("trainer.precision=16-mixed needs a GPU; use bf16-mixed or 32-true on the CPU")


def _started_here(config: TrainerConfig) -> int | None:
    """Processes that torchrun or srun has started on this machine; None: neither did.

    Raises:
        ConfigError: the configuration says other numbers.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        who, world_size = "torchrun", int(os.environ["WORLD_SIZE"])
        here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    elif started_by_srun():
        who, world_size = "srun", int(os.environ["SLURM_NTASKS"])
        here = world_size // int(os.environ.get("SLURM_NNODES", "1"))
    else:
        return None
    nodes = world_size // here
    if config.devices not in ("auto", here) or config.num_nodes != nodes:
        raise ConfigError(
            f"{who} has started {here} process(es) on each of {nodes} machine(s), but trainer.devices={config.devices} "
            f"and trainer.num_nodes={config.num_nodes}; set trainer.devices={here} trainer.num_nodes={nodes}"
        )
    return here
