"""A run directory: its layout, the record of the environment, and metrics.csv.

config.yaml        the resolved configuration; `promptcomp fit --config RUN/config.yaml` repeats the run
environment.json   versions, hardware, git commit and configuration of each start
metrics.csv        one row for each logged step
checkpoints/       last.ckpt (what --resume continues from; a folder where it is sharded), best.ckpt (what is evaluated)
export/            the trained parts: trained.safetensors, promptcomp.json (method.init_from takes a run)
predictions.jsonl  one line for each evaluated example
rationales.jsonl   the rationales of a student that has learned to write them
results.json       what the run found
log.txt            messages with their times
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from promptcomp import __version__
from promptcomp.checkpoints.places import TENSORS, existing
from promptcomp.config import ConfigError
from promptcomp.documents import how_to_begin, of_sweep, read_json
from promptcomp.errors import NoSpace, RankLost, command, is_full
from promptcomp.files import check_empty, open_append, read_text, replacing, write_atomic
from promptcomp.plain import without_credentials

RUN_DIRECTORY_VARIABLE = "PROMPTCOMP_RUN_DIRECTORY"
"""Tells the processes that a strategy starts whose children they are and which directory rank 0 has made."""
_PACKAGES = ("torch", "lightning", "transformers", "datasets", "torchmetrics", "pydantic", "safetensors")

_STEP = re.compile(r"[0-9]{1,15}")


class Inside:
    """A path inside a run's or a sweep's directory."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, place: Any, owner: type | None = None) -> Path:
        return Path(place.path, self._name)


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside one run directory; the module says what they hold."""

    path: Path

    config = Inside("config.yaml")
    environment = Inside("environment.json")
    metrics = Inside("metrics.csv")
    tensorboard = Inside("tensorboard")
    loggers = Inside("loggers.json")
    examples = Inside("examples.jsonl")
    page = Inside("report.html")
    predictions = Inside("predictions.jsonl")
    rationales = Inside("rationales.jsonl")
    results = Inside("results.json")
    export = Inside("export")
    log = Inside("log.txt")
    last = Inside("checkpoints/last.ckpt")
    best = Inside("checkpoints/best.ckpt")

    def write_log(self, message: str) -> None:
        """Append one line to log.txt."""
        line = f"{datetime.now(UTC).isoformat(timespec='seconds')} {without_credentials(message)}\n"
        with open_append(self.log) as file:
            file.write(line.encode(errors="replace"))


def create(output_dir: Path, title: str, chosen: Path | None) -> RunDirectory:
    """Make a new run directory: `chosen`, or `output_dir/<title>-<time>`.

    Raises:
        ConfigError: `chosen` already holds something, or the folder cannot be written.
    """
    if chosen is not None:
        clear_unstarted(chosen)
        check_unused(chosen)
    try:
        path = chosen or make_new(output_dir, title)
        (path / "checkpoints").mkdir(parents=True)
    except OSError as error:
        kind = NoSpace if is_full(error) else ConfigError
        raise kind(f"{chosen or output_dir}: the run directory cannot be made ({error.strerror})") from None
    return RunDirectory(path)


def new_path(output_dir: Path, title: str) -> Path:
    """A path that is not taken: `output_dir/<title>-<time>`, with a number where that is."""
    return next(path for path in _new_paths(output_dir, title) if not path.exists())


def make_new(folder: Path, title: str = "") -> Path:
    """Make a folder with the name of `new_path`, which no other process has made, also not within the same second.

    Raises:
        OSError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in _new_paths(folder, title):
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("there is always another number")


def _new_paths(folder: Path, title: str) -> Iterator[Path]:
    first = folder / "-".join(filter(None, (title, datetime.now().strftime("%Y%m%d-%H%M%S"))))
    yield first
    for number in itertools.count(2):
        yield first.with_name(f"{first.name}-{number}")


@contextlib.contextmanager
def told_to_children(path: Path) -> Iterator[None]:
    """Processes that are started within this block learn where the run is."""
    os.environ[RUN_DIRECTORY_VARIABLE] = f"{os.getpid()}:{path}"
    try:
        yield
    finally:
        del os.environ[RUN_DIRECTORY_VARIABLE]


def told_by_parent() -> RunDirectory | None:
    """The run whose first process has started this one; None for every other process, whatever its environment says.

    Raises:
        RankLost: that process is there no more.
    """
    parent, _, path = os.environ.get(RUN_DIRECTORY_VARIABLE, "").partition(":")
    if path and parent == str(os.getppid()):
        return RunDirectory(Path(path))
    if path and os.environ.get("LOCAL_RANK", "0") != "0":
        raise RankLost(f"the first process of the run in {path} has ended")
    return None


def clear_unstarted(path: Path) -> None:
    """Empty a directory whose run was killed before it had written its configuration; others are left alone."""
    with contextlib.suppress(OSError):
        for left in path.glob(".config.yaml.*.tmp"):
            left.unlink()
        (path / "checkpoints").rmdir()


def discard_unstarted(run: RunDirectory) -> None:
    """Remove the directory of a run that was refused before it had computed anything."""
    kept = (run.metrics, run.predictions)
    if not any(run.last.parent.iterdir()) and not any(file.exists() for file in kept):
        shutil.rmtree(run.path, ignore_errors=True)


def check_unused(path: Path) -> None:
    """
    Raises:
        ConfigError: a new run's directory holds something already.
    """
    is_run = RunDirectory(path).config.is_file()
    again = f"continue it with `{command('fit', '--resume', path)}` or " if is_run else ""
    check_empty(path, f"{again}name another")


def open_existing(path: Path) -> RunDirectory:
    """An existing run directory.

    Raises:
        ConfigError: it is not there, has no config.yaml, or is the folder of an evaluation.
    """
    if not os.path.isdir(path):
        raise ConfigError(f"{path}: no such run directory{how_to_begin(path)}")
    run, history = RunDirectory(path), list[dict[str, Any]]()
    if not run.config.is_file():
        raise ConfigError(f"{path} is no run directory: it has no config.yaml{of_sweep(path)}")
    with contextlib.suppress(ConfigError):  # without its record a run is as good, but for --resume
        history = _history(run)
    evaluated = next((each["evaluates"] for each in history if "evaluates" in each), None)
    if evaluated is not None:
        raise ConfigError(f"{path} is no run directory but an evaluation of {evaluated}; name the run itself")
    return run


def weights_of(run: RunDirectory) -> Path:
    """The weights to evaluate: the checkpoint that is best on dev, or the last where nothing was selected; without
    checkpoints (no steps, or deleted) what was exported.

    Raises:
        ConfigError: the run has none of them.
    """
    for path in (run.best, run.last):
        if found := existing(path):
            return found
    if (run.export / TENSORS).is_file():
        return run.export
    again = command("fit", "--resume", run.path)
    raise ConfigError(f"{run.path} holds no trained weights yet; train it with `{again}`")


def packages() -> dict[str, str | None]:
    """Versions of what the program needs most; None: it is missing."""
    found: dict[str, str | None] = dict.fromkeys(_PACKAGES)
    for name in found:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def environment() -> dict[str, Any]:
    """Versions, hardware and the git commit of the code that runs."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *map(without_credentials, sys.argv[1:])],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "promptcomp": __version__,
        "packages": packages(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "git_commit": _git_commit(),
    }


def write_environment(
    run: RunDirectory, config: Mapping[str, Any], evaluates: Path | None = None, files: Mapping[str, str] | None = None
) -> None:
    """Record the environment, the configuration and the hashes of the files that are read; a resumed run keeps the
    earlier records too. `evaluates` is the run that was evaluated, where the directory is no run of its own.

    Raises:
        ConfigError: the earlier records cannot be read.
    """
    of = {} if evaluates is None else {"evaluates": str(evaluates)}
    history = [*_history(run), {**environment(), **of, "config": config, "files": files or {}}]
    write_atomic(run.environment, json.dumps({"history": history}, indent=2) + "\n")


def recorded_config(run: RunDirectory) -> dict[str, Any] | None:
    """The configuration that a run was started with; None: it has not begun, or an older version began it.

    Raises:
        ConfigError: the record cannot be read.
    """
    return next((each["config"] for each in _history(run) if isinstance(each.get("config"), dict)), None)


def recorded_files(run: RunDirectory) -> dict[str, str]:
    """Path -> hash of what the run read when it was started; empty where that is not recorded."""
    with contextlib.suppress(ConfigError):
        return next((each["files"] for each in _history(run) if isinstance(each.get("files"), dict)), {})
    return {}


def recorded_command(run: RunDirectory) -> list[str] | None:
    """The words of the command that a run was started with, where it is recorded."""
    first = next(iter(_history(run)), {}).get("command")
    return [str(word) for word in first] if isinstance(first, list) else None


def _history(run: RunDirectory) -> list[dict[str, Any]]:
    if not run.environment.is_file():
        return []
    hint = "it records what the run was started with: move it away to continue anyway"
    found = read_json(run.environment, "record of the environment", hint)
    history = found.get("history") if isinstance(found, dict) else None
    if not isinstance(history, list) or not all(isinstance(each, dict) for each in history):
        raise ConfigError(f"{run.environment} is damaged; {hint}")
    return history


def _git_commit() -> str | None:
    """The commit of a checkout this package is run from; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    words = ["git", "-C", str(root), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if (root / ".git").exists():
            return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The whole rows of a metrics.csv that tell their step: none that is being written, or that a full disk or a kill
    has torn; none where the file is not there."""
    try:
        text = read_text(path, "step series")
        lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        header = next(lines, [])
        rows = [dict(zip(header, line, strict=False)) for line in lines]
    except (ConfigError, csv.Error):
        return []
    return [row for row in rows if _STEP.fullmatch(row.get("step", ""))]


def step_series(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.csv as numbers; None where a step has no such value, or what is there is no number."""
    return [
        {key: int(value) if key == "step" else number_of(value) for key, value in row.items()}
        for row in read_metrics(path)
    ]


def number_of(text: str | None) -> float | None:
    """The number in a cell of metrics.csv; None where there is none."""
    try:
        return float(text or "")
    except ValueError:
        return None


class MetricsFile:
    """metrics.csv: a row for each logged step; the header grows when a new column appears.

    Lightning's CSV logger deletes the earlier rows when a run is resumed, so this one is ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = read_metrics(path)
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row)) or ["step"]

    def truncate(self, step: int) -> None:
        """Drop the rows after `step` (a resumed run writes them again)."""
        self.rows = [row for row in self.rows if int(row["step"]) <= step]
        self._rewrite()

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add the row of one step."""
        row = {"step": str(step), **{name: f"{value:.10g}" for name, value in values.items()}}
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        if new or not self.path.is_file():
            self.columns += new
            self._rewrite()
            return
        line = io.StringIO(newline="")
        csv.DictWriter(line, self.columns, restval="").writerow(row)
        with open_append(self.path) as file:
            file.write(line.getvalue().encode())

    def _rewrite(self) -> None:
        lines = [self.columns, *([row.get(name) or "" for name in self.columns] for row in self.rows)]
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)
