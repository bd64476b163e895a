"""What a shell completes: methods, experiments, keys, runs, sweeps. No torch, and no schema where names of files do."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def experiment_names(incomplete: str) -> list[str]:
    """Shipped experiments."""
    from promptcomp.documents import shipped

    return _starting(shipped(), incomplete)


def method_names(incomplete: str) -> list[str]:
    """Methods."""
    from promptcomp.lightning_modules import METHODS

    return _starting(METHODS, incomplete)


def data_names(incomplete: str) -> list[str]:
    """Kinds of data."""
    from promptcomp.datamodules import DATASETS

    return _starting(DATASETS, incomplete)


def sweep_names(incomplete: str) -> list[str]:
    """Shipped sweeps, and sweeps that were started here."""
    from promptcomp.documents import shipped

    return _starting([*shipped("sweeps"), *sweep_folders(incomplete)], incomplete)


def words_to_explain(incomplete: str) -> list[str]:
    """Sections, the keys of the one that was begun, and words of the glossary."""
    from promptcomp.documents import glossary
    from promptcomp.reference import entries

    return [*_next(entries(), incomplete), *_starting((each for each in glossary() if " " not in each), incomplete)]


def overrides(ctx: Any, incomplete: str) -> list[str]:
    """Keys of the experiment that the command names, and the choices of one.

    A shell that takes `=` for the end of a word hands over what comes after it alone.
    """
    from promptcomp.reference import of_experiment

    words = os.environ.get("COMP_WORDS", "").split("\n")
    key, equals, value = incomplete.partition("=")
    cut = not equals and len(words) > 1 and "=" in words[-2:]
    if cut:
        key, value = words[words.index("=", -2) - 1], "" if incomplete == "=" else incomplete
    given = ctx.params
    names = _sections_of(given.get("method"), given.get("config"))
    known: dict[str, list[str]] = {}
    for each in of_experiment().values():
        if each.model is None and names.get(each.path.split(".")[0], "") in each.path:
            known.setdefault(each.key, []).extend(each.choices or ([each.default] if each.default else []))
    if equals or cut:
        return [found if cut else f"{key}={found}" for found in _starting(dict.fromkeys(known.get(key, ())), value)]
    experiments = [] if names or given.get("overrides") else experiment_names(incomplete)
    return [*experiments, *(each if each.endswith(".") else f"{each}=" for each in _next(known, incomplete))]


def run_folders(incomplete: str) -> list[str]:
    """Runs in ./runs and below what was typed."""
    return _holding("config.yaml", "runs", incomplete)


def sweep_folders(incomplete: str) -> list[str]:
    """Sweeps in ./sweeps and below what was typed."""
    return _holding("sweep.yaml", "sweeps", incomplete)


def _holding(file: str, home: str, incomplete: str) -> list[str]:
    begun = Path(incomplete if incomplete.endswith("/") else os.path.dirname(incomplete) or home)
    found = [str(each.parent) for folder in {Path(home), begun} for each in folder.glob(f"*/{file}")]
    return _starting(sorted(set(found)), incomplete)


def _sections_of(method: str | None, config: Path | None) -> dict[str, str]:
    """What paths of the experiment's own sections begin with: {"method": "method.mend.", ...}."""
    from promptcomp.config import read_yaml
    from promptcomp.documents import experiment_file
    from promptcomp.errors import ConfigError

    try:
        tree = read_yaml(Path(config) if config else experiment_file(str(method)))
        return {key: f"{key}.{tree[key]['name']}." for key in ("method", "data")}
    except (ConfigError, KeyError, TypeError):
        return {}


def _next(paths: Iterable[str], incomplete: str) -> list[str]:
    """Paths up to the next dot behind what was typed."""
    depth = incomplete.count(".")
    found = dict[str, None]()
    for path in _starting(paths, incomplete):
        parts = path.split(".")
        found[".".join(parts[: depth + 1]) + ("." if len(parts) > depth + 1 else "")] = None
    return list(found)


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
