"""Points and planned trials: which combinations a sweep tries, and the experiment of each with its seed.

A point's parameters are what Optuna stores: dimension -> scalar (the name, for choices; JSON text, for values that are
no scalars). `settings_of` turns them into keys of the experiment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptcomp.config import build, dump, read_yaml, with_settings
from promptcomp.errors import ConfigError, did_you_mean
from promptcomp.sweeps.points import distributions, grid, grid_size, point_id, scalars
from promptcomp.sweeps.shorthand import name_of_value
from promptcomp.sweeps.sweep_config import Choices, Interval, Scalar, SweepConfig
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.sweep_file import read_sweep, sweep_of

if TYPE_CHECKING:
    from promptcomp.experiment import Experiment

__all__ = [
    "PlannedTrial",
    "base_tree",
    "best_yaml",
    "distributions",
    "grid",
    "grid_size",
    "planned_controls",
    "planned_trial",
    "point_id",
    "read_sweep",
    "scalars",
    "settings_of",
    "sweep_of",
]

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


def experiment_file(name: str) -> Path:
    """The YAML of a shipped experiment, or the file of that name.

    Raises:
        ConfigError: it is neither.
    """
    from promptcomp.experiment import shipped

    known = shipped()
    if name in known:
        return known[name]
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    hint = did_you_mean(name, known, "see 'promptcomp methods'")
    raise ConfigError(f"experiment {name!r} is neither a shipped experiment nor a YAML file; {hint}")


def experiment_of(
    config: SweepConfig, params: Mapping[str, Scalar], seed: int, base: Mapping[str, Any] | None = None
) -> Experiment:
    """The experiment of a point with a seed, as `fit --config` would take it (name and place are the base's).

    Args:
        config: the sweep.
        params: the point.
        seed: the run's.
        base: `base_tree(config)`, where it is there already.

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
        base: `base_tree(config)`, where many trials are planned.

    Raises:
        ConfigError: any mistake in the configuration.
    """
    experiment = experiment_of(config, params, seed, base)
    return _placed(experiment, _slug(params), point_id(params), params, directory.runs)


def planned_controls(config: SweepConfig, directory: SweepDirectory) -> list[PlannedTrial]:
    """The trained full_prompt and no_prompt of the base experiment for every seed.

    Empty unless `controls` is set, and where the method trains nothing of the LM: then every run's own bounds (the
    full_prompt and no_prompt of its splits) are the bands.

    Raises:
        ConfigError: any mistake in the configuration.
    """
    if not config.controls:
        return []
    from promptcomp.run.controls import wanted_runs

    base, planned = base_tree(config), []
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        runs, _ = wanted_runs(experiment_of(config, {}, seed, base))
        for name in ("full_prompt", "no_prompt"):
            experiment = next((each for role, each in runs.items() if role == f"{name}_trained"), None)
            if experiment is not None:
                planned.append(_placed(experiment, name, name, {}, directory.controls))
    return planned


def _placed(experiment: Experiment, slug: str, point: str, params: Mapping[str, Scalar], folder: Path) -> PlannedTrial:
    from promptcomp.run.finding import identity

    cell = f"{slug}-s{experiment.seed}-{identity(experiment)[:_HEX]}"
    placed = experiment.model_copy(update={"name": cell, "output_dir": str(folder)})
    return PlannedTrial(cell, point, dict(params), experiment.seed, placed, folder / cell)


def _slug(params: Mapping[str, Scalar]) -> str:
    """The parameters for people, fit for a file name: num_slots_4-distiller_half."""
    short = [name.rpartition(".")[2] for name in params]
    names = short if len(set(short)) == len(short) else list(params)
    parts = [f"{name}_{_shown(value)}" for name, value in zip(names, params.values(), strict=True)]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts))[:_MAX_SLUG].strip("_-.") or "point"


def _shown(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def best_yaml(config: SweepConfig, params: Mapping[str, Scalar], *, seed: int | None = None, note: str = "") -> str:
    """A point as an experiment's YAML, which `fit --config` takes.

    Args:
        config: the sweep.
        params: the point.
        seed: of its best trial; null: the sweep's first.
        note: a line for people.

    Raises:
        ConfigError: the point does not belong to the sweep.
    """
    chosen = config.first_seed if seed is None else seed
    experiment = experiment_of(config, params, chosen)
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
