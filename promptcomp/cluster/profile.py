"""Profiles: what a job asks a SLURM cluster for, by name, in a YAML file.

    default: a100                # `--slurm` alone
    a100:
      partition: gpu
      time: 4:00:00
      gpus_per_node: 4
      modules: [cuda/12.4]

A name is looked for in ./promptcomp-slurm.yaml, then in the file that $PROMPTCOMP_SLURM_PROFILES names, then in
~/.config/promptcomp/slurm.yaml; the first file that has it wins. `--slurm FILE.yaml:NAME` names the file itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from promptcomp.config import Config, ConfigError, apply_overrides, build, read_yaml
from promptcomp.errors import did_you_mean

FILES_VARIABLE = "PROMPTCOMP_SLURM_PROFILES"
_TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d(:\d\d)?)?|UNLIMITED|INFINITE")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = (
    "--array", "--chdir", "-D", "--gpus-per-node", "--nodes", "-N", "--ntasks", "-n", "--ntasks-per-node",
    "--open-mode", "--output", "-o", "--error", "-e", "--requeue", "--no-requeue", "--signal",
)  # fmt: skip
"""Options that the script needs to set itself."""


def _one_line(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError("expected one line of printable text")
    return value


def _time(value: str) -> str:
    if not _TIME.fullmatch(value):
        raise ValueError("a time is written minutes, hours:minutes:seconds or days-hours:minutes:seconds")
    return value


def _none(value: Any) -> Any:
    """YAML's ways to write nothing; profiles are read without YAML's guesses at types."""
    return None if value in ("", "~", "null") else value


Text = Annotated[str, AfterValidator(_one_line)]
Optional = Annotated[Text | None, BeforeValidator(_none)]
Count = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_none)]


class ContainerConfig(Config):
    """An image that the tasks run in."""

    image: Text
    """File or registry name, as the runner takes it."""
    runner: Literal["pyxis", "apptainer", "singularity"] = "pyxis"
    """pyxis: options of srun; apptainer or singularity: a command in front of ours."""
    mounts: tuple[Text, ...] = ()
    """SOURCE:TARGET; the folder of submission and the run directory are always mounted under their own names."""
    options: tuple[Text, ...] = ()
    """More words for the runner."""


class SlurmProfile(Config):
    """A SLURM profile: what one job asks for. Everything unset is left to the cluster."""

    partition: Optional = None
    """Partition or partitions with commas."""
    account: Optional = None
    """Account that pays."""
    qos: Optional = None
    """Quality of service."""
    time: Annotated[Annotated[str, AfterValidator(_time)] | None, BeforeValidator(_none)] = None
    """Time limit of one start, as SLURM writes it (4:00:00); a longer run is requeued and continues."""
    nodes: int = Field(1, ge=1)
    """Nodes."""
    gpus_per_node: int = Field(0, ge=0)
    """GPUs of each node; 0: train on CPUs."""
    gpu_type: Optional = None
    """Kind of GPU as the cluster names it (a100)."""
    tasks_per_node: Count = None
    """Processes of each node; null: one for each GPU, or one."""
    cpus_per_task: Count = None
    """CPU cores of each process."""
    mem: Optional = None
    """Memory of each node (64G)."""
    constraint: Optional = None
    """Features that the nodes must have."""
    reservation: Optional = None
    """Reservation to run in."""
    exclude: Optional = None
    """Nodes not to use."""
    nodelist: Optional = None
    """Nodes to use."""
    modules: tuple[Text, ...] = ()
    """Modules to load."""
    container: ContainerConfig | None = None
    """An image that the tasks run in."""
    environment: dict[str, str] = {}
    """Variables to set."""
    setup: tuple[Text, ...] = ()
    """Shell lines before the run (conda activate, source venv/bin/activate)."""
    extra: tuple[Text, ...] = ()
    """More options of sbatch, one each (--exclusive)."""
    python: Optional = None
    """Interpreter of the tasks; null: the one that submits, or a container's python."""
    signal_seconds: int = Field(120, ge=10, le=65535)
    """Seconds before the end in which SLURM warns; a dev evaluation and a checkpoint must fit."""
    max_requeues: int = Field(100, ge=0)
    """Maximum number of restarts of one job."""
    mail: Optional = None
    """Address for a mail at the end or failure."""
    offline: bool = True
    """The nodes have no internet: models and data must be on disk at submission, and nothing asks the hub."""

    @model_validator(mode="after")
    def _sound(self) -> SlurmProfile:
        for name, value in self.environment.items():
            if not _VARIABLE.fullmatch(name) or not (value == "" or value.isprintable()):
                raise ValueError(f"environment: {name!r} is no variable name, or its value has several lines")
        for line in self.extra:
            if not line.startswith("-") or len(line) < 2:
                raise ValueError(f"extra: {line!r} is no option; write it as sbatch takes it, for example --exclusive")
            if re.split(r"[=\s]", line)[0] in _OURS or (line[1] != "-" and line[:2] in _OURS):
                raise ValueError(
                    f"extra: {line!r} is set by promptcomp; use the profile's keys (nodes, tasks_per_node)"
                )
        if self.gpu_type and not self.gpus_per_node:
            raise ValueError("gpu_type needs gpus_per_node")
        return self

    @property
    def tasks(self) -> int:
        """Processes of each node."""
        return self.tasks_per_node or self.gpus_per_node or 1


def load_profile(chosen: str, overrides: Iterable[str] = ()) -> SlurmProfile:
    """The profile `NAME`, `FILE.yaml` or `FILE.yaml:NAME`, with `slurm.key=value` overrides.

    Without any profile file, "default" asks for nothing but what the overrides say.

    Raises:
        ConfigError: no such profile, or any mistake in it.
    """
    source, tree = _find(chosen)
    return build(SlurmProfile, apply_overrides({"slurm": tree}, overrides, texts=True)["slurm"], source=source)


def split_overrides(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """`slurm.key=value` words, and all others."""
    words = list(words)
    ours = [word for word in words if word.startswith("slurm.")]
    return ours, [word for word in words if word not in ours]


def _find(chosen: str) -> tuple[str, dict[str, Any]]:
    file, colon, name = chosen.rpartition(":")
    if not colon and Path(chosen).suffix in (".yaml", ".yml"):
        file, name = chosen, "default"
    if file:
        return _pick(_read(Path(file)), name, [Path(file)])
    places = [Path("promptcomp-slurm.yaml"), Path(os.path.expanduser("~/.config/promptcomp/slurm.yaml"))]
    if named := os.environ.get(FILES_VARIABLE):
        places.insert(1, Path(named))
        if not places[1].is_file():
            raise ConfigError(f"{FILES_VARIABLE}={named}: no such file")
    files = [path for path in places if path.is_file()]
    if not files and chosen == "default":
        return "slurm profile default", {}
    merged: dict[str, Any] = {}
    for path in reversed(files):
        merged |= _read(path)
    return _pick(merged, chosen, files)


def _pick(profiles: Mapping[str, Any], name: str, files: list[Path]) -> tuple[str, dict[str, Any]]:
    found = profiles.get(name)
    if isinstance(found, str):  # default: NAME
        name, found = found, profiles.get(found)
    where = ", ".join(map(str, files)) or "promptcomp-slurm.yaml (there is none)"
    if found is None:
        raise ConfigError(f"--slurm {name!r}: no such profile in {where}; {did_you_mean(name, profiles)}")
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: profile {name!r} is not a mapping such as 'partition: gpu'")
    return f"slurm profile {name} ({where})", found


def _read(path: Path) -> dict[str, Any]:
    """A profile file. Every value stays the text it is: to YAML 1.1 a time of 2:00:00 is the number 7200."""
    return read_yaml(path, "profile file", texts=True, example="default: {partition: gpu}")
