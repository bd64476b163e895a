"""`--slurm [PROFILE]`: an option with an optional value, and what `fit` and `sweep` do with it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from promptcomp.commands.common import show
from promptcomp.errors import ConfigError, command

if TYPE_CHECKING:
    from rich.console import Console

    from promptcomp.cluster.profile import SlurmProfile
    from promptcomp.cluster.script import Job
    from promptcomp.sweeps.sweep_config import SweepConfig

SlurmOption = Annotated[
    str | None,
    typer.Option(
        "--slurm",
        metavar="[PROFILE]",
        help="Submit to SLURM with a profile (NAME or FILE.yaml:NAME; alone: default); slurm.KEY=VALUE overrides it.",
    ),
]


class SlurmCommand(TyperCommand):
    """A command whose `--slurm` may stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give `--slurm` its default where an option, an override or nothing follows."""
        return super().parse_args(ctx, with_default_profile(args))


def with_default_profile(args: Sequence[str]) -> list[str]:
    """The words with `default` after every `--slurm` that stands alone."""
    found: list[str] = []
    for i, word in enumerate(args):
        found.append(word)
        following = args[i + 1] if i + 1 < len(args) else "-"
        if word == "--slurm" and (following.startswith("-") or "=" in following):
            found.append("default")
    return found


def refuse_overrides(words: Sequence[str]) -> None:
    """`slurm.key=value` without --slurm would be taken for a key of the experiment.

    Raises:
        ConfigError: there is one.
    """
    ours = [word for word in words if word.startswith("slurm.")]
    if ours:
        raise ConfigError(f"{ours[0]!r} is for a job on a cluster; add --slurm")


def load_for_submission(chosen: str, words: Sequence[str]) -> tuple[SlurmProfile, list[str]]:
    """The profile with its overrides, and the other words. Nodes without internet: nothing here asks the hub either."""
    from promptcomp.cluster.profile import load_profile, split_overrides

    ours, others = split_overrides(words)
    profile = load_profile(chosen, ours)
    if profile.offline:  # before the hub's library is imported: it reads them once
        os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
    return profile, others


def submit_new(
    chosen: str,
    method: str | None,
    config: Path | None,
    words: Sequence[str],
    run_dir: Path | None,
    dry_run: bool,
    console: Console,
    as_json: bool,
) -> None:
    """`fit ... --slurm`: check everything that can be checked here, make the run directory, submit."""
    profile, others = load_for_submission(chosen, words)
    from promptcomp import experiment as experiments
    from promptcomp.cluster.checks import check_parts
    from promptcomp.cluster.submit import create_run, fit_job, place, planned_run, submit_fit

    experiment = place(experiments.load(method, config, others), profile)
    check_parts(experiment, profile)
    title = f"{experiment.method.name} on {experiment.data.name} with {experiment.lm.path}, seed {experiment.seed}"
    if dry_run:
        job = fit_job(planned_run(experiment, run_dir), title, profile)
        show_plan(job, profile, console, as_json)
        return
    run = create_run(experiment, run_dir)
    try:
        done = submit_fit(run, title, profile, chosen)
    except ConfigError as error:
        raise ConfigError(f"{error}; to try again: {command('fit', '--resume', run, '--slurm', chosen)}") from None
    _tell(done.id, run, done.script, console, as_json)


def submit_again(chosen: str, run: Path, words: Sequence[str], dry_run: bool, console: Console, as_json: bool) -> None:
    """`fit --resume RUN --slurm`: submit the continuation of a run, on as many processes as the profile has.

    Raises:
        ConfigError: an override of what is computed, not of how the work is divided.
    """
    profile, others = load_for_submission(chosen, words)
    from promptcomp.cluster.submit import fit_job, submit_fit
    from promptcomp.run.division import check_overrides, experiment_to_resume
    from promptcomp.run.run_directory import open_existing

    check_overrides(others)
    config = experiment_to_resume(open_existing(run)).trainer
    layout = {"devices": profile.tasks, "num_nodes": profile.nodes}
    now = {"devices": config.devices, "num_nodes": config.num_nodes}
    changes = [f"trainer.{key}={value}" for key, value in layout.items() if value != now[key]]
    title = f"continues {run.name}"
    if dry_run:
        show_plan(fit_job(run, title, profile, (*changes, *others)), profile, console, as_json)
        return
    done = submit_fit(run, title, profile, chosen, (*changes, *others))
    _tell(done.id, run, done.script, console, as_json)


def submit_sweep(
    chosen: str,
    profile: SlurmProfile,
    config: SweepConfig,
    directory: Path,
    workers: int,
    storage: str | None,
    console: Console,
    as_json: bool,
) -> None:
    """`sweep ... --slurm`: write the sweep down and submit an array of workers, which share its study."""
    from promptcomp.cluster.submit import submit_array
    from promptcomp.sweeps.running import run_sweep
    from promptcomp.sweeps.storage import STORAGE_VARIABLE
    from promptcomp.sweeps.sweep_directory import SweepDirectory

    run_sweep(config, SweepDirectory(directory), storage=storage, workers=0, console=console)
    if storage is not None:  # its password is in no file; sbatch hands the environment on
        os.environ[STORAGE_VARIABLE] = storage
    number = submit_array(directory, worker_words(directory), workers, workers, profile, sweep_name(directory), chosen)
    if as_json:
        print(json.dumps({"sweep": str(directory), "job": number, "workers": workers}))
        return
    console.print(
        f"submitted job {number}: {workers} workers for {directory}\nwatch them: {command('jobs', directory)}  "
        f"the sweep: {command('sweep', 'show', directory)}  stop them: {command('cancel', directory)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def show_sweep_plan(profile: SlurmProfile, directory: Path, workers: int, console: Console, as_json: bool) -> None:
    """The script of a sweep's workers."""
    from promptcomp.cluster.submit import array_job

    job = array_job(directory, worker_words(directory), workers, workers, profile, sweep_name(directory))
    show_plan(job, profile, console, as_json)


def worker_words(directory: Path) -> tuple[str, ...]:
    """What an element of a sweep's array runs."""
    return ("sweep", "work", str(directory.absolute()), "--worker", "{worker}")


def sweep_name(directory: Path) -> str:
    """The name of a sweep's jobs."""
    return f"pc-{directory.absolute().name}"


def show_plan(job: Job, profile: SlurmProfile, console: Console, as_json: bool) -> None:
    """A dry run: the script, what it asks for, and when SLURM thinks that it would start. Nothing is written."""
    from promptcomp.cluster.script import render
    from promptcomp.cluster.slurm import SlurmError, predicted_start

    text = render(job, profile, Path.cwd())
    try:
        forecast = predicted_start(text)
    except SlurmError as error:
        forecast = str(error)
    elements = job.array.count if job.array else 1
    tasks = job.tasks_per_node * profile.nodes * elements
    gpus = profile.gpus_per_node * profile.nodes * elements
    if as_json:
        plan = {"folder": str(job.folder), "script": text, "tasks": tasks, "gpus": gpus, "forecast": forecast}
        print(json.dumps(plan))
        return
    show(text, end="")
    console.print(
        f"\nwould be {job.script}: {profile.nodes * elements} node(s), {tasks} task(s), {gpus} GPU(s)\n"
        f"SLURM: {forecast}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _tell(number: str, run: Path, script: Path, console: Console, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"run": str(run), "job": number, "script": str(script)}))
        return
    console.print(
        f"submitted job {number} for {run}\nscript {script}\nwatch it: {command('jobs', run)}  "
        f"stop it: {command('cancel', run)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
