"""Where a sweep comes from: a shipped name, a YAML file, a sweep directory, or a method with ranges.

Words (`key=value`) change it: `sweep.seeds=5` a key of the sweep itself, `method.num_slots=1,2` what is tried of a key,
`trainer.max_steps=200` a key of every trial's experiment.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from promptcomp.config import apply_overrides, build, read_yaml
from promptcomp.errors import ConfigError, did_you_mean
from promptcomp.plain import shown
from promptcomp.sweeps.sweep_config import (
    Choices,
    Dimension,
    Interval,
    SweepConfig,
    is_range,
    read_range,
    read_value,
    split_values,
)
from promptcomp.sweeps.sweep_directory import SweepDirectory

OWN = "sweep."
"""In front of a key of the sweep itself."""
DEFAULT_POINTS = 20
"""Points of a sampler that draws, where nobody said how many."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A sweep as found, before any words."""

    name: str
    """Short name, for the default directory."""
    source: str
    """What to call it in messages."""
    tree: dict[str, Any]
    directory: Path | None = None
    """Where it is, if it is a sweep that has been started."""


def shipped_sweeps() -> dict[str, Path]:
    """The sweeps that come with the package, by name."""
    root = Path(str(resources.files("promptcomp"))) / "experiments" / "sweeps"
    return {path.stem: path for path in sorted(root.glob("*.yaml"))}


def find_sweep(name_or_path: str) -> Origin:
    """A shipped sweep, a YAML file or a sweep directory.

    Raises:
        ConfigError: it is none of them, or its YAML cannot be read.
    """
    path = Path(name_or_path)
    known = shipped_sweeps()
    if name_or_path in known:
        return Origin(name_or_path, f"{name_or_path}.yaml", read_yaml(known[name_or_path]))
    if os.path.isdir(path):
        file = SweepDirectory(path).config
        if not file.is_file():
            raise ConfigError(f"{path} is no sweep directory: it has no {file.name}")
        return Origin(path.name, str(file), read_yaml(file), path)
    if path.suffix in (".yaml", ".yml"):
        return Origin(path.stem, str(path), _with_full_path(read_yaml(path), path.parent))
    hint = did_you_mean(name_or_path, known, f"shipped sweeps: {', '.join(known)}")
    raise ConfigError(f"{name_or_path!r} is no shipped sweep, no YAML file and no sweep directory; {hint}")


def _with_full_path(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """An experiment's file found beside the sweep's (or from here), by its full path: a sweep may be continued from
    another folder."""
    name = tree.get("experiment")
    if not isinstance(name, str) or not name.endswith((".yaml", ".yml")):
        return tree
    beside = folder / name
    return {**tree, "experiment": str((beside if os.path.isfile(beside) else Path(name)).absolute())}


def read_sweep(name_or_path: str | Path, words: Iterable[str] = ()) -> SweepConfig:
    """A shipped sweep, a YAML file or a sweep directory's sweep.yaml, with words applied.

    Raises:
        ConfigError: nothing of that name, or any mistake in the file or the words.
    """
    origin = find_sweep(str(name_or_path))
    return build(SweepConfig, apply_words(origin.tree, words), source=origin.source)


def sweep_of(method: str, words: Iterable[str]) -> SweepConfig:
    """The sweep of a shipped experiment (or a YAML file) over the ranges among the words.

    A continuous range without `:steps` cannot be a grid: then TPE draws, 20 points unless
    `sweep.points` says otherwise.

    Raises:
        ConfigError: no word has several values, or any mistake in them.
    """
    words = tuple(words)
    tree = apply_words(_with_full_path({"experiment": method}, Path()), words)
    if not tree.get("space"):
        raise ConfigError(
            f"--method {method}: no key has several values; give one, for example method.num_slots=2,4,8 or "
            "optim.lr=1e-5..1e-3:log"
        )
    ranges = [word for word in words if word.partition("=")[0] in tree["space"]]
    tree.setdefault("title", f"{Path(method).stem}: {', '.join(ranges)}")
    if "sampler" not in tree:
        continuous = any(_is_continuous(found) for found in tree["space"].values())
        tree["sampler"] = "tpe" if continuous or "points" in tree else "grid"
    if tree["sampler"] != "grid":
        tree.setdefault("points", DEFAULT_POINTS)
    return build(SweepConfig, tree, source=f"--method {method}")


def default_directory(config: SweepConfig, name: str) -> Path:
    """Where a sweep without a name of its own goes: sweeps/METHOD-KEY-KEY."""
    return Path("sweeps") / "-".join([name, *(key.rpartition(".")[2] for key in config.space)])


def _is_continuous(found: Any) -> bool:
    return isinstance(found, Mapping) and "low" in found and not found.get("integer") and not found.get("steps")


def apply_words(tree: Mapping[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """A copy of a sweep's tree with words applied in order.

    Raises:
        ConfigError: a word is no `key=value`, or its value cannot be read.
    """
    result = dict(tree)
    for word in words:
        key, equals, raw = word.partition("=")
        if not equals or not key or not all(key.split(".")):
            raise ConfigError(
                f"{word!r}: write key=value (one value for all trials), key=a,b,c or key=lo..hi (what is tried), or "
                "sweep.key=value (the sweep itself, for example sweep.seeds=5)"
            )
        if key.startswith(OWN):
            result = _own(result, key.removeprefix(OWN), raw, word)
        else:
            result = _tried_or_set(result, key, raw, word)
    return result


def _own(tree: dict[str, Any], key: str, raw: str, word: str) -> dict[str, Any]:
    top = key.split(".")[0]
    if top in ("space", "set"):
        raise ConfigError(f"{word!r}: write what is tried or set without 'sweep.', for example method.num_slots=1,2")
    if top not in SweepConfig.model_fields:
        raise ConfigError(f"{word!r}: a sweep has no key {top!r}; {did_you_mean(top, SweepConfig.model_fields)}")
    result = apply_overrides(_without_nulls(tree, top), [f"{key}={raw}"])
    if key == "sampler":  # switching must not leave the other kind's setting in the way
        if result["sampler"] == "grid":
            result.pop("points", None)
        else:
            result.setdefault("points", DEFAULT_POINTS)
    return result


def _without_nulls(tree: dict[str, Any], key: str) -> dict[str, Any]:
    """A section that is null can get keys."""
    return {name: value for name, value in tree.items() if not (name == key and value is None)}


def _tried_or_set(tree: dict[str, Any], key: str, raw: str, word: str) -> dict[str, Any]:
    space, fixed = _section(tree, "space"), _section(tree, "set")
    found = _dimension_of(raw, word)
    named = space.get(key)
    if isinstance(named, Mapping) and isinstance(named.get("choices"), Mapping):
        space[key] = _chosen(named["choices"], raw, word)
    elif found is not None:
        space[key] = found
        fixed.pop(key, None)
    elif key in space:
        space[key] = [read_value(raw, word)]
    else:
        fixed[key] = read_value(raw, word)
    return {**tree, **({"space": space} if space else {}), **({"set": fixed} if fixed or "set" in tree else {})}


def _section(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = tree.get(name) or {}
    if not isinstance(found, Mapping):
        raise ConfigError(f"{name}: expected keys of the experiment, such as method.num_slots, found {shown(found)}")
    return dict(found)


def _dimension_of(raw: str, word: str) -> Any:
    """What several values or a range become in the space; None for one value."""
    if is_range(raw):
        try:
            return read_range(raw)
        except ValueError as error:
            raise ConfigError(f"{word!r}: {error}") from None
    parts = split_values(raw)
    return [read_value(part, word) for part in parts] if len(parts) > 1 else None


def _chosen(choices: Mapping[str, Any], raw: str, word: str) -> dict[str, Any]:
    """The named ones among the choices."""
    names = split_values(raw)
    for name in names:
        if name not in choices:
            raise ConfigError(f"{word!r}: {name!r} is none of the choices ({', '.join(map(str, choices))})")
    return {"choices": {name: choices[name] for name in names}}


def is_numeric(dimension: Dimension) -> bool:
    """Whether a dimension is an ordered axis of numbers."""
    if isinstance(dimension, Choices):
        return False
    if isinstance(dimension, Interval):
        return True
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in dimension.values)
