"""Jobs of SLURM: what can go wrong on a node is checked, a script is written, sbatch takes it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from promptcomp import __version__
from promptcomp.cluster.profile import SlurmProfile
from promptcomp.config import ConfigError
from promptcomp.documents import read_json
from promptcomp.experiment import Experiment
from promptcomp.files import make_folder, write_atomic

WORKER = "{worker}"
"""Stands for the number of the array element among the words of an array."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
FOLDER = "slurm"
"""Folder inside a run (or a sweep) with job.sh, jobs.json (the jobs that were submitted) and the logs."""
_SECONDS = 60
_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "PROMPTCOMP_RUN_DIRECTORY", "PROMPTCOMP_LAUNCHER")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_HINT = (
    "\nthe profile says that the nodes are offline: download it on this machine first (for example by a short "
    "'promptcomp fit' here), give a folder, or set slurm.offline=false"
)


class SlurmError(ConfigError):
    """A command of SLURM is missing, refuses or does not answer; the message is its own."""


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


def check_parts(experiment: Experiment, profile: SlurmProfile) -> None:
    """Open the data and the tokenizer as the job will.

    Raises:
        ConfigError: something is missing or wrong; for nodes without internet also weights that are not on disk.
    """
    from promptcomp.run.opening import make_parts, quiet

    try:
        with quiet():
            make_parts(experiment)
    except ConfigError as error:
        if profile.offline and "cannot be read" in str(error):
            raise ConfigError(f"{error}{_HINT}") from None
        raise
    if profile.offline:
        _check_weights(experiment)


def check_all_parts(experiments: Iterable[Experiment], profile: SlurmProfile) -> None:
    """`check_parts` for every LM and data among the trials of a sweep.

    Raises:
        ConfigError: as `check_parts`.
    """
    different = {(each.lm.model_dump_json(), each.data.model_dump_json()): each for each in experiments}
    for each in different.values():
        check_parts(each, profile)


def _check_weights(experiment: Experiment) -> None:
    from promptcomp.language_model.lm_config import locate

    lm = experiment.lm
    if lm.from_scratch is not None or os.path.exists(locate(lm.path)) or os.path.isfile(lm.path):
        return
    from huggingface_hub import try_to_load_from_cache

    if not any(isinstance(try_to_load_from_cache(lm.path, name, revision=lm.revision), str) for name in _WEIGHTS):
        raise ConfigError(f"lm.path = {lm.path!r}: its weights are not on this machine{_HINT}")


@dataclass(frozen=True, slots=True)
class Job:
    """What a script runs, and where."""

    name: str
    title: str
    folder: Path
    """Where job.sh and the logs are: RUN/slurm."""
    words: tuple[str, ...]
    """Words after `promptcomp`."""
    tasks_per_node: int
    array: int = 0
    """Elements of a job array; 0: it is none."""

    @property
    def script(self) -> Path:
        """The script's file."""
        return self.folder / "job.sh"

    @property
    def logs(self) -> str:
        """SLURM's pattern for the log's file name."""
        return "%A_%a.out" if self.array else "%j.out"


def render(job: Job, profile: SlurmProfile, workdir: Path) -> str:
    """The script.

    Args:
        job: what to run.
        profile: what to ask for.
        workdir: folder that the tasks start in (relative paths of the configuration count from there).

    Raises:
        ConfigError: a path that sbatch cannot take.
    """
    import jinja2  # not at the top: `promptcomp --help` needs none of it

    for path in (job.folder, workdir):
        if not str(path).isprintable() or "\\" in str(path):
            raise ConfigError(f"{str(path)!r}: sbatch takes no path with a backslash or a line break; choose another")
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"sh": lambda value: shlex.quote(str(value)), "directive": directive}
    template = (resources.files("promptcomp.cluster") / "job.sh.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        job=job,
        profile=profile,
        title=" ".join(job.title.split()),
        version=__version__,
        workdir=workdir,
        options=_options(job, profile, workdir),
        environment=_environment(profile),
        patience_seconds=max(profile.signal_seconds - 30, profile.signal_seconds // 2),
        launch=_launch(job, profile, workdir),
    )


def directive(option: str) -> str:
    """An option as sbatch reads it after #SBATCH: it knows double quotes and backslashes."""
    plain = option.replace("=", "").replace("-", "")
    if plain and all(c.isalnum() or c in "._/%:,@+[]*&|" for c in plain):
        return option
    name, equals, value = option.partition("=")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}{equals}"{escaped}"' if equals else option


def _options(job: Job, profile: SlurmProfile, workdir: Path) -> list[str]:
    gpus = f"{profile.gpu_type}:{profile.gpus_per_node}" if profile.gpu_type else str(profile.gpus_per_node)
    wanted: list[tuple[str, str | int | None]] = [
        ("job-name", job.name),
        ("output", f"{str(job.folder).replace('%', '%%')}/{job.logs}"),
        ("open-mode", "append"),
        ("chdir", str(workdir)),
        ("array", f"0-{job.array - 1}%{job.array}" if job.array else None),
        *((name, getattr(profile, name)) for name in ("partition", "account", "qos", "time", "nodes")),
        ("ntasks-per-node", job.tasks_per_node),
        ("gpus-per-node", gpus if profile.gpus_per_node else None),
        ("cpus-per-task", profile.cpus_per_task and profile.cpus_per_task * profile.tasks // job.tasks_per_node),
        *((name, getattr(profile, name)) for name in ("mem", "constraint", "reservation", "exclude", "nodelist")),
        ("mail-user", profile.mail),
        ("mail-type", "END,FAIL" if profile.mail else None),
        ("signal", f"B:USR1@{profile.signal_seconds}"),
    ]
    return [*(f"--{name}={value}" for name, value in wanted if value is not None), "--requeue", *profile.extra]


def _environment(profile: SlurmProfile) -> dict[str, str]:
    found = {"PYTHONUNBUFFERED": "1", **(OFFLINE if profile.offline else {})}
    if profile.container is None and os.environ.get("PYTHONPATH"):
        found["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return found | profile.environment


def _launch(job: Job, profile: SlurmProfile, workdir: Path) -> str:
    """The srun line: a task that fails ends all; rank 0 may evaluate for long after the others have left."""
    quoted = ['"$SLURM_ARRAY_TASK_ID"' if word == WORKER else shlex.quote(word) for word in job.words]
    python = profile.python or ("python" if profile.container else sys.executable)
    srun = ["srun", "--kill-on-bad-exit=1", "--wait=0"]
    if profile.cpus_per_task:  # srun does not take it from the job
        srun.append('--cpus-per-task="$SLURM_CPUS_PER_TASK"')
    inside: Sequence[str] = ()
    if profile.container is not None:
        outside, inside = _container(job, profile, workdir)
        srun += outside
    launcher = [] if job.array else ["PROMPTCOMP_LAUNCHER=slurm"]
    quoted += [] if job.array else ["--preempted-file", '"$made_room"']
    return " ".join([*launcher, *srun, *inside, shlex.quote(python), "-m", "promptcomp", *quoted])


def _container(job: Job, profile: SlurmProfile, workdir: Path) -> tuple[list[str], list[str]]:
    """Options of srun (pyxis), or a command in front of ours (apptainer)."""
    container = profile.container
    assert container is not None
    run = job.folder.parent
    own = [f"{path}:{path}" for path in dict.fromkeys((str(workdir), str(run)))]
    mounts = ",".join([*own, *container.mounts])
    extra = [shlex.quote(word) for word in container.options]
    if container.runner == "pyxis":
        image = shlex.quote(f"--container-image={container.image}")
        places = [shlex.quote(f"--container-mounts={mounts}"), shlex.quote(f"--container-workdir={workdir}")]
        return [image, *places, *extra], []
    gpu = ["--nv"] if profile.gpus_per_node else []
    places = ["--bind", shlex.quote(mounts), "--pwd", shlex.quote(str(workdir))]
    return [], [container.runner, "exec", *gpu, *places, *extra, shlex.quote(container.image)]


def fit_job(run: Path, title: str, profile: SlurmProfile, overrides: Sequence[str] = ()) -> Job:
    """The job that starts (or continues) the run in a directory: every start is `fit --resume`.

    Args:
        run: the run directory.
        title: for people, in the script.
        profile: what to ask for.
        overrides: of how the work is divided, for a run that was configured for other devices.
    """
    run = run.absolute()
    words = ("fit", "--resume", str(run), *overrides)
    return Job(f"pc-{run.name}", title, run / FOLDER, words, tasks_per_node=profile.tasks)


def workers_job(sweep: Path, count: int, profile: SlurmProfile) -> Job:
    """An array of workers that share the study of a sweep, each with the resources of one node.

    A worker that leaves with code 75 is requeued alone; signals reach it as USR1.

    Raises:
        ConfigError: the profile asks for several nodes.
    """
    if profile.nodes > 1:
        raise ConfigError("a worker of an array has one node; set slurm.nodes=1 and more workers")
    sweep = sweep.absolute()
    words = ("sweep", "work", str(sweep), "--worker", WORKER)
    title = f"{count} workers: promptcomp {' '.join(words)}"
    return Job(f"pc-{sweep.name}", title, sweep / FOLDER, words, tasks_per_node=1, array=count)


def submit(job: Job, profile: SlurmProfile, chosen: str) -> str:
    """Write a job's script, submit it and note it in jobs.json; returns the job's number.

    Args:
        job: what runs.
        profile: what to ask for.
        chosen: what --slurm was given, for the record.

    Raises:
        ConfigError: sbatch is missing or refuses (the script stays), or jobs.json is damaged.
    """
    text, record = render(job, profile, Path.cwd()), job.folder / "jobs.json"
    make_folder(job.folder)
    jobs = _recorded(record)
    write_atomic(job.script, text)
    try:
        number = _sbatch(job.script)
    except SlurmError as error:
        raise ConfigError(f"{error}\nthe script is kept: {job.script}") from None
    new = {
        "id": number,
        "kind": "array" if job.array else "fit",
        "submitted": datetime.now(UTC).isoformat(timespec="seconds"),
        "profile": chosen,
        "command": job.words,
    }
    write_atomic(record, json.dumps({"format": 1, "jobs": [*jobs, new]}, indent=2) + "\n")
    return number


def _recorded(path: Path) -> list[Any]:
    """The jobs in a jobs.json, in the order of submission."""
    if not os.path.lexists(path):
        return []
    found = read_json(path, "record of jobs", "remove it to continue (the jobs themselves are not affected)")
    if not isinstance(found, dict) or not isinstance(found.get("jobs"), list):
        raise ConfigError(f"{path}: damaged; remove it to continue (the jobs themselves are not affected)")
    return found["jobs"]


def _sbatch(script: Path) -> str:
    """Submit a script; returns the job's number.

    Raises:
        SlurmError: there is no sbatch here, or it refuses.
    """
    answer = _call(["sbatch", "--parsable", str(script)]).stdout.strip()
    number = answer.splitlines()[-1].partition(";")[0] if answer else ""
    if not number.isdigit():
        raise SlurmError(f"sbatch printed no job number but {answer!r}")
    return number


def predicted_start(script: str) -> str:
    """SLURM's forecast for a script ("to start at ... on nodes ..."), which is not submitted.

    Raises:
        SlurmError: there is no sbatch here, or it refuses the script.
    """
    done = _call(["sbatch", "--test-only"], text=script)
    said = " ".join(f"{done.stdout} {done.stderr}".split())
    found = re.search(r"to start at .*", said)
    return found.group(0) if found else said


def _call(words: Sequence[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
    try:
        done = subprocess.run(
            words, input=text, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except FileNotFoundError:
        raise SlurmError(f"{words[0]} is not installed here; run this on a login node of the cluster") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"{words[0]} does not answer ({error})") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).replace(f"{words[0]}: error: ", "").split())
        raise SlurmError(f"{words[0]} refuses: {said or f'exit code {done.returncode}'}")
    return done
