"""The processes of one run and their devices: what starts them, their ranks, and checks that they agree.

srun, torchrun or Lightning itself starts them; which is chosen here, never guessed by Lightning: it takes any shell
with SLURM_NTASKS set for one task of an srun, and a run started by hand inside an allocation then waits for ranks that
nobody starts. torchrun and srun start all ranks at once, so they meet before there is a run directory. Lightning's own
launcher starts the others when rank 0 is about to train; its children find the directory in an environment variable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from promptcomp.config import ConfigError, flat
from promptcomp.errors import Exit, RankLost
from promptcomp.experiment import Experiment, TrainerConfig
from promptcomp.language_model import LanguageModelConfig
from promptcomp.run.configured import PLACES

T = TypeVar("T")
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "Timed out waiting", "gloo", "NCCL", "Socket Timeout")


def started_by_srun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several tasks of an srun.

    A batch script and an interactive shell are one task; what is started by hand there starts its own processes.
    """
    several = int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    # the job script names the launcher: one task may be a whole run
    return "SLURM_PROCID" in environment and (several or environment.get("PROMPTCOMP_LAUNCHER") == "slurm")


def started_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """The global rank that whoever started this process gave it; None: nobody did (this process may start others)."""
    if "RANK" in environment:
        return int(environment["RANK"])
    if "LOCAL_RANK" in environment:  # started by Lightning beside rank 0, which has none of these variables
        return int(environment["LOCAL_RANK"]) or 1
    return int(environment["SLURM_PROCID"]) if started_by_srun(environment) else None


def cluster_environment() -> ClusterEnvironment:
    """The environment to give to the trainer as a plugin; `device_count` holds it against the configuration.

    Raises:
        ConfigError: srun was started with --ntasks alone.
    """
    if TorchElasticEnvironment.detect():  # torchrun, also within a SLURM job
        return TorchElasticEnvironment()
    if started_by_srun():
        try:
            return SLURMEnvironment(auto_requeue=False)  # its handler saves within a signal: ranks out of step wait
        except RuntimeError as error:  # --ntasks without --ntasks-per-node
            raise ConfigError(" ".join(str(error).split())) from None
    return LightningEnvironment()


def accelerator_of(config: TrainerConfig) -> str:
    """ "auto" is a GPU, else Apple's, else the CPU; fsdp has no use for Apple's."""
    if config.accelerator != "auto":
        return config.accelerator
    if torch.cuda.is_available():
        return "gpu"
    return "mps" if torch.backends.mps.is_available() and config.strategy != "fsdp" else "cpu"


def device_of(config: TrainerConfig) -> torch.device:
    """The device of work that one process does alone.

    Raises:
        ConfigError: this machine has none of the kind that is asked for.
    """
    accelerator = accelerator_of(config)
    _present(accelerator)
    return torch.device(accelerator.replace("gpu", "cuda"))


def _present(accelerator: str) -> int:
    """How many of these this machine has; of CPUs, one.

    Raises:
        ConfigError: none.
    """
    kind = {"mps": torch.backends.mps, "gpu": torch.cuda}.get(accelerator)
    present = torch.cuda.device_count() if accelerator == "gpu" else 1
    if kind is not None and not (present and kind.is_available()):
        raise ConfigError(f"trainer.accelerator={accelerator}: this machine has none; use trainer.accelerator=cpu")
    return present


def device_count(config: TrainerConfig) -> int:
    """Devices of this machine that the run uses; "auto": one for each process that was started, else all GPUs.

    Raises:
        ConfigError: there are no such devices, not as many, or not as many as processes.
    """
    accelerator, started = accelerator_of(config), _started_here(config)
    devices = started if started is not None else config.devices
    if accelerator == "cpu":
        return 1 if devices == "auto" else devices
    present = _present(accelerator)
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


def check_attention(experiment: Experiment) -> None:
    """
    Raises:
        ConfigError: an attention code cannot be trained through on the devices.
    """
    others = {f"method.{key}": each for key, each in experiment.method if isinstance(each, LanguageModelConfig)}
    for name, lm in {"lm": experiment.lm, **others}.items():
        if lm.attn_implementation == "flex_attention" and accelerator_of(experiment.trainer) != "gpu":
            raise ConfigError(
                f"{name}.attn_implementation=flex_attention: torch trains through it on GPUs only; use sdpa or eager"
            )


def _started_here(config: TrainerConfig) -> int | None:
    """Processes that torchrun or srun has started on this machine, as the configuration must say; None: neither did."""
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


def is_rank_zero() -> bool:
    """Whether this process is the first of its run (it may be about to start the others)."""
    return started_rank() in (None, 0)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks that have met; one process alone where nobody else was started."""

    rank: int = 0
    world_size: int = 1

    def agreed(self, work: Callable[[], T]) -> T:
        """Do something on every rank; a mistake that one finds ends them all.

        Raises:
            ConfigError: on every rank, if one raised it.
        """
        result: T | ConfigError
        try:
            result = work()
        except ConfigError as error:
            result = error
        for each in self._gathered(result if isinstance(result, ConfigError) else None):
            if each is not None:
                raise each
        return result  # type: ignore[return-value]

    def once(self, work: Callable[[], T]) -> T:
        """Do something on rank 0 and have its result everywhere.

        Raises:
            ConfigError: on every rank, if rank 0 raised it.
        """
        result = self.agreed(lambda: work() if self.rank == 0 else None)
        found: T = self._gathered(result)[0]
        return found

    def check_same(self, experiment: Experiment) -> None:
        """
        Raises:
            ConfigError: on every rank: their configurations differ (other overrides, other files); names the first key.
        """
        ours = flat(experiment.model_dump(mode="json", exclude=set(PLACES)))
        trees = self._gathered({key: json.dumps(value) for key, value in ours.items()})
        for rank, other in enumerate(trees):
            if differing := sorted(k for k in trees[0].keys() | other.keys() if trees[0].get(k) != other.get(k)):
                key, more = differing[0], len(differing) - 1
                also = f" (and {more} more keys differ)" if more else ""
                raise ConfigError(
                    f"the processes of this run have different configurations: {key} is {trees[0].get(key)} on rank 0 "
                    f"and {other.get(key)} on rank {rank}{also}; give all of them the same file and overrides"
                )

    def _gathered(self, value: Any) -> list[Any]:
        if self.world_size == 1:
            return [value]
        every: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(every, value)
        return every


def join_group(config: TrainerConfig) -> Ranks:
    """Meet the ranks that torchrun or srun has started; elsewhere this process is alone.

    Raises:
        ConfigError: the configuration does not fit what was started.
    """
    if "RANK" not in os.environ and not started_by_srun():
        return Ranks()
    device_count(config)
    environment = cluster_environment()
    rank, world_size = environment.global_rank(), environment.world_size()
    if world_size > 1 and not torch.distributed.is_initialized():
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        backend = "gloo"
        if accelerator_of(config) == "gpu":
            torch.cuda.set_device(environment.local_rank())
            backend = "cpu:gloo,cuda:nccl"
        torch.distributed.init_process_group(
            backend, rank=rank, world_size=world_size, timeout=timedelta(seconds=config.timeout_seconds)
        )
    return Ranks(rank, world_size) if world_size > 1 else Ranks()


def leave_group() -> None:
    """Destroy the process group, on all ranks at once: rank 0 continues alone."""
    if torch.distributed.is_initialized():
        if torch.distributed.get_world_size() > 1:
            torch.distributed.barrier()
        torch.distributed.destroy_process_group()


class SameExperiment(L.Callback):
    """Ends the run on every rank if their configurations differ."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare, before any model is opened."""
        Ranks(trainer.global_rank, trainer.world_size).check_same(self._experiment)


@contextmanager
def noticing_lost_ranks(world_size: int, code: Callable[[], int] = lambda: Exit.CRASHED) -> Iterator[None]:
    """
    Args:
        world_size: processes of the run.
        code: asked for the exit code of the process that has ended, if that can be known.

    Raises:
        RankLost: another process of the run has ended or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        distributed = (torch.distributed.DistBackendError, torch.distributed.DistNetworkError)
        reason = " ".join(str(error).split())
        if world_size > 1 and (isinstance(error, distributed) or any(word in reason for word in _LOST)):
            raise RankLost(
                "another process of this run has ended or does not answer; what it printed says why. The run is kept "
                f"up to its last checkpoint: continue it with 'promptcomp fit --resume RUN' ({reason[:200]})",
                code(),
            ) from None
        raise
