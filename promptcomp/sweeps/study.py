"""A sweep's storage as a whole: begun, opened by workers, and read as a `SweepState`.

Two Optuna studies share the storage: NAME holds the trials, NAME.controls the controls (which have no parameters and
would confuse a sampler).
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from promptcomp import __version__
from promptcomp.config import ConfigError, build, dump, flat, read_yaml
from promptcomp.files import check_no_links, make_folder, write_atomic
from promptcomp.run.configured import changed_file, files_of
from promptcomp.sweeps.attempts import Attempts, make_study, time_of
from promptcomp.sweeps.checking import check_workers, first_point, samples_of
from promptcomp.sweeps.planning import Trial
from promptcomp.sweeps.space import base_tree, experiment_of
from promptcomp.sweeps.state import SweepState, state_of
from promptcomp.sweeps.storage import (
    DAMAGE,
    address_of,
    close_storage,
    damaged,
    exclusive,
    open_storage,
    place_of,
    plain,
    study_name,
    unreachable,
)
from promptcomp.sweeps.sweep_config import Choices, SweepConfig, is_below, keys_of
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.values import goals_of


@dataclass(slots=True)
class Sweep:
    """An open sweep."""

    directory: SweepDirectory
    config: SweepConfig
    address: URL | None
    trials: Attempts
    controls: Attempts
    place: str

    def study_of(self, trial: Trial) -> Attempts:
        """Where the attempts at a trial (or a control) are."""
        return self.controls if trial.is_control else self.trials

    def records(self) -> list[Trial]:
        """All attempts at trials and controls."""
        return [*self.trials.records(), *self.controls.records()]

    def close(self) -> None:
        """Give a database's connections back."""
        close_storage(self.trials.storage)

    def reload(self) -> None:
        """Read sweep.yaml again: another parent may have added points."""
        self.config = read_config(self.directory)

    def check_files(self, now: Mapping[str, str]) -> None:
        """Hold what trials read (`files_of`) against what it was when the sweep was begun.

        Raises:
            ConfigError: names a file that has changed.
        """
        if changed := changed_file(self.trials.attribute("files") or {}, now):
            raise ConfigError(
                f"{changed} is not what it was when the sweep in {self.directory.path} started; put it back, or start "
                "another sweep with -o"
            )

    @property
    def base(self) -> dict[str, Any]:
        """Its experiment with `set` as it was when the sweep was begun, whatever has become of the file since."""
        return self.trials.attribute("experiment") or base_tree(self.config)

    @property
    def started(self) -> datetime | None:
        """When the sweep was first begun."""
        return time_of(self.trials.attribute("started"))

    def state(self) -> SweepState:
        """A snapshot; what was read before is not parsed again."""
        state = state_of(self.directory, self.config, self.records(), self.started, self.place)
        planned = int(self.trials.attribute("exhausted") or 0) or state.planned
        return replace(state, planned=planned, base=self.trials.attribute("experiment"))


def read_config(directory: SweepDirectory) -> SweepConfig:
    """The sweep of a directory, as resolved.

    Raises:
        ConfigError: no sweep, or a damaged sweep.yaml.
    """
    directory.check()
    return build(SweepConfig, read_yaml(directory.config), source=str(directory.config))


def begin(config: SweepConfig, directory: SweepDirectory, storage: str | None, workers: int) -> Sweep:
    """Make a sweep's storage, or join it; sweep.yaml is then this `config`.

    Args:
        config: the sweep as wanted now.
        directory: its own.
        storage: a database's address; None: a journal file, or what the sweep was begun with.
        workers: how many are to work on it.

    Raises:
        ConfigError: a change that finished trials forbid, an unusable storage or directory.
    """
    check_no_links(directory.path, ("runs", "controls", "logs", "leases", "report"))
    for folder in (directory.path, directory.runs, directory.logs, directory.worker_leases):
        make_folder(folder)
    address = address_of(directory, storage)
    check_workers(address, workers)
    try:
        with exclusive(directory, address):
            sweep = _open(directory, config, address)
            _compare_and_note(sweep)
            for study in (sweep.trials, sweep.controls):  # somebody may have put right what was wrong
                study.ignore(*(record.number for record in study.records() if record.kind == "config"))
            if address is not None:
                write_atomic(directory.storage, f"{plain(address)}\n")
            if not sweep.place:
                sweep.place = uuid.uuid4().hex
                write_atomic(directory.place, f"{sweep.place}\n{study_name(directory)}\n")
            write_atomic(directory.config, dump(config))
    except DBAPIError as error:
        raise unreachable(error) from None
    return sweep


def open_sweep(directory: SweepDirectory) -> Sweep:
    """Open a sweep that was begun before.

    Raises:
        ConfigError: no sweep, a damaged journal, a database that does not answer.
    """
    return _open(directory, read_config(directory), address_of(directory, None))


def _open(directory: SweepDirectory, config: SweepConfig, address: URL | None) -> Sweep:
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # people read what the sweep says itself
    opened = open_storage(directory, address)
    name = study_name(directory)
    make_study(opened, name, [objective.direction for objective in config.objectives])
    make_study(opened, f"{name}.controls", ["maximize"])
    return _of_storage(directory, config, address, opened)


def _of_storage(directory: SweepDirectory, config: SweepConfig, address: URL | None, storage: BaseStorage) -> Sweep:
    name, objectives = study_name(directory), [goal.name for goal in goals_of(config)]
    trials, controls = Attempts(storage, name, objectives), Attempts(storage, f"{name}.controls")
    return Sweep(directory, config, address, trials, controls, place_of(directory)[0])


def _compare_and_note(sweep: Sweep) -> None:
    """Refuse what has changed and may not; note what the sweep is now."""
    before = sweep.trials.attribute("config")
    base = base_tree(sweep.config)
    if isinstance(before, dict):
        check_changes(sweep.directory.path, before, sweep.config, sweep.trials.attribute("experiment") or {}, base)
    read = _files_of(sweep.config, base)
    known = sweep.trials.attribute("files") or {}
    sweep.check_files(read)
    # of the first start: samplers draw differently in other versions of Optuna
    notes: dict[str, Any] = {"started": datetime.now(UTC).isoformat(), "optuna": optuna.__version__}
    notes = {name: value for name, value in notes.items() if sweep.trials.attribute(name) is None}
    notes |= {"files": {**read, **known}} if read else {}
    notes |= {"promptcomp": __version__, "experiment": base, "config": sweep.config.model_dump(mode="json")}
    for name, value in notes.items():
        if sweep.trials.attribute(name) != value:
            sweep.trials.set_attribute(name, value)


def _files_of(config: SweepConfig, base: Mapping[str, Any]) -> dict[str, str]:
    """What the trials read: the files of the first point, and of those that other values of its dimensions name."""
    start, found = first_point(config), dict[str, str]()
    others = ({**start, name: value} for name, each in config.space.items() for value in samples_of(each))
    for point in (start, *others):
        with contextlib.suppress(ConfigError):  # values that contradict each other, which are no trials
            found |= files_of(experiment_of(config, point, config.first_seed, base))
    return found


def read_state(directory: SweepDirectory, storage: str | None = None) -> SweepState:
    """A sweep's state, read without holding anybody up.

    Args:
        directory: the sweep's.
        storage: a database's address with its password, if it has changed.

    Raises:
        ConfigError: no sweep, a damaged journal, a database that does not answer.
    """
    config, address = read_config(directory), address_of(directory, storage)
    if address is None and not directory.journal.is_file():
        return state_of(directory, config, [], None)
    opened: BaseStorage | None = None
    try:
        opened = open_storage(directory, address)
        names = (study_name(directory), f"{study_name(directory)}.controls")
        if not {study.study_name for study in opened.get_all_studies()}.issuperset(names):
            return state_of(directory, config, [], None)
        return _of_storage(directory, config, address, opened).state()
    except DBAPIError as error:
        raise unreachable(error) from None
    except DAMAGE as error:
        if isinstance(error, ConfigError) or address is not None:
            raise
        raise damaged(directory.journal, error) from None
    finally:
        if opened is not None:
            close_storage(opened)


_FIXED = ("sampler", "objectives", "constraints", "pruning")
"""Trials that were run under others could not be compared with new ones."""
_NOT_COMPARED = ("name", "output_dir", "seed")


def check_changes(
    path: Path, before: Mapping[str, Any], now: SweepConfig, base_before: Mapping[str, Any], base_now: Mapping[str, Any]
) -> None:
    """Refuse a change that finished trials cannot be reconciled with.

    Args:
        path: the sweep's directory, for the message.
        before: the sweep as it was begun, as a tree.
        now: as it is asked for.
        base_before: its experiment with `set`, as a tree.
        base_now: the same, now.

    Raises:
        ConfigError: names the first difference and the way out.
    """
    for difference in _differences(before, now, base_before, base_now):
        raise ConfigError(f"{path} was started with {difference}; undo that change, or start another sweep with -o")


def check_begun(config: SweepConfig, directory: SweepDirectory) -> SweepState | None:
    """Before anything is written: whether a sweep that is there already may go on so; its state, None: there is none.

    Raises:
        ConfigError: see `check_changes`.
    """
    if not directory.config.is_file():
        return None
    before = read_state(directory)
    tree = before.config.model_dump(mode="json")
    check_changes(directory.path, tree, config, before.base or base_tree(before.config), base_tree(config))
    return before


def _differences(
    before: Mapping[str, Any], now: SweepConfig, base_before: Mapping[str, Any], base_now: Mapping[str, Any]
) -> Iterator[str]:
    tree = now.model_dump(mode="json")
    for key in _FIXED:
        if key in before and before[key] != tree[key]:
            yield f"{key} {_shown(before[key])}, not {_shown(tree[key])}"
    yield from _in_space(before.get("space", {}), tree["space"], now)
    swept = {*now.space, *(key for name, dimension in now.space.items() for key in keys_of(name, dimension))}
    old, new = flat(base_before), flat(base_now)
    for key in [*old, *(key for key in new if key not in old)]:
        if key not in _NOT_COMPARED and not is_below(key, swept) and old.get(key) != new.get(key):
            yield f"{key} = {_shown(old.get(key))}, not {_shown(new.get(key))}"


def _in_space(before: Mapping[str, Any], now: Mapping[str, Any], config: SweepConfig) -> Iterator[str]:
    for key in sorted(set(before) ^ set(now)) if before else ():
        yield f"a space {'without' if key in now else 'with'} {key}"
    if config.sampler != "grid":
        for key in now:
            if before.get(key) != now[key]:
                yield f"the space {key} = {_shown(before.get(key))}, and a sampler that draws needs it unchanged"
    for key, dimension in config.space.items():
        if isinstance(dimension, Choices):
            old = before.get(key, {}).get("choices") or {}
            for name, settings in now[key]["choices"].items():
                if name in old and old[name] != settings:
                    yield f"other settings of {key} = {name} ({_shown(old[name])}); give the new ones another name"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
