"""The configuration of a run: read, compared with that of its start, and used to find a run again.

When a run is continued, where it is and how its work is divided may change, not what it computes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from promptcomp.checkpoints.places import tensors_at
from promptcomp.config import ConfigError, apply_overrides, build, read_yaml
from promptcomp.evaluation.results import read_results
from promptcomp.experiment import Experiment
from promptcomp.files import Place
from promptcomp.language_model.lm_config import LanguageModelConfig, is_place
from promptcomp.run.run_directory import RunDirectory, open_existing, recorded_config, recorded_files, weights_of

PLACES = ("name", "output_dir")
"""Keys that say where a run is kept."""
DIVISION = (
    *("accelerator", "devices", "num_nodes", "strategy", "accumulate", "threads", "activation_checkpointing"),
    *("offload_optimizer", "compile", "timeout_seconds", "checkpoints", "checkpoint_every", "loggers"),
)
"""Keys of the section `trainer`."""
_TRAINING = ("optim", "trainer")
_FREE = {*PLACES, *(f"trainer.{key}" for key in DIVISION)}
_ALLOWED = ", ".join(f"trainer.{key}" for key in DIVISION)
_NAMED = 5  # changed keys that a message lists
_MISSING = object()
State = Literal["finished", "unfinished", "missing"]


def experiment_of(run: RunDirectory, overrides: Iterable[str] = ()) -> Experiment:
    """The configuration of a run, with overrides.

    Raises:
        ConfigError: a mistake in config.yaml or in the overrides.
    """
    return build(Experiment, apply_overrides(read_yaml(run.config), overrides), source=str(run.config))


def trained_experiment(path: Path, overrides: Iterable[str] = ()) -> Experiment:
    """The configuration of a run that has been trained, with overrides.

    Raises:
        ConfigError: no run, no trained weights, or a mistake in config.yaml or in the overrides.
    """
    run = open_existing(path)
    experiment = with_lm(experiment_of(run, overrides), path)
    if experiment.method.trains:
        weights_of(run)
    return experiment


def exported_experiment(folder: Path) -> Experiment:
    """The configuration beside exported tensors, or of the run that they are in.

    Raises:
        ConfigError: there is none, or a mistake in it.
    """
    config = next((file for at in (folder, folder.parent) if (file := at / "config.yaml").is_file()), None)
    if config is None:
        raise ConfigError(f"{folder}: has no config.yaml, which gives the format of prompts; copy the run's there")
    return with_lm(build(Experiment, read_yaml(config), source=str(config)), folder)


def with_lm(experiment: Experiment, folder: Path, model: Place | None = None) -> Experiment:
    """A configuration whose LM is where it is now.

    Args:
        experiment: As it was written.
        folder: The run or export that it is of: a relative path is looked for above it, too, so that both may be moved.
        model: Where the LM is; None: as configured.
    """
    path = experiment.lm.path
    if model is not None:
        path = os.fspath(model)
    elif not os.path.exists(path) and not os.path.isabs(path):
        above = (parent / path for parent in folder.resolve().parents)
        path = next((str(place) for place in above if (place / "config.json").is_file()), path)
    if path == experiment.lm.path:
        return experiment
    return experiment.model_copy(update={"lm": experiment.lm.model_copy(update={"path": path})})


def check_lm(experiment: Experiment, folder: Path) -> None:
    """
    Raises:
        ConfigError: the LM of what is in `folder` is not where it should be, as far as names tell.
    """
    if os.path.isabs(experiment.lm.path) and not os.path.exists(experiment.lm.path):
        raise ConfigError(f"{folder}: its LM is no longer at {experiment.lm.path}; name it with --model")
    experiment.lm.check_place()


def experiment_to_resume(run: RunDirectory, overrides: Iterable[str] = ()) -> Experiment:
    """The configuration that a run goes on with.

    Raises:
        ConfigError: config.yaml or the overrides would change what the run computes.
    """
    overrides = list(overrides)
    check_overrides(overrides)
    check_unchanged(run, experiment_of(run))
    if changed := changed_file(recorded_files(run), files_of(experiment_of(run))):
        raise ConfigError(
            f"{changed} is not what it was when the run in {run.path} started; put it back to continue the run, or "
            "start a new one with --config"
        )
    experiment = experiment_of(run, overrides)
    parts = experiment.trainer.accumulate
    before = (recorded_config(run) or {}).get("trainer", {}).get("accumulate", parts)
    if before != parts and experiment.data.max_batch_tokens is not None:
        raise ConfigError(
            f"trainer.accumulate was {before} and is {parts}: data.max_batch_tokens limits a micro-batch, so each step "
            f"would hold other examples; resume with trainer.accumulate={before}"
        )
    return with_lm(experiment, run.path)


def check_overrides(overrides: Iterable[str]) -> None:
    """
    Raises:
        ConfigError: one of them would change what is computed.
    """
    for item in overrides:
        if item.partition("=")[0] not in _FREE - {*PLACES}:
            raise ConfigError(
                f"{item!r}: --resume continues a run as it was configured; only the keys that distribute its work may "
                f"change ({_ALLOWED})"
            )


def check_unchanged(run: RunDirectory, experiment: Experiment) -> None:
    """Hold config.yaml against what the run was started with (runs of older versions have no record of that).

    Raises:
        ConfigError: names the keys that differ, with both values.
    """
    recorded = recorded_config(run)
    if recorded is None:
        return
    with contextlib.suppress(ConfigError):  # a key that is no more: config.yaml cannot hold it either
        recorded = build(Experiment, recorded).model_dump(mode="json")  # with the defaults of keys that were added
    changed = sorted(_changes(recorded, experiment.model_dump(mode="json")))
    if not changed:
        return
    listed = "; ".join(f"{key} was {old} and is {new}" for _, key, old, new in changed[:_NAMED])
    more = f"; and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    raise ConfigError(
        f"{run.config} was edited since the run started ({listed}{more}); put it back to continue the run, or start a "
        f"new one with --config; only the keys that distribute its work may change ({_ALLOWED})"
    )


def _changes(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[bool, str, str, str]]:
    """Dotted keys with their values then and now as texts; in front whether it is no name (which comes first)."""
    for key in before.keys() | now.keys():
        dotted, old, new = f"{prefix}{key}", before.get(key, _MISSING), now.get(key, _MISSING)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, f"{dotted}.")
        elif old != new and dotted not in _FREE:
            yield key != "name", dotted, _shown(old), _shown(new)


def _shown(value: Any) -> str:
    text = "not there" if value is _MISSING else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def identity(experiment: Experiment) -> str:
    """Equal for experiments that give the same results: name and place never matter, optim and trainer only if anything
    is trained, the seed also where anything starts from random values or rows are drawn by it."""
    tree = experiment.model_dump(mode="json")
    trains = experiment.trainer.max_steps > 0 and experiment.method.trains
    is_drawn = experiment.method.trains or experiment.lm.from_scratch is not None or experiment.data.is_drawn
    for key in (*PLACES, *(() if trains else _TRAINING), *(() if is_drawn else ("seed",))):
        del tree[key]
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


_BLOCKS, _BLOCK = 64, 2**20
"""Files of up to 64 MiB are read whole, of larger ones so many blocks."""


def files_of(experiment: Experiment) -> dict[str, str]:
    """Path -> hash of what is there: the files and folders that its data names, those of its LM and of the LMs that its
    method opens, and the trained tensors that its training reads."""
    lms = [experiment.lm, *(each for _, each in experiment.method if isinstance(each, LanguageModelConfig))]
    read = {place: place for place in (*experiment.data.places(), *(Path(lm.path) for lm in lms if is_place(lm.path)))}
    with contextlib.suppress(ConfigError):
        read |= {place: tensors_at(place) for place in experiment.method.trained_places}
    found = dict[str, str]()
    for place, content in read.items():
        with contextlib.suppress(OSError):  # who reads it says what is wrong
            found[str(place)] = _content(content)
    return found


def changed_file(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """The first path of which both know what was there, and something else is."""
    return next((path for path, found in now.items() if before.get(path, found) != found), None)


def _content(place: Path) -> str:
    inside = {file.relative_to(place): file for file in (place.rglob("*") if place.is_dir() else [place])}
    seen = {name: file for name, file in inside.items() if not any(part.startswith(".") for part in name.parts)}
    stats = ((str(name), file, file.stat()) for name, file in sorted(seen.items()) if file.is_file() or file == place)
    parts = [(name, _hash_of(file, at.st_size, at.st_mtime_ns)) for name, file, at in stats]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@functools.cache
def _hash_of(file: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as content:
        for number in range(_BLOCKS):
            content.seek(max(number * _BLOCK, (size - _BLOCK) * number // (_BLOCKS - 1)))
            digest.update(content.read(_BLOCK))
    return digest.hexdigest()


def find(experiment: Experiment, run_dir: Path | None = None) -> tuple[State, Path | None]:
    """A run of this experiment in `run_dir` alone or under output_dir: a finished one, if any, and the newest first."""
    wanted, unfinished = identity(experiment), None
    folders = [run_dir] if run_dir is not None else []
    if run_dir is None:
        configs = [config for config in Path(experiment.output_dir).glob("*/config.yaml") if config.is_file()]
        folders = [each.parent for each in sorted(configs, key=lambda path: path.stat().st_mtime, reverse=True)]
    for folder in folders:
        run = RunDirectory(folder)
        if run.config.is_file() and _is_run_of(run, experiment, wanted):
            with contextlib.suppress(ConfigError):
                read_results(run.results)
                if run.predictions.is_file():
                    return "finished", folder
            unfinished = unfinished or folder
    return ("unfinished" if unfinished else "missing"), unfinished


def _is_run_of(run: RunDirectory, experiment: Experiment, wanted: str) -> bool:
    try:
        tree = read_yaml(run.config)
        method = tree.get("method")
        if not isinstance(method, dict) or method.get("name") != experiment.method.name:
            return False
        found = build(Experiment, tree)
        if identity(found) != wanted:
            return False
        check_unchanged(run, found)
        return changed_file(recorded_files(run), files_of(experiment)) is None
    except ConfigError:  # a damaged file, an edited one or one of another version is no run of this experiment
        return False
