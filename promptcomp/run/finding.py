"""Which run directory holds the run of an experiment, by its configuration alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from promptcomp.config import ConfigError, build, read_yaml
from promptcomp.evaluation.results import read_results
from promptcomp.experiment import Experiment
from promptcomp.run.run_directory import RunDirectory

_PLACE = ("name", "output_dir")
_TRAINING = ("optim", "trainer", "seed")
State = Literal["finished", "unfinished", "missing"]


def identity(experiment: Experiment) -> str:
    """Equal for experiments that give the same results: name and place never matter, optim, trainer and seed only if
    anything is trained."""
    tree = experiment.model_dump(mode="json")
    trains = experiment.trainer.max_steps > 0 and experiment.method.trains
    for key in (*_PLACE, *(() if trains else _TRAINING)):
        del tree[key]
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def find(experiment: Experiment, run_dir: Path | None = None) -> tuple[State, Path | None]:
    """A run of this experiment in `run_dir` or under its output_dir; a finished one if there is any, the newest first.

    Args:
        experiment: the wanted configuration.
        run_dir: the only directory to look at.
    """
    wanted, unfinished = identity(experiment), None
    folders = [run_dir] if run_dir is not None else _newest_first(Path(experiment.output_dir))
    for folder in folders:
        run = RunDirectory(folder)
        if run.config.is_file() and _is_run_of(run, experiment, wanted):
            if _is_finished(run):
                return "finished", folder
            unfinished = unfinished or folder
    return ("unfinished" if unfinished else "missing"), unfinished


def _newest_first(output_dir: Path) -> list[Path]:
    if not output_dir.is_dir():
        return []
    configs = [config for config in output_dir.glob("*/config.yaml") if config.is_file()]
    return [config.parent for config in sorted(configs, key=lambda path: path.stat().st_mtime, reverse=True)]


def _is_run_of(run: RunDirectory, experiment: Experiment, wanted: str) -> bool:
    try:
        tree = read_yaml(run.config)
        method = tree.get("method")
        if not isinstance(method, dict) or method.get("name") != experiment.method.name:
            return False
        return identity(build(Experiment, tree)) == wanted
    except ConfigError:  # a damaged file or one of another version is no run of this experiment
        return False


def _is_finished(run: RunDirectory) -> bool:
    try:
        read_results(run.results)
    except ConfigError:
        return False
    return run.predictions.is_file()
