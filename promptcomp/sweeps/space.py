"""Points and planned trials: which combinations a sweep tries, and the experiment of each with its seed.

A point's parameters are what Optuna stores: dimension -> scalar (the name, for choices; JSON text, for values that are
no scalars). `settings_of` turns them into keys of the experiment.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptcomp.config import build, dump, read_yaml, with_settings
from promptcomp.documents import experiment_file
from promptcomp.errors import ConfigError
from promptcomp.sweeps.sweep_config import (
    Choices,
    Dimension,
    Interval,
    Scalar,
    SweepConfig,
    Values,
    is_numeric,
    name_of_value,
)
from promptcomp.sweeps.sweep_directory import SweepDirectory

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from promptcomp.experiment import Experiment

SHARE = "data.train_share"
"""The key of a sweep over shares of the training data."""
CONTROLS = ("full_prompt", "no_prompt")
"""Points of the controls, which have no parameters: what is trained as the trials are, without a compressed context."""
_POINT_ID = 16
"""Hexadecimal digits."""


def scalars(dimension: Dimension) -> Sequence[Scalar] | None:
    """What a grid tries of a dimension, in its own order; None for a continuous interval."""
    if isinstance(dimension, Choices):
        return tuple(dimension.choices)
    if isinstance(dimension, Values):
        return tuple(name_of_value(value) for value in dimension.values)
    return _of_interval(dimension)


def tell_dimension(dimension: Dimension) -> str:
    """What is tried, in one line."""
    if isinstance(dimension, Choices):
        return ", ".join(dimension.choices)
    if isinstance(dimension, Values):
        return ", ".join(str(value) for value in dimension.values)
    words = [f"{dimension.low:g} to {dimension.high:g}"]
    words += ["whole numbers"] if dimension.integer else []
    words += ["logarithmic"] if dimension.log else []
    words += [f"{dimension.steps} steps"] if dimension.steps else []
    return ", ".join(words)


def _of_interval(interval: Interval) -> Sequence[Scalar] | None:
    low, high, steps = interval.low, interval.high, interval.steps
    if steps is None:
        whole = interval.integer and not interval.log  # on a logarithmic scale someone has to say how many
        return range(int(low), int(high) + 1) if whole else None  # however many there are
    shares = [i / (steps - 1) for i in range(steps)]
    if interval.log:
        found = [low * (high / low) ** share for share in shares]
    else:
        found = [low + (high - low) * share for share in shares]
    found[0], found[-1] = low, high
    if interval.integer:
        return tuple(dict.fromkeys(round(value) for value in found))
    return tuple(float(f"{value:.6g}") for value in found)  # 0.3 and not 0.30000000000000004


def grid_size(config: SweepConfig) -> int:
    """Points of the sweep: of its grid, or the number to draw (all that there are, where these are fewer).

    Raises:
        ConfigError: a grid over a continuous interval.
    """
    if config.sampler != "grid":
        assert config.points is not None
        return min(config.points, math.prod(map(_count, config.space.values())))
    return math.prod(len(_grid_values(name, dimension)) for name, dimension in config.space.items())


def _count(dimension: Dimension) -> int:
    """Values that a sampler can draw; of a continuous interval a number that no sweep has points of."""
    if (values := scalars(dimension)) is not None:
        return len(values)
    assert isinstance(dimension, Interval)
    return int(dimension.high - dimension.low) + 1 if dimension.integer else sys.maxsize


def _grid_values(name: str, dimension: Dimension) -> Sequence[Scalar]:
    values = scalars(dimension)
    if values is None:
        assert isinstance(dimension, Interval)
        scale = " on a logarithmic scale" if dimension.log else ""
        raise ConfigError(
            f"space {name}: a grid over {dimension.low:g} to {dimension.high:g}{scale} needs steps (for example "
            f"{dimension.low:g}..{dimension.high:g}{':log' if dimension.log else ''}:steps=5), or a sampler that draws "
            "(sweep.sampler=tpe)"
        )
    return values


def grid(config: SweepConfig) -> list[dict[str, Scalar]]:
    """Every combination. The order is mixed: corners first, then ever finer, so that early results cover the space.

    Raises:
        ConfigError: a continuous interval without steps.
    """
    axes = [list(enumerate(_coarse_first(_grid_values(name, dim)))) for name, dim in config.space.items()]
    combinations = sorted(
        itertools.product(*axes),
        key=lambda found: (max(rank for rank, _ in found), sum(rank for rank, _ in found), [rank for rank, _ in found]),
    )
    return [dict(zip(config.space, (value for _, value in found), strict=True)) for found in combinations]


def _coarse_first(values: Sequence[Scalar]) -> list[Scalar]:
    """Both ends, then the middle, the quarters, ..."""
    order = dict.fromkeys([0, len(values) - 1])
    parts = [(0, len(values) - 1)]
    while parts:
        finer = []
        for low, high in parts:
            if high - low > 1:
                middle = (low + high) // 2
                order[middle] = None
                finer += [(low, middle), (middle, high)]
        parts = finer
    return [values[i] for i in order]


def distributions(config: SweepConfig) -> dict[str, BaseDistribution]:
    """The distribution of each dimension for Optuna.

    A grid's numbers are an interval there, so that values can be added to a study; a sampler that draws must keep to
    the listed values, which are then categories unless they are whole numbers at equal distances.
    """
    return {name: distribution(dim, config.sampler == "grid") for name, dim in config.space.items()}


def distribution(dimension: Dimension, is_grid: bool = False) -> BaseDistribution:
    """See `distributions`."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    values = scalars(dimension)
    if isinstance(dimension, Interval) and (dimension.steps is None or is_grid):
        if dimension.integer:
            return IntDistribution(math.floor(dimension.low), math.ceil(dimension.high), log=dimension.log)
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    assert values is not None
    if isinstance(dimension, Values) and is_numeric(dimension):
        numbers = sorted(value for value in values if isinstance(value, int | float))
        whole = [number for number in numbers if isinstance(number, int)]
        if is_grid:
            if len(whole) == len(numbers):
                return IntDistribution(whole[0], whole[-1])
            return FloatDistribution(float(numbers[0]), float(numbers[-1]))
        gaps = {b - a for a, b in itertools.pairwise(whole)}
        if len(whole) == len(numbers) and len(gaps) == 1:
            return IntDistribution(whole[0], whole[-1], step=gaps.pop())
    return CategoricalDistribution(tuple(values))


def point_id(params: Mapping[str, Scalar]) -> str:
    """Identity of a point: equal for equal parameters in any order; 2 and 2.0 are the same value."""
    plain = {name: _plain(value) for name, value in params.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:_POINT_ID]


def _plain(value: Scalar) -> Scalar:
    return int(value) if isinstance(value, float) and value.is_integer() else value


_HEX = 8
_MAX_SLUG = 72
"""Letters; with the seed and the identity a name stays well below the 255 bytes of file systems."""


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """One run of a sweep: a point with a seed, or a control with a seed."""

    cell: str
    """Readable name that ends in the identity of the whole experiment; names the run directory."""
    point: str
    """Identity of the point; a control's name for controls."""
    params: Mapping[str, Scalar]
    """Dimension -> scalar; empty for controls."""
    seed: int
    experiment: Experiment
    run: Path


def devices_of(experiment: Experiment) -> int:
    """Devices (on CPU: processes) of a trial; where it takes what there is, a worker of `promptcomp sweep` gives
    it one."""
    devices = experiment.trainer.devices
    return devices if isinstance(devices, int) else 1


def settings_of(config: SweepConfig, params: Mapping[str, Scalar]) -> dict[str, Any]:
    """Dotted key -> value, as the parameters say.

    Raises:
        ConfigError: a parameter that the space does not have, or a value that is not listed.
    """
    settings: dict[str, Any] = {}
    for name, found in params.items():
        dimension = config.space.get(name)
        if dimension is None:
            raise ConfigError(f"{name} is no key of the sweep's space ({', '.join(config.space)})")
        if isinstance(dimension, Interval):
            settings[name] = found
            continue
        if isinstance(dimension, Choices):
            if not isinstance(found, str) or found not in dimension.choices:
                raise ConfigError(f"space {name}: {found!r} is none of its choices ({', '.join(dimension.choices)})")
            settings |= dimension.choices[found]
            continue
        values = [value for value in dimension.values if name_of_value(value) == found]
        if not values:
            raise ConfigError(f"space {name}: {found!r} is none of its values")
        settings[name] = values[0]
    return settings


def base_tree(config: SweepConfig) -> dict[str, Any]:
    """The experiment's file with `set` applied.

    Raises:
        ConfigError: no such experiment, an unreadable file, or a key of `set` that goes through a value.
    """
    return with_settings(read_yaml(experiment_file(config.experiment)), config.set)


def experiment_of(
    config: SweepConfig, params: Mapping[str, Scalar], seed: int, base: Mapping[str, Any] | None = None
) -> Experiment:
    """The experiment of a point with a seed, as `fit --config` would take it (name and place are the base's).

    Args:
        config: the sweep.
        params: the point.
        seed: the run's.
        base: the experiment with `set`, where it is there already: of a sweep that was begun as it was then, whatever
            has become of its file; None: `base_tree(config)`.

    Raises:
        ConfigError: any mistake in the configuration.
    """
    from promptcomp.experiment import Experiment

    tree = with_settings(base_tree(config) if base is None else base, settings_of(config, params))
    return build(Experiment, {**tree, "seed": seed}, source=config.experiment)


def planned_trial(
    config: SweepConfig,
    directory: SweepDirectory,
    params: Mapping[str, Scalar],
    seed: int,
    base: Mapping[str, Any] | None = None,
) -> PlannedTrial:
    """The run of a point with a seed: its name, experiment and place.

    Args:
        config: the sweep.
        directory: where runs are.
        params: the point.
        seed: the run's.
        base: see `experiment_of`.

    Raises:
        ConfigError: any mistake in the configuration.
    """
    experiment = experiment_of(config, params, seed, base)
    return _placed(experiment, _slug(params), point_id(params), params, directory.runs)


def planned_controls(
    config: SweepConfig, directory: SweepDirectory, base: Mapping[str, Any] | None = None
) -> list[PlannedTrial]:
    """The trained full_prompt and no_prompt of the base experiment for every seed.

    Empty unless `controls` is set, and where the method trains nothing of the LM: then every run's own bounds (the
    full_prompt and no_prompt of its splits) are the bands. `base`: see `experiment_of`.

    Raises:
        ConfigError: any mistake in the configuration.
    """
    if not config.controls:
        return []
    from promptcomp.run.matched_controls import wanted_runs

    base, planned = base_tree(config) if base is None else base, []
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        runs, _ = wanted_runs(experiment_of(config, {}, seed, base))
        for name in CONTROLS:
            experiment = next((each for role, each in runs.items() if role == f"{name}_trained"), None)
            if experiment is not None:
                planned.append(_placed(experiment, name, name, {}, directory.controls))
    return planned


def _placed(experiment: Experiment, slug: str, point: str, params: Mapping[str, Scalar], folder: Path) -> PlannedTrial:
    from promptcomp.run.configured import identity

    cell = f"{slug}-s{experiment.seed}-{identity(experiment)[:_HEX]}"
    placed = experiment.model_copy(update={"name": cell, "output_dir": str(folder)})
    return PlannedTrial(cell, point, dict(params), experiment.seed, placed, folder / cell)


def _slug(params: Mapping[str, Scalar]) -> str:
    """The parameters as a readable file name: num_slots_4-distiller_half."""
    short = [name.rpartition(".")[2] for name in params]
    names = short if len(set(short)) == len(short) else list(params)
    parts = [f"{name}_{_shown(value)}" for name, value in zip(names, params.values(), strict=True)]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts))[:_MAX_SLUG].strip("_-.") or "point"


def _shown(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def best_yaml(
    config: SweepConfig,
    params: Mapping[str, Scalar],
    *,
    seed: int | None = None,
    note: str = "",
    base: Mapping[str, Any] | None = None,
) -> str:
    """A point as an experiment's YAML, which `fit --config` takes.

    Args:
        config: the sweep.
        params: the point.
        seed: of its best trial; null: the sweep's first.
        note: a line for people.
        base: see `experiment_of`.

    Raises:
        ConfigError: the point does not belong to the sweep.
    """
    chosen = config.first_seed if seed is None else seed
    experiment = experiment_of(config, params, chosen, base)
    shown = ", ".join(f"{name} = {value}" for name, value in params.items())
    seeds = f"{config.first_seed} to {config.first_seed + config.seeds - 1}"
    lines = [
        f"point: {shown}",
        f"of the sweep: {config.title or config.experiment}",
        *([note] if note else []),
        f"seed {chosen}: the best trial's" if seed is not None else f"seed {chosen}: the first",
        *([f"the point was run with seeds {seeds}"] if config.seeds > 1 else []),
    ]
    comments = "".join(f"# {line}\n" for text in lines for line in text.splitlines())
    return comments + dump(experiment)
