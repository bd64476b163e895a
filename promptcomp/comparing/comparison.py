"""`promptcomp compare`: one table over finished runs, ranked only if they were tested on the same examples.

Deltas are against the first run. Their intervals are paired: both runs' predictions are resampled by the same contexts
(by task and data seed when the runs grouped their examples into contexts differently).
"""

from __future__ import annotations

import gc
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from promptcomp.config import ConfigError, read_yaml
from promptcomp.documents import YAML_LIMIT, how_to_begin
from promptcomp.errors import check_place
from promptcomp.evaluation.bootstrap import RESAMPLES, percentile_interval, resample
from promptcomp.evaluation.findings import not_finite
from promptcomp.evaluation.metrics import group
from promptcomp.evaluation.predictions import LOWER_IS_BETTER, METRICS, MetricName, Prediction, joined, read_predictions
from promptcomp.evaluation.results import FILE_NAME, Interval, Results, read_results
from promptcomp.files import read_text
from promptcomp.plain import told_apart
from promptcomp.terminal import as_text, frame

PREDICTIONS = "predictions.jsonl"
_OWN = ("seed", "name", "output_dir")
"""Keys in which runs of one setting differ."""
_OWN_LINE = re.compile(rf"^(?:{'|'.join(_OWN)}): .*\n", re.MULTILINE)
_FIRST = "the first run"
"""Row of the baseline among the others; labels are paths and hold no such name by chance."""
_READ_BY = {"trained": " by its own trained weights", "untrained": " by the untrained LM"}
_SAME = 1e-3  # other hardware moves a loss a little


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
        return self.path.with_name(PREDICTIONS)


class ComparisonRow:
    """One run in the table of one split. Values are of the split's metric.

    Args:
        run: the run.
        split: the split.
        metric: its metric.
        baseline: the first run; None: the runs answered different examples.
        interval: of the difference to it; None when predictions are missing or one context is all there is.
    """

    rank: int | None = None
    """1 is the best; None when the runs must not be ranked."""

    def __init__(
        self, run: ComparedRun, split: str, metric: MetricName, baseline: ComparedRun | None, interval: Interval | None
    ) -> None:
        result = run.results.splits[split]
        method, kept = result.estimate("method", metric), result if result.metric == metric else None
        self.run, self.method, self.method_ci = run, method.value, method.ci
        self.no_prompt = result.estimate("no_prompt", metric).value
        self.full_prompt = result.estimate("full_prompt", metric).value
        self.retained, self.retained_ci = (kept.retained, kept.retained_ci) if kept else (None, None)
        self.no_headroom = kept is not None and kept.no_headroom
        first = None
        if baseline is not None and baseline is not run:
            first = baseline.results.splits[split].estimate("method", metric).value
        self.delta = None if first is None or self.method is None else self.method - first
        """method less the first run's method; None for the first run and for other examples."""
        self.delta_ci = interval
        """Paired."""


@dataclass(frozen=True, slots=True)
class SeedMean:
    """Several runs of one setting that differ by their training seed alone."""

    runs: tuple[str, ...]
    """Their labels."""
    value: float
    value_std: float
    """Sample standard deviation over the runs."""
    retained: float | None
    """None unless every run has one."""
    retained_std: float | None


class SplitComparison:
    """All runs on one split.

    Args:
        runs: the first is the baseline.
        split: its name.
        metric: what is compared.
        same: whether the runs answered the same examples.
        predictions: of the runs that have some, by label.
        resamples: bootstrap resamples.
        seed: of the bootstrap.
    """

    def __init__(
        self,
        runs: Sequence[ComparedRun],
        split: str,
        metric: MetricName,
        same: bool,
        predictions: Mapping[str, Sequence[Prediction]],
        resamples: int,
        seed: int,
    ) -> None:
        first = runs[0]
        own = {label: [p for p in found if p.split == split] for label, found in predictions.items()}
        others = {run.label: own.get(run.label, []) for run in runs[1:]} if same else {}
        intervals, remarks = _paired(own.get(first.label, []), others, metric, resamples, seed)
        rows = [ComparisonRow(run, split, metric, first if same else None, intervals.get(run.label)) for run in runs]
        self.split, self.metric, self.same_examples = split, metric, same
        self.count = first.results.splits[split].count
        """Examples of the first run."""
        self.seed_means = _seed_means(rows)
        self.same_bounds = same and _same_bounds(rows)
        """Whether `retained` is a share of the same gap in all runs; otherwise one must not be ranked by it."""
        self.rows = _ranked(rows, metric) if same else rows
        """Best first when ranked, otherwise in the order given."""
        self.notes = [f"{label}: {note}" for label, note in remarks.items()]
        broken = (run for run in runs if run.results.splits[split].not_finite)
        self.notes += [f"{run.label}: {not_finite(run.results, split)}" for run in broken]
        if not same:
            self.notes.append("the runs answered different test examples: no ranks, no deltas")
        kept = [row for row in rows if row.retained is not None]
        if not self.same_bounds and len(kept) > 1:
            own_gap = "each run's own gap between no prompt and full prompt"
            self.notes.append(f"retained is a share of {own_gap}: do not rank by it")
            for row in kept:
                whose = _READ_BY.get(row.run.results.bounds or "", "")
                self.notes.append(f"{row.run.label}: {row.no_prompt:.3f} to {row.full_prompt:.3f}{whose}")


@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """What `compare` found; the first run is the baseline of all deltas."""

    runs: tuple[ComparedRun, ...]
    splits: tuple[SplitComparison, ...]
    of_all: tuple[str, ...] = ()
    """Notes on all splits."""

    @property
    def table(self) -> Any:
        """One line for each split and run, best first: a DataFrame, without pandas a list of dictionaries."""
        from promptcomp.comparing.comparison_table import records

        return frame(records(self))

    @property
    def notes(self) -> tuple[str, ...]:
        """Limitations that a reader of the table should know."""
        return (*self.of_all, *(note for split in self.splits for note in split.notes))

    def __repr__(self) -> str:
        from promptcomp.comparing.comparison_table import print_comparison

        return as_text(lambda console: print_comparison(self, console))


def compare(
    *paths: str | os.PathLike[str],
    split: str | None = None,
    metric: str | None = None,
    allow_different: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare runs on every split that all of them evaluated, or on one.

    Args:
        paths: Runs, their directories, or results.json files; the first is the baseline.
        split: The only split to compare; None: all that the runs share.
        metric: A metric of results.json ("accuracy", "loss", ...); None: the headline metric of the runs.
        allow_different: Show runs with different test examples anyway, without ranks and differences.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        A `table` with a line for each split and run, and `notes`, the reasons for caution.

    Raises:
        ConfigError: a file cannot be read, the runs share no split, they have different headline metrics, or their
            test examples differ and `allow_different` is not set.
    """
    if not paths:
        raise ConfigError("nothing to compare: give one or more run directories, for example runs/*")
    for path in paths:
        check_place(path, "a run")
    runs = _load([Path(path) for path in paths])
    shared = _shared_splits(runs, split)
    left_out = sorted({name for run in runs for name in run.results.splits} - set(shared)) if split is None else []
    notes = (f"splits that not all runs evaluated are left out: {', '.join(left_out)}",) if left_out else ()
    chosen = {name: _metric_of(runs, name, metric) for name in shared}
    different = {name: _different_examples(runs, name) for name in shared}
    if any(different.values()) and not allow_different:
        name = next(name for name in shared if different[name])
        raise ConfigError(_refusal(runs, name, different[name]))
    gc.disable()  # hundreds of thousands of objects are made, and none is in a circle
    try:
        having = [run for run in runs if run.predictions.is_file()] if len(runs) > 1 else []
        predictions = {run.label: read_predictions(run.predictions) for run in having}
        compared = tuple(
            SplitComparison(runs, name, chosen[name], not different[name], predictions, resamples, seed)
            for name in shared
        )
    finally:
        gc.enable()
    return Comparison(tuple(runs), compared, notes)


def _shared_splits(runs: Sequence[ComparedRun], wanted: str | None) -> list[str]:
    shared = [name for name in runs[0].results.splits if all(name in run.results.splits for run in runs)]
    listed = "; ".join(f"{run.label}: {', '.join(run.results.splits) or 'none'}" for run in runs)
    if wanted is not None and wanted not in shared:
        raise ConfigError(f"split {wanted!r} was not evaluated by all runs ({listed})")
    if not shared:
        raise ConfigError(f"the runs have no evaluated split in common ({listed}); evaluate them on the same data")
    return shared if wanted is None else [wanted]


def _same_bounds(rows: Sequence[ComparisonRow]) -> bool:
    """Whether all runs that have them scored the same bounds: other weights, prompts or data give other values."""
    weights = {row.run.results.bounds for row in rows if row.retained is not None}
    pairs = [(row.no_prompt or 0.0, row.full_prompt or 0.0) for row in rows if row.retained is not None]
    near = all(math.isclose(*ends, rel_tol=_SAME) for pair in pairs for ends in zip(pair, pairs[0], strict=True))
    return near and len(weights - {None}) < 2


def _ranked(rows: Sequence[ComparisonRow], metric: str) -> list[ComparisonRow]:
    """Best first; equal values share a rank and runs without a value come last, unranked."""
    sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
    scored = sorted((row for row in rows if row.method is not None), key=lambda row: sign * (row.method or 0.0))
    for i, row in enumerate(scored):
        row.rank = scored[i - 1].rank if i and scored[i - 1].method == row.method else i + 1
    return scored + [row for row in rows if row.method is None]


def _paired(
    first: Sequence[Prediction],
    others: Mapping[str, Sequence[Prediction]],
    metric: MetricName,
    resamples: int,
    seed: int,
) -> tuple[dict[str, Interval | None], dict[str, str]]:
    """Intervals of the differences other - first by label, and what there is to say of some; all on the same draws."""
    by_number = {p.example: p for p in first}
    notes, members = dict[str, str](), dict[bool, dict[str, dict[int, Prediction]]]()
    for label, other in others.items():
        mine = {p.example: p for p in other}
        if not first or not other:
            notes[label] = f"no {PREDICTIONS} in this run or the first, so the delta has no interval"
        elif set(by_number) != set(mine):
            notes[label] = f"{PREDICTIONS} does not hold the same examples, so the delta has no interval"
        else:
            pairs = {(p.context, mine[number].context) for number, p in by_number.items()}
            # the same examples are put together, whatever the contexts' numbers
            same_contexts = len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
            members.setdefault(same_contexts, {})[label] = mine
            if not same_contexts:
                notes[label] = "other contexts than the first run; the delta is resampled by task and data seed"
    found: dict[str, Interval | None] = {}
    for same_contexts, of_label in members.items():
        names = (_FIRST, *of_label)
        context = None if same_contexts else 0
        both = [
            joined({_FIRST: p, **{label: mine[number] for label, mine in of_label.items()}}, context)
            for number, p in by_number.items()
        ]
        samples = resample(group(both, names), names, [metric], resamples=resamples, seed=seed)
        for label in of_label:
            difference = samples.difference(metric, label, _FIRST)
            found[label] = percentile_interval(difference, samples.num_contexts)
            if found[label] is None and samples.num_contexts > 1:
                why = "all contexts differ equally from the first run, so the delta has no interval"
                if not math.isfinite(difference[0]):
                    why = f"no {metric} in this run or the first, so there is no delta"
                notes[label] = "; ".join([*([notes[label]] if label in notes else []), why])
    return found, {label: notes[label] for label in others if label in notes}


def _seed_means(rows: Sequence[ComparisonRow]) -> tuple[SeedMean, ...]:
    """Mean and spread of runs that share a setting, in the order of their first run."""
    members: dict[int, list[ComparisonRow]] = {}
    known = _settings_of([row.run for row in rows])
    for i, (row, setting) in enumerate(zip(rows, known, strict=True)):
        members.setdefault(i if setting is None else known.index(setting), []).append(row)
    return tuple(made for each in members.values() if (made := _seed_mean(each)) is not None)


def _seed_mean(rows: Sequence[ComparisonRow]) -> SeedMean | None:
    method = [row.method for row in rows if row.method is not None]
    seeds = {row.run.results.seed for row in rows}
    if len(method) < 2 or len(method) < len(rows) or len(seeds) < len(rows):
        return None
    kept = [row.retained for row in rows if row.retained is not None]
    complete = len(kept) == len(rows)
    return SeedMean(
        runs=tuple(row.run.label for row in rows),
        value=float(np.mean(method)),
        value_std=float(np.std(method, ddof=1)),
        retained=float(np.mean(kept)) if complete else None,
        retained_std=float(np.std(kept, ddof=1)) if complete else None,
    )


def _load(paths: Sequence[Path]) -> list[ComparedRun]:
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
    return told_apart([file.parent if file.name == FILE_NAME else file for file in files])


def _metric_of(runs: Sequence[ComparedRun], split: str, wanted: str | None) -> MetricName:
    """The metric to compare a split by: the wanted one, or the runs' headline metric.

    Raises:
        ConfigError: the runs have different headline metrics, or the metric is unknown.
    """
    found = {run.label: wanted or run.results.splits[split].metric for run in runs}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{label}: {name}" for label, name in found.items())
        known = [each.results.splits[split] for each in runs]
        both = [name for name in METRICS if all(each.estimate("method", name).value is not None for each in known)]
        near = f"choose one that all of them have (--metric): {', '.join(both)}" if both else "they have none in common"
        raise ConfigError(f"split {split}: the runs report different metrics ({listed}); {near}")
    if (name := next(iter(found.values()))) not in METRICS:
        raise ConfigError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    return name


def _different_examples(runs: Sequence[ComparedRun], split: str) -> list[str]:
    """Labels of the runs whose examples are not those of the first run (or cannot be known to be)."""
    known = runs[0].results.splits[split].examples_sha256 or None
    return [run.label for run in runs[1:] if run.results.splits[split].examples_sha256 != known]


def _refusal(runs: Sequence[ComparedRun], split: str, labels: Sequence[str]) -> str:
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


def _settings_of(runs: Sequence[ComparedRun]) -> list[dict[str, Any] | None]:
    """Each run's configuration but for the seed and where it is kept; None without a configuration file.

    Runs of one setting differ by their training seed alone. Files that differ in nothing else are parsed once.

    Raises:
        ConfigError: a configuration cannot be read.
    """
    known: dict[str, dict[str, Any]] = {}
    found: list[dict[str, Any] | None] = []
    for path in (run.path.with_name("config.yaml") for run in runs):
        text = _OWN_LINE.sub("", read_text(path, "configuration file", YAML_LIMIT)) if path.is_file() else None
        if text is not None and text not in known:
            known[text] = {key: value for key, value in read_yaml(path).items() if key not in _OWN}
        found.append(None if text is None else known[text])
    return found
