"""The text of a job script, from a profile and the words to run."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from promptcomp import __version__
from promptcomp.cluster.profile import SlurmProfile
from promptcomp.config import ConfigError

WORKER = "{worker}"
"""Stands for the number of the array element among the words of an array."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


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
