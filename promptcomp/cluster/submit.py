"""Submitting: a run directory with its configuration and a job script, handed to sbatch; arrays of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from promptcomp.cluster import slurm
from promptcomp.cluster.job_record import FOLDER, JobRecord, add_record, now
from promptcomp.cluster.profile import SlurmProfile
from promptcomp.cluster.script import Array, Job, render
from promptcomp.config import ConfigError, dump
from promptcomp.files import write_atomic

if TYPE_CHECKING:
    from promptcomp.experiment import Experiment


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that SLURM has taken."""

    id: str
    folder: Path
    """RUN/slurm."""

    @property
    def script(self) -> Path:
        """The script."""
        return self.folder / "job.sh"


def fit_job(run: Path, title: str, profile: SlurmProfile, overrides: Sequence[str] = ()) -> Job:
    """The job that starts (or continues) the run in a directory: every start is `fit --resume`."""
    run = run.absolute()
    return Job(
        name=f"pc-{run.name}",
        title=title,
        folder=run / FOLDER,
        words=("fit", "--resume", str(run), *overrides),
        tasks_per_node=profile.tasks,
    )


def planned_run(experiment: Experiment, run_dir: Path | None) -> Path:
    """The directory that a run would get."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return run_dir or Path(experiment.output_dir) / f"{experiment.title}-{stamp}"


def place(experiment: Experiment, profile: SlurmProfile) -> Experiment:
    """The experiment with devices and nodes as the profile has them.

    Raises:
        ConfigError: the configuration asks for others, or a step has less contexts than there are processes.
    """
    config, wanted = experiment.trainer, profile.tasks
    if config.devices not in ("auto", wanted):
        raise ConfigError(
            f"trainer.devices={config.devices}, but the profile starts {wanted} task(s) on each node; "
            f"set slurm.tasks_per_node={config.devices} or leave trainer.devices alone"
        )
    world = wanted * profile.nodes
    if config.batch_size < world:
        raise ConfigError(
            f"trainer.batch_size={config.batch_size} gives some of the {world} processes nothing to do; "
            f"use at least {world}"
        )
    changes: dict[str, object] = {"devices": wanted}
    if profile.gpus_per_node:
        if config.accelerator in ("cpu", "mps"):
            raise ConfigError(f"trainer.accelerator={config.accelerator}, but the profile asks for GPUs")
        changes["accelerator"] = "gpu"  # a node without one must not train on its CPU instead
    if config.num_nodes not in (1, profile.nodes):
        raise ConfigError(
            f"trainer.num_nodes={config.num_nodes}, but the profile asks for {profile.nodes}; "
            f"set slurm.nodes={config.num_nodes}"
        )
    changes["num_nodes"] = profile.nodes
    return experiment.model_copy(update={"trainer": config.model_copy(update=changes)})


def submit_fit(run: Path, title: str, profile: SlurmProfile, chosen: str, overrides: Sequence[str] = ()) -> Submission:
    """Write the job script of an existing run directory and submit it.

    Args:
        run: the run directory.
        title: for people, in the script.
        profile: what to ask for.
        chosen: what --slurm was given, for the record.
        overrides: of how the work is divided, for a run that was configured for other devices.

    Raises:
        ConfigError: sbatch is missing or refuses; the script stays.
    """
    return _submit(fit_job(run, title, profile, overrides), profile, chosen, "fit")


def submit_array(
    folder: Path,
    command_words: Sequence[str],
    count: int,
    max_parallel: int,
    profile: SlurmProfile,
    name: str,
    chosen: str = "default",
) -> str:
    """Submit an array of workers that share a folder; returns the array's job number.

    Each element has one node's resources and runs `promptcomp WORDS`. A worker that leaves with code 75 is requeued
    alone; signals reach it as USR1.

    Args:
        folder: job.sh, jobs.json and the logs go to FOLDER/slurm.
        command_words: words after `promptcomp`; the word `{worker}` stands for the element's number.
        count: elements.
        max_parallel: most of them at a time.
        profile: what each element asks for.
        name: the job's name.
        chosen: what --slurm was given, for the record.

    Raises:
        ConfigError: the profile asks for several nodes; sbatch is missing or refuses (the script stays).
    """
    job = array_job(folder, command_words, count, max_parallel, profile, name)
    return _submit(job, profile, chosen, "array").id


def array_job(
    folder: Path, command_words: Sequence[str], count: int, max_parallel: int, profile: SlurmProfile, name: str
) -> Job:
    """The job of `submit_array`, for `render` (a dry run).

    Raises:
        ConfigError: the profile asks for several nodes.
    """
    if profile.nodes > 1:
        raise ConfigError("a worker of an array has one node; set slurm.nodes=1 and more workers")
    return Job(
        name=name,
        title=f"{count} workers: promptcomp {' '.join(command_words)}",
        folder=folder.absolute() / FOLDER,
        words=tuple(command_words),
        tasks_per_node=1,
        array=Array(count, min(max_parallel, count)),
    )


def create_run(experiment: Experiment, run_dir: Path | None) -> Path:
    """A new run directory with the configuration that will run.

    Raises:
        ConfigError: the directory is not empty or cannot be made.
    """
    from promptcomp.run.run_directory import create

    run = create(Path(experiment.output_dir), experiment.title, run_dir)
    write_atomic(run.config, dump(experiment))
    return run.path


def _submit(job: Job, profile: SlurmProfile, chosen: str, kind: Literal["fit", "array"]) -> Submission:
    text = render(job, profile, Path.cwd())
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{job.folder}: cannot be made ({error.strerror})") from None
    write_atomic(job.script, text)
    try:
        number = slurm.submit(job.script)
    except slurm.SlurmError as error:
        raise ConfigError(f"{error}\nthe script is kept: {job.script}") from None
    record = JobRecord(id=number, kind=kind, submitted=now(), profile=chosen, command=job.words)
    add_record(job.folder, record)
    return Submission(number, job.folder)
