"""The runs to compare, and whether they may be ranked at all."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptcomp.config import ConfigError, read_yaml
from promptcomp.documents import YAML_LIMIT, how_to_begin
from promptcomp.evaluation.predictions import METRICS, MetricName
from promptcomp.evaluation.results import FILE_NAME, Results, read_results
from promptcomp.files import read_text

PREDICTIONS = "predictions.jsonl"
CONFIG = "config.yaml"
_OWN = ("seed", "name", "output_dir")
"""Keys in which runs of one setting differ."""
_OWN_LINE = re.compile(rf"^(?:{'|'.join(_OWN)}): .*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run to compare."""

    label: str
    """Short name, unique among the compared runs."""
    path: Path
    """Its results.json."""
    results: Results

    @property
    def predictions(self) -> Path:
        """Where its predictions are, if it has any."""
        return self.path.parent / PREDICTIONS


def load(paths: Sequence[Path]) -> list[ComparedRun]:
    """Read the runs.

    Args:
        paths: run directories or results.json files.

    Raises:
        ConfigError: a file cannot be read or is given twice.
    """
    for path in paths:
        if not os.path.exists(path) and (hint := how_to_begin(path)):
            raise ConfigError(f"{path}: no such run{hint}")
    files = [path / FILE_NAME if os.path.isdir(path) else path for path in paths]
    resolved = [Path(os.path.realpath(file)) for file in files]  # unlike resolve(), also of links in a circle
    for i, file in enumerate(resolved):
        if file in resolved[:i]:
            raise ConfigError(f"{paths[i]}: the same run is given twice")
    return [ComparedRun(label, file, read_results(file)) for label, file in zip(_labels(resolved), files, strict=True)]


def _labels(files: Sequence[Path]) -> list[str]:
    """The shortest ends of the run directories' paths that tell them apart."""
    parts = [file.parent.parts if file.name == FILE_NAME else file.parts for file in files]
    for length in range(1, max(len(part) for part in parts) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [str(file) for file in files]


def metric_of(runs: Sequence[ComparedRun], split: str, wanted: str | None) -> MetricName:
    """The metric to compare a split by: the wanted one, or the runs' headline metric.

    Raises:
        ConfigError: the runs have different headline metrics, or the metric is unknown.
    """
    found = {run.label: wanted or run.results.splits[split].metric for run in runs}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{label}: {name}" for label, name in found.items())
        raise ConfigError(f"split {split}: the runs report different metrics ({listed}); choose one, such as accuracy")
    name = next(iter(found.values()))
    for known in METRICS:
        if name == known:
            return known
    raise ConfigError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")


def different_examples(runs: Sequence[ComparedRun], split: str) -> list[str]:
    """Labels of the runs whose examples are not those of the first run (or cannot be known to be)."""
    first = runs[0].results.splits[split]
    known = first.examples_sha256 or None
    return [run.label for run in runs[1:] if run.results.splits[split].examples_sha256 != known]


def refusal(runs: Sequence[ComparedRun], split: str, labels: Sequence[str]) -> str:
    """Why runs with other examples are not ranked, and what to do."""
    first = runs[0]
    counts = "; ".join(
        f"{run.label}: {run.results.data}, {run.results.splits[split].count:,} examples"
        for run in runs
        if run is first or run.label in labels
    )
    return (
        f"split {split}: {', '.join(labels)} answered other test examples than {first.label} ({counts}), so the runs"
        " cannot be ranked; evaluate them on the same data, or pass --allow-different to see them side by side"
    )


def settings_of(runs: Sequence[ComparedRun]) -> list[dict[str, Any] | None]:
    """Each run's configuration but for the seed and where it is kept; None without a configuration file.

    Runs of one setting differ by their training seed alone. Files that differ in nothing else are parsed once.

    Raises:
        ConfigError: a configuration cannot be read.
    """
    known: dict[str, dict[str, Any]] = {}
    found: list[dict[str, Any] | None] = []
    for run in runs:
        path = run.path.parent / CONFIG
        if not path.is_file():
            found.append(None)
            continue
        text = _OWN_LINE.sub("", read_text(path, "configuration file", YAML_LIMIT))
        if text not in known:
            known[text] = {key: value for key, value in read_yaml(path).items() if key not in _OWN}
        found.append(known[text])
    return found
