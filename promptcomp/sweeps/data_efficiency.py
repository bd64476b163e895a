"""The sweep behind `promptcomp curve METHOD`: the method and its baselines over shares of the training data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from promptcomp.config import build, read_yaml, with_settings
from promptcomp.datamodules import DATASETS
from promptcomp.errors import ConfigError
from promptcomp.sweeps.space import SHARE, experiment_file, experiment_of
from promptcomp.sweeps.sweep_config import SweepConfig, read_value, split_values
from promptcomp.sweeps.sweep_file import apply_words

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
    seeds: int = 3,
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
        seeds: trials of each point.
        sizes: values of `size_key`, with commas; empty: what the method's file has.
        size_key: what `sizes` are values of.

    Raises:
        ConfigError: a mistake in names or words, or an experiment whose data has no shares.
    """
    names = (method, *against)
    if len(set(names)) < len(names):
        raise ConfigError(f"{', '.join(names)}: each method once")
    files = {name: read_yaml(experiment_file(name)) for name in names}
    shared, own = _sorted_words(names, words)
    tree = {
        "title": f"{method} against {', '.join(against)}: how much data does it save?",
        "experiment": str(Path(method).absolute()) if method.endswith((".yaml", ".yml")) else method,
        "space": {
            CHOOSER: {"choices": {name: _settings(name, files[name], own[name], name == method) for name in names}},
            **({size_key: _listed(sizes, "--sizes")} if sizes else {}),
            SHARE: _listed(shares, "--fractions"),
        },
        "seeds": seeds,
        "set": {},
        "objectives": [{"metric": "method"}],
    }
    tree = _with_subset(method, files[method], _untangled(apply_words(tree, shared)))
    config = build(SweepConfig, tree, source=f"curve {method}")
    experiment = experiment_of(config, {CHOOSER: method}, config.first_seed)
    if config.objectives[0].metric != "method" or experiment.evaluation.generate is False:
        return config
    own = experiment.data.model_dump()["metric"]  # what "method" is there, by its name
    named = config.objectives[0].model_copy(update={"metric": own})
    return config.model_copy(update={"objectives": (named,)})


def _sorted_words(names: Sequence[str], words: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Words for all, and those for one method."""
    shared: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in names}
    for word in words:
        key = word.partition("=")[0]
        name, colon, rest = key.rpartition(":")
        if colon and name not in own:
            raise ConfigError(f"{word!r}: {name!r} is none of the curve's methods ({', '.join(names)})")
        if colon:
            own[name].append(rest + word[len(key) :])
        elif key == "method" or key.startswith("method."):
            own[names[0]].append(word)
        else:
            shared.append(word)
    return shared, own


def _settings(name: str, file: Mapping[str, Any], words: Iterable[str], is_first: bool) -> dict[str, Any]:
    """What a method sets: its section, a baseline's own keys of the data, its words."""
    section, data = file.get("method"), file.get("data")
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name}: method is missing")
    kept = {} if is_first or not isinstance(data, Mapping) else data
    read = apply_words({"set": {}}, words)
    if set(read) != {"set"}:
        raise ConfigError(
            f"{name}: {', '.join(words)}: one method takes one value of a key; others are for all methods"
        )
    return {"method": section, **{f"data.{key}": kept[key] for key in _OF_BASELINES if key in kept}, **read["set"]}


def _listed(text: str, option: str) -> list[Any]:
    return [read_value(part, option) for part in split_values(text)]


def _with_subset(method: str, file: Mapping[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """Seeds draw other rows too, unless told otherwise: an interval over seeds should know of the luck of the rows."""
    data = with_settings(file, tree["set"]).get("data")
    if not isinstance(data, Mapping):
        return tree
    section = DATASETS.get(data.get("name", ""))
    if section is not None and "train_share" not in section.model_fields:
        raise ConfigError(f"{method}: a curve needs rationale data ({SHARE}); {data['name']} is none")
    return tree if "subset" in data else {**tree, "set": {"data.subset": "per_seed", **tree["set"]}}


def _untangled(tree: dict[str, Any]) -> dict[str, Any]:
    """Keys for all that some method sets itself go to every method, where the method's own value comes after."""
    choices: dict[str, dict[str, Any]] = tree["space"][CHOOSER]["choices"]
    taken = {key for settings in choices.values() for key in settings}
    tangled = {
        key: value
        for key, value in tree["set"].items()
        if any(key == other or key.startswith(f"{other}.") for other in taken)
    }
    chosen = {name: {**tangled, **settings} for name, settings in choices.items()}
    fixed = {key: value for key, value in tree["set"].items() if key not in tangled}
    return {**tree, "set": fixed, "space": {**tree["space"], CHOOSER: {"choices": chosen}}}
