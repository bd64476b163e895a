"""The processes of one run: who they are, and that they agree before they train.

torchrun and srun start all ranks at once, so they meet before there is a run directory. Lightning's own launcher starts
the others when rank 0 is about to train; its children find the directory in an environment variable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import lightning as L
import torch

from promptcomp.config import ConfigError, flat
from promptcomp.errors import Exit, RankLost
from promptcomp.experiment import Experiment, TrainerConfig
from promptcomp.run.cluster_environment import cluster_environment, started_by_srun, started_rank
from promptcomp.run.devices import accelerator_of, device_count
from promptcomp.run.division import PLACES

T = TypeVar("T")
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "Timed out waiting", "gloo", "NCCL", "Socket Timeout")


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
        result: T | None = None
        problem: ConfigError | None = None
        try:
            result = work()
        except ConfigError as error:
            problem = error
        for each in self._gathered(problem):
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
            differing = sorted(key for key in trees[0].keys() | other.keys() if trees[0].get(key) != other.get(key))
            if differing:
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


def join(config: TrainerConfig) -> Ranks:
    """Meet the ranks that torchrun or srun has started; elsewhere this process is alone.

    Raises:
        ConfigError: the configuration does not fit what was started.
    """
    if "RANK" not in os.environ and not started_by_srun():
        return Ranks()
    device_count(config)
    environment = cluster_environment(config.devices, config.num_nodes)
    rank, world_size = environment.global_rank(), environment.world_size()
    if world_size == 1:
        return Ranks()
    if not torch.distributed.is_initialized():
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        backend = "gloo"
        if accelerator_of(config) == "gpu":
            torch.cuda.set_device(environment.local_rank())
            backend = "cpu:gloo,cuda:nccl"
        torch.distributed.init_process_group(
            backend, rank=rank, world_size=world_size, timeout=timedelta(seconds=config.timeout_seconds)
        )
    return Ranks(rank, world_size)


def part() -> None:
    """Leave the group, all ranks at once: what follows is rank 0's alone."""
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
        if world_size > 1 and (isinstance(error, distributed) or any(word in str(error) for word in _LOST)):
            reason = " ".join(str(error).split())[:200]
            raise RankLost(
                "another process of this run has ended or does not answer; what it printed says why. The run is kept "
                f"up to its last checkpoint: continue it with 'promptcomp fit --resume RUN' ({reason})",
                code(),
            ) from None
        raise
