"""jobs.json: the jobs that were submitted for a folder, the newest last."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from promptcomp.config import Config, ConfigError
from promptcomp.documents import read_json
from promptcomp.files import write_atomic

FOLDER = "slurm"
"""Folder inside a run (or a sweep) with job.sh, jobs.json and the logs."""
_PASSED_BY = {"checkpoints", "export", "evaluations", ".git", "__pycache__"}


class JobRecord(Config):
    """One submission."""

    id: str
    """SLURM's number."""
    kind: Literal["fit", "array"]
    """A run, or an array of workers."""
    submitted: str
    """Time, UTC."""
    profile: str
    """What --slurm was given."""
    command: tuple[str, ...]
    """Words after `promptcomp` that the job runs."""


class JobRecords(Config):
    """The file."""

    format: Literal[1] = 1
    """Version of the file's layout."""
    jobs: tuple[JobRecord, ...] = ()
    """In the order of submission."""


def now() -> str:
    """The time of a record."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_records(folder: Path) -> JobRecords:
    """The records in `folder` (RUN/slurm); none if there is no file.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / "jobs.json"
    if not os.path.lexists(path):
        return JobRecords()
    try:
        return JobRecords.model_validate(read_json(path, "record of jobs"))
    except (ConfigError, ValidationError):
        raise ConfigError(f"{path}: damaged; remove it to go on (the jobs themselves are not touched)") from None


def add_record(folder: Path, record: JobRecord) -> None:
    """Append a record, atomically."""
    records = JobRecords(jobs=(*read_records(folder).jobs, record))
    write_atomic(folder / "jobs.json", records.model_dump_json(indent=2) + "\n")


def resubmitted(folder: Path) -> list[str]:
    """Numbers of the jobs by which a script has replaced itself where requeueing is forbidden."""
    path = folder / "resubmitted.txt"
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []


def find_folders(top: Path) -> Iterator[Path]:
    """The folders with a jobs.json below `top`, in the order of their names."""
    for place, names, files in os.walk(top):
        names[:] = sorted(name for name in names if name not in _PASSED_BY)
        if "jobs.json" in files and Path(place).name == FOLDER:
            yield Path(place)
