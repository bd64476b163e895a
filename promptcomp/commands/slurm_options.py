"""`--slurm [PROFILE]`: an option with an optional value, and what `fit` and `sweep` do with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option
from typer.core import TyperCommand

from promptcomp.commands.common import console_for, show, tell
from promptcomp.errors import ConfigError, command

if TYPE_CHECKING:
    from promptcomp.cluster.profile import SlurmProfile
    from promptcomp.cluster.submit import Job
    from promptcomp.sweeps.sweep_config import SweepConfig

SlurmOption = Annotated[
    str | None,
    Option(
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
    if ours := [word for word in words if word.startswith("slurm.")]:
        raise ConfigError(f"{ours[0]!r} is for a job on a cluster; add --slurm")


def load_for_submission(chosen: str, words: Sequence[str]) -> tuple[SlurmProfile, list[str]]:
    """The profile with its overrides, and the other words. Nodes without internet: nothing here asks the hub either."""
    from promptcomp.cluster.profile import load_profile, split_overrides
    from promptcomp.cluster.submit import OFFLINE

    ours, others = split_overrides(words)
    profile = load_profile(chosen, ours)
    if profile.offline:  # before the hub's library is imported: it reads them once
        os.environ.update(OFFLINE)
    return profile, others


def submit_new(
    chosen: str,
    method: str | None,
    config: Path | None,
    words: Sequence[str],
    run_dir: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """`fit ... --slurm`: check everything that can be checked here, make the run directory, submit."""
    profile, others = load_for_submission(chosen, words)
    from promptcomp import experiment as experiments
    from promptcomp.cluster.submit import check_parts, fit_job, place
    from promptcomp.config import dump
    from promptcomp.files import write_atomic
    from promptcomp.run.run_directory import create, new_path

    experiment = place(experiments.load(method, config, others), profile)
    check_parts(experiment, profile)
    title = f"{experiment.method.name} on {experiment.data.name} with {experiment.lm.path}, seed {experiment.seed}"
    output_dir = Path(experiment.output_dir)
    if dry_run:
        show_plan(fit_job(run_dir or new_path(output_dir, experiment.title), title, profile), profile, as_json)
        return
    run = create(output_dir, experiment.title, run_dir)
    write_atomic(run.config, dump(experiment))
    try:
        _submit_fit(fit_job(run.path, title, profile), run.path, profile, chosen, as_json)
    except ConfigError as error:
        asked = (word for word in words if word.startswith("slurm."))
        again = command("fit", "--resume", run.path, "--slurm", chosen, *asked)
        raise ConfigError(f"{error}; to try again: {again}") from None


def submit_again(chosen: str, run: Path, words: Sequence[str], dry_run: bool, as_json: bool) -> None:
    """`fit --resume RUN --slurm`: submit the continuation of a run, on as many processes as the profile has.

    Raises:
        ConfigError: an override of what is computed, not of how the work is divided.
    """
    profile, others = load_for_submission(chosen, words)
    from promptcomp.cluster.submit import fit_job
    from promptcomp.run.configured import experiment_to_resume
    from promptcomp.run.run_directory import open_existing

    config = experiment_to_resume(open_existing(run), others).trainer
    layout = {"devices": profile.tasks, "num_nodes": profile.nodes}
    changes = [f"trainer.{key}={value}" for key, value in layout.items() if value != getattr(config, key)]
    job = fit_job(run, f"continues {run.name}", profile, (*changes, *others))
    if dry_run:
        show_plan(job, profile, as_json)
    else:
        _submit_fit(job, run, profile, chosen, as_json)


def _submit_fit(job: Job, run: Path, profile: SlurmProfile, chosen: str, as_json: bool) -> None:
    from promptcomp.cluster.submit import submit

    number = submit(job, profile, chosen)
    where = f"script {job.script}\nlog {job.folder / f'{number}.out'}"
    text = f"submitted job {number} for {run}\n{where}\nwatch it: squeue --jobs={number}  stop it: scancel {number}"
    tell({"run": str(run), "job": number, "script": str(job.script)}, text, as_json)


def submit_sweep(
    chosen: str,
    profile: SlurmProfile,
    config: SweepConfig,
    directory: Path,
    workers: int,
    storage: str | None,
    as_json: bool,
) -> None:
    """`sweep ... --slurm`: write the sweep down and submit an array of workers, which share its study."""
    from promptcomp.cluster.submit import submit, workers_job
    from promptcomp.lease import STORAGE_VARIABLE
    from promptcomp.sweeps.running import run_sweep
    from promptcomp.sweeps.sweep_directory import SweepDirectory

    run_sweep(config, SweepDirectory(directory), storage=storage, workers=0, console=console_for(as_json))
    if storage is not None:  # its password is in no file; sbatch hands the environment on
        os.environ[STORAGE_VARIABLE] = storage
    number = submit(workers_job(directory, workers, profile), profile, chosen)
    text = f"submitted job {number}: {workers} workers for {directory}\nwatch them: squeue --array --jobs={number}  "
    text += f"the sweep: {command('sweep', 'show', directory)}  stop them: scancel {number}"
    tell({"sweep": str(directory), "job": number, "workers": workers}, text, as_json)


def show_plan(job: Job, profile: SlurmProfile, as_json: bool) -> None:
    """A dry run: the script, what it asks for, and when SLURM thinks that it would start. Nothing is written."""
    from promptcomp.cluster.submit import SlurmError, predicted_start, render

    text = render(job, profile, Path.cwd())
    try:
        forecast = predicted_start(text)
    except SlurmError as error:
        forecast = str(error)
    nodes = profile.nodes * (job.array or 1)
    tasks, gpus = job.tasks_per_node * nodes, profile.gpus_per_node * nodes
    plan = {"folder": str(job.folder), "script": text, "tasks": tasks, "gpus": gpus, "forecast": forecast}
    asked = f"{nodes} node(s), {tasks} task(s), {gpus} GPU(s)"
    if not as_json:
        show(text, end="")
    tell(plan, f"\nwould be {job.script}: {asked}\nSLURM: {forecast}", as_json)
