"""What of a run may change when it is continued: where it is and how its work is divided, not what it computes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from promptcomp.config import ConfigError, apply_overrides, build, read_yaml
from promptcomp.experiment import Experiment
from promptcomp.run.run_directory import RunDirectory, recorded_config

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
_MISSING = object()


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
    changed = list(_changes(_as_read_today(recorded), experiment.model_dump(mode="json")))
    if not changed:
        return
    changed.sort(key=lambda change: (not change[0].endswith(".name"), change[0]))
    listed = "; ".join(f"{key} was {_shown(old)} and is {_shown(new)}" for key, old, new in changed[:_NAMED])
    more = f"; and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    raise ConfigError(
        f"{run.config} was edited since the run began ({listed}{more}); put it back to continue the run, or start a "
        f"new one with --config; only how the work is divided may change ({_allowed()})"
    )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys with their values then and now."""
    for key in before.keys() | now.keys():
        old, new = before.get(key, _MISSING), now.get(key, _MISSING)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, f"{prefix}{key}.")
        elif old != new and prefix + key not in _FREE:
            yield prefix + key, old, new


def _as_read_today(recorded: dict[str, Any]) -> dict[str, Any]:
    """With the defaults of keys that were added since."""
    try:
        return build(Experiment, recorded).model_dump(mode="json")
    except ConfigError:  # a key that is no more: config.yaml cannot hold it either
        return recorded


def _allowed() -> str:
    return ", ".join(f"trainer.{each}" for each in DIVISION)


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "not there"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
