"""Where a sweep comes from: a shipped name, a YAML file, a sweep directory, a method with ranges, or
`promptcomp curve METHOD`: the method and its baselines over shares of the training data.

Words (`key=value`) change it: `sweep.seeds=5` a key of the sweep itself, `method.num_slots=1,2` what is tried of a key,
`trainer.max_steps=200` a key of every trial's experiment.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptcomp.config import apply_overrides, build, read_yaml, with_settings
from promptcomp.documents import experiment_file, shipped
from promptcomp.errors import ConfigError, command, did_you_mean
from promptcomp.plain import shown
from promptcomp.sweeps.space import SHARE, experiment_of
from promptcomp.sweeps.sweep_config import (
    SweepConfig,
    is_below,
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
class SweepFile:
    """A sweep as found, before any words."""

    name: str
    """Short name, for the default directory."""
    source: str
    """What to call it in messages."""
    tree: dict[str, Any]
    directory: Path | None = None
    """Where it is, if it is a sweep that has been started."""


def find_sweep(name_or_path: str) -> SweepFile:
    """A shipped sweep, a YAML file or a sweep directory.

    Raises:
        ConfigError: it is none of them, or its YAML cannot be read.
    """
    path = Path(name_or_path)
    known = shipped("sweeps")
    if name_or_path in known:
        return SweepFile(name_or_path, f"{name_or_path}.yaml", read_yaml(known[name_or_path]))
    if os.path.isdir(path):
        file = SweepDirectory(path).config
        SweepDirectory(path).check()
        return SweepFile(path.name, str(file), read_yaml(file), path)
    if path.suffix in (".yaml", ".yml"):
        return SweepFile(path.stem, str(path), with_full_path(read_yaml(path), path.parent))
    hint = did_you_mean(name_or_path, known, f"{command('sweep', '--list')} lists those that are shipped")
    raise ConfigError(f"{name_or_path!r} is no shipped sweep, no YAML file and no sweep directory; {hint}")


def with_full_path(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """An experiment's file found beside the sweep's or the track's (or from here), by its full path: it may be
    continued from another folder."""
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
    tree = apply_words(with_full_path({"experiment": method}, Path()), words)
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
        raise ConfigError(f"{word!r}: keys of an experiment have no 'sweep.', for example method.num_slots=1,2")
    if top not in SweepConfig.model_fields:
        raise ConfigError(f"{word!r}: a sweep has no key {top!r}; {did_you_mean(top, SweepConfig.model_fields)}")
    plain = {name: value for name, value in tree.items() if name != top or value is not None}  # null can get keys
    result = apply_overrides(plain, [f"{key}={raw}"])
    if key == "sampler":  # switching must not leave the other kind's setting in the way
        if result["sampler"] == "grid":
            result.pop("points", None)
        else:
            result.setdefault("points", DEFAULT_POINTS)
    return result


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


CHOOSER = "method"
"""The dimension that chooses among the methods."""
_OF_BASELINES = ("targets", "label_source")
"""Keys of the data section that a baseline takes from its own file; all others are the method's."""


def data_efficiency(
    method: str,
    against: Sequence[str],
    words: Iterable[str] = (),
    *,
    shares: str = "0.125,0.25,0.5,1",
    sizes: str = "",
    size_key: str = "lm.path",
) -> SweepConfig:
    """A sweep over methods and shares of the training data, all with the first method's data, LM, optimiser and steps.

    Args:
        method: a shipped experiment or a YAML file.
        against: the baselines, likewise: their `method` section, and what of the data is a baseline's own, is theirs.
        words: `key=value` for all methods (`method.*`: for the first alone), `NAME:key=value` for one of them;
            `sweep.key=value` for the sweep.
        shares: numbers, with commas.
        sizes: values of `size_key`, with commas; empty: what the method's file has.
        size_key: what `sizes` are values of.

    Raises:
        ConfigError: a mistake in names or words, or an experiment whose data has no shares.
    """
    names = (method, *against)
    if len(set(names)) < len(names):
        raise ConfigError(f"{', '.join(names)}: each method once")
    files = {name: read_yaml(experiment_file(name)) for name in names}
    words = [f"{method}:{word}" if is_below(word.partition("=")[0], ["method"]) else word for word in words]
    shared, own = sorted_words(names, words, "curve")
    tree = {
        "title": f"{method} against {', '.join(against)}: how much data does it save?",
        "experiment": str(Path(method).absolute()) if method.endswith((".yaml", ".yml")) else method,
        "space": {
            CHOOSER: {"choices": {name: _settings(name, files[name], own[name], name == method) for name in names}},
            **({size_key: _listed(sizes, "--sizes")} if sizes else {}),
            SHARE: _listed(shares, "--fractions"),
        },
        "seeds": 3,
        "set": {},
        "objectives": [{"metric": "method"}],
    }
    tree = _with_subset(method, files[method], untangled(apply_words(tree, shared), CHOOSER))
    config = build(SweepConfig, tree, source=f"curve {method}")
    experiment = experiment_of(config, {CHOOSER: method}, config.first_seed)
    if config.objectives[0].metric != "method" or experiment.evaluation.generate is False:
        return config
    own = experiment.data.model_dump()["metric"]  # what "method" is there, by its name
    named = config.objectives[0].model_copy(update={"metric": own})
    return config.model_copy(update={"objectives": (named,)})


def sorted_words(names: Iterable[str], words: Iterable[str], whose: str) -> tuple[list[str], dict[str, list[str]]]:
    """Words for all methods, and those for one of them (`NAME:key=value`).

    Raises:
        ConfigError: a name that is none of the methods (`whose`: of what).
    """
    shared: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in names}
    for word in words:
        key = word.partition("=")[0]
        name, colon, rest = key.rpartition(":")
        if colon and name not in own:
            raise ConfigError(f"{word!r}: {name!r} is none of the {whose}'s methods ({', '.join(own) or 'none'})")
        (own[name].append(rest + word[len(key) :]) if colon else shared.append(word))
    return shared, own


def only_set(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Key -> value of the words for one method.

    Raises:
        ConfigError: a word with several values.
    """
    read = apply_words({"set": {}}, words)
    if set(read) != {"set"}:
        raise ConfigError(
            f"{name}: {', '.join(words)}: a key of one method takes one value; values to try are for all methods"
        )
    return dict(read["set"])


def _settings(name: str, file: Mapping[str, Any], words: Sequence[str], is_first: bool) -> dict[str, Any]:
    """What a method sets: its section, a baseline's own keys of the data, its words."""
    section, data = file.get("method"), file.get("data")
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name}: method is missing")
    kept = {} if is_first or not isinstance(data, Mapping) else data
    of_data = {f"data.{key}": kept[key] for key in _OF_BASELINES if key in kept}
    return {"method": section, **of_data, **only_set(name, words)}


def _listed(text: str, option: str) -> list[Any]:
    return [read_value(part, option) for part in split_values(text)]


def _with_subset(method: str, file: Mapping[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """Seeds draw other rows too, unless told otherwise: an interval over seeds should know of the luck of the rows."""
    data = with_settings(file, tree["set"]).get("data")
    if not isinstance(data, Mapping):
        return tree
    from promptcomp.datamodules import DATASETS

    section = DATASETS.get(data.get("name", ""))
    if section is not None and "train_share" not in section.model_fields:
        raise ConfigError(f"{method}: a curve needs rationale data ({SHARE}); {data['name']} is none")
    return tree if "subset" in data else {**tree, "set": {"data.subset": "per_seed", **tree["set"]}}


def untangled(tree: Mapping[str, Any], chooser: str) -> dict[str, Any]:
    """Keys for all that some choice of a dimension sets itself go to every choice, where its own value comes after."""
    choices: dict[str, dict[str, Any]] = tree["space"][chooser]["choices"]
    taken = {key for settings in choices.values() for key in settings}
    tangled = {key: value for key, value in tree["set"].items() if is_below(key, taken)}
    chosen = {name: {**tangled, **settings} for name, settings in choices.items()}
    fixed = {key: value for key, value in tree["set"].items() if key not in tangled}
    return {**tree, "set": fixed, "space": {**tree["space"], chooser: {"choices": chosen}}}
