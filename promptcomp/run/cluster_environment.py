"""Who starts the processes of a run: srun, torchrun, or Lightning itself. Chosen here, never guessed by Lightning.

Lightning takes any shell with SLURM_NTASKS set for one task of an srun: a run started by hand inside an allocation then
waits for ranks that nobody starts, or trains with one process where several were asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from promptcomp.config import ConfigError


def started_by_srun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several tasks of an srun.

    A batch script and an interactive shell are one task; what is started by hand there starts its own processes.
    """
    if environment.get("PROMPTCOMP_LAUNCHER") == "slurm":  # the job script says so: one task may be a whole run
        return "SLURM_PROCID" in environment
    return "SLURM_PROCID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def started_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """The global rank that whoever started this process gave it; None: nobody did (this process may start others)."""
    if "RANK" in environment:
        return int(environment["RANK"])
    if "LOCAL_RANK" in environment:  # started by Lightning beside rank 0, which has none of these variables
        return int(environment["LOCAL_RANK"]) or 1
    return int(environment["SLURM_PROCID"]) if started_by_srun(environment) else None


def cluster_environment(devices: int | str, num_nodes: int = 1) -> ClusterEnvironment:
    """The environment to give to the trainer as a plugin.

    Raises:
        ConfigError: srun has started another number of tasks than the configuration says.
    """
    if TorchElasticEnvironment.detect():  # torchrun, also within a SLURM job
        return TorchElasticEnvironment()
    if started_by_srun():
        return _slurm(devices, num_nodes)
    for other in (LSFEnvironment, MPIEnvironment):
        if other.detect():
            return other()
    return LightningEnvironment()


def _slurm(devices: int | str, num_nodes: int) -> SLURMEnvironment:
    tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", "1"))
    if devices != "auto" and int(devices) * num_nodes != tasks:
        raise ConfigError(
            f"srun has started {tasks} tasks on {nodes} node(s), but trainer.devices={devices} and "
            f"{num_nodes} node(s) make {int(devices) * num_nodes}; set trainer.devices={tasks // nodes}"
        )
    if num_nodes != nodes:
        raise ConfigError(f"the job has {nodes} nodes, but the configuration says {num_nodes}")
    try:
        return SLURMEnvironment(auto_requeue=False)  # its handler saves within a signal: ranks out of step wait forever
    except RuntimeError as error:  # --ntasks without --ntasks-per-node
        raise ConfigError(" ".join(str(error).split())) from None
