"""A sweep that is begun again: what may differ from the first time (it is planned in addition) and what may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from promptcomp.config import ConfigError, flat
from promptcomp.sweeps.sweep_config import Choices, SweepConfig

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
        raise ConfigError(f"{path} was begun with {difference}; take that back, or begin another sweep with -o")


def _differences(
    before: Mapping[str, Any], now: SweepConfig, base_before: Mapping[str, Any], base_now: Mapping[str, Any]
) -> Iterator[str]:
    tree = now.model_dump(mode="json")
    for key in _FIXED:
        if key in before and before[key] != tree[key]:
            yield f"{key} {_shown(before[key])}, not {_shown(tree[key])}"
    yield from _in_space(before.get("space", {}), tree["space"], now)
    swept = set(now.space)
    for dimension in now.space.values():
        if isinstance(dimension, Choices):
            swept |= {key for settings in dimension.choices.values() for key in settings}
    old, new = flat(base_before), flat(base_now)
    for key in [*old, *(key for key in new if key not in old)]:
        if key not in _NOT_COMPARED and not _is_below(key, swept) and old.get(key) != new.get(key):
            yield f"{key} = {_shown(old.get(key))}, not {_shown(new.get(key))}"


def _in_space(before: Mapping[str, Any], now: Mapping[str, Any], config: SweepConfig) -> Iterator[str]:
    if list(before) and set(before) != set(now):
        for key in sorted(set(before) ^ set(now)):
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


def _is_below(key: str, swept: set[str]) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in swept)


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
