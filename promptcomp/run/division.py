"""What of a run may change when it is continued: where it is and how its work is divided, not what it computes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from promptcomp.config import ConfigError, apply_overrides, build, flat, read_yaml
from promptcomp.experiment import Experiment
from promptcomp.run.directory import RunDirectory, recorded_config

PLACES = ("name", "output_dir")
"""Keys that say where a run is kept."""
DIVISION = (
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "accumulate",
    "threads",
    "activation_checkpointing",
    "offload_optimizer",
    "compile",
    "timeout_seconds",
    "checkpoints",
    "checkpoint_every",
)
"""Keys of the section `trainer`."""
_FREE = {*PLACES, *(f"trainer.{key}" for key in DIVISION)}
_NAMED = 5  # changed keys that a message lists


def experiment_to_resume(run: RunDirectory, overrides: Iterable[str] = ()) -> Experiment:
    """The configuration that a run goes on with.

    Raises:
        ConfigError: config.yaml or the overrides would change what the run computes.
    """
    overrides = list(overrides)
    check_overrides(overrides)
    tree = read_yaml(run.config)
    check_unchanged(run, build(Experiment, tree, source=str(run.config)))
    return build(Experiment, apply_overrides(tree, overrides), source=str(run.config))


def check_overrides(overrides: Iterable[str]) -> None:
    """
    Raises:
        ConfigError: one of them would change what is computed.
    """
    for item in overrides:
        if item.partition("=")[0] not in _FREE - {*PLACES}:
            raise ConfigError(
                f"{item!r}: --resume continues a run as it was configured; only how its work is divided may change "
                f"({_allowed()})"
            )


def check_unchanged(run: RunDirectory, experiment: Experiment) -> None:
    """Hold config.yaml against what the run was started with (runs of older versions have no record of that).

    Raises:
        ConfigError: names the keys that differ, with both values.
    """
    recorded = recorded_config(run)
    if recorded is None:
        return
    before, now = flat(_as_read_today(recorded)), flat(experiment.model_dump(mode="json"))
    changed = [key for key in before.keys() | now.keys() if key not in _FREE and before.get(key) != now.get(key)]
    if not changed:
        return
    changed.sort(key=lambda key: (not key.endswith(".name"), key))
    listed = "; ".join(f"{key} was {_shown(before, key)} and is {_shown(now, key)}" for key in changed[:_NAMED])
    more = f"; and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    raise ConfigError(
        f"{run.config} was edited since the run began ({listed}{more}); put it back to continue the run, or start a "
        f"new one with --config; only how the work is divided may change ({_allowed()})"
    )


def _as_read_today(recorded: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of keys that were added since."""
    try:
        return build(Experiment, recorded).model_dump(mode="json")
    except ConfigError:  # a key that is no more: config.yaml cannot hold it either
        return recorded


def _allowed() -> str:
    return ", ".join(f"trainer.{each}" for each in DIVISION)


def _shown(tree: dict[str, Any], key: str) -> str:
    if key not in tree:
        return "not there"
    text = json.dumps(tree[key], ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
