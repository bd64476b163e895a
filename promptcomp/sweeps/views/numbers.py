"""What views read from run directories besides the state: other splits, the bounds, learning curves.

A file that is missing or torn gives nothing: a view of a running sweep must not end because of one run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from promptcomp.config import ConfigError
from promptcomp.evaluation.results import FILE_NAME, Results, SplitResult, read_results
from promptcomp.evaluation.seeds import Mean, mean_of
from promptcomp.files import check_regular
from promptcomp.sweeps.state import Control, SweepState, Trial
from promptcomp.sweeps.sweep_config import SweepConfig
from promptcomp.sweeps.values import dev_reports, metric_of, metric_rows, objective_names

CONTROLS = ("full_prompt", "no_prompt")
TITLES = {"full_prompt": "full prompt", "no_prompt": "no prompt"}
_TAIL_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Goal:
    """An objective, with the name that its values have."""

    name: str
    metric: str
    split: str | None
    direction: Literal["maximize", "minimize"]


def goals_of(config: SweepConfig) -> tuple[Goal, ...]:
    """The objectives of a sweep."""
    named = zip(objective_names(config), config.objectives, strict=True)
    return tuple(Goal(name, found.metric, found.split, found.direction) for name, found in named)


@dataclass(frozen=True, slots=True)
class Band:
    """A control's value: what plots draw across."""

    name: str
    """full_prompt or no_prompt."""
    value: Mean
    trained: bool
    """A control that was trained; False: the bound that the runs themselves measured, or the ends of `retained`."""

    @property
    def title(self) -> str:
        """For legends and tables."""
        return TITLES[self.name] + (" (trained)" if self.trained else "")


@dataclass(frozen=True, slots=True)
class BandLine:
    """A control as a line of a table."""

    title: str
    means: tuple[Mean | None, ...]
    """A value for each objective; one of them at least."""

    @property
    def seeds(self) -> int:
        """The most of them."""
        return max(mean.seeds for mean in self.means if mean is not None)


def finite(value: float | None) -> float | None:
    """The value if it is a number, else None."""
    return float(value) if value is not None and math.isfinite(value) else None


class Runs:
    """The results files of a state's runs, each read once."""

    def __init__(self, state: SweepState) -> None:
        self.state = state
        self._results: dict[Path, Results | None] = {}
        self._splits: dict[str, list[str]] = {}

    def results(self, run: Path) -> Results | None:
        """results.json of a run; None while it is not there or not readable."""
        if run not in self._results:
            try:
                self._results[run] = read_results(run / FILE_NAME)
            except ConfigError:
                self._results[run] = None
        return self._results[run]

    def splits(self, objective: Goal) -> list[str]:
        """Splits that have the objective's metric, its own first; empty for metrics that belong to no split."""
        if objective.name not in self._splits:
            self._splits[objective.name] = [] if is_of_run(objective.metric) else self._find_splits(objective)
        return self._splits[objective.name]

    def _find_splits(self, objective: Goal) -> list[str]:
        for trial in self.state.trials:
            found = self.results(trial.run) if trial.status == "finished" else None
            if found is not None and found.splits:
                names = list(found.splits)
                own = objective.split if objective.split in names else names[0]
                having = [name for name in names if metric_of(found, objective.metric, name) is not None]
                return [own, *(name for name in having if name != own)]
        return [objective.split] if objective.split else []

    def value(self, trial: Trial, objective: Goal, split: str | None) -> float | None:
        """A trial's metric on a split (None: the objective's own)."""
        if trial.status != "finished":
            return None
        if split is None or split in self.splits(objective)[:1]:
            return finite(trial.values.get(objective.name))
        found = self.results(trial.run)
        return None if found is None else metric_of(found, objective.metric, split)

    def bands(self, objective: Goal, split: str | None) -> list[Band]:
        """full_prompt and no_prompt on a split (None: the objective's own), with intervals over seeds."""
        metric = objective.metric
        if metric == "retained":
            ends = zip(CONTROLS, (1.0, 0.0), strict=True)
            return [Band(name, Mean(mean=mean, seeds=0), False) for name, mean in ends]
        if is_of_run(metric):
            return []
        found = []
        for name in CONTROLS:
            controls = [self._control(control, name, objective, split) for control in self.state.controls]
            trained = [value for value in controls if value is not None]
            values = trained or self._bound(name, metric, split or objective.split)
            if values:
                found.append(Band(name, mean_of(values), bool(trained)))
        return found

    def lines(self, objectives: Sequence[Goal]) -> list[BandLine]:
        """The bands of all objectives, a line for each title, as the last lines of a table."""
        # The ends of `retained` have no seeds: they are 1 and 0 by definition, no result.
        bands = [{b.title: b.value for b in self.bands(o, None) if b.value.seeds} for o in objectives]
        titles = dict.fromkeys(title for own in bands for title in own)
        return [BandLine(title, tuple(own.get(title) for own in bands)) for title in titles]

    def _control(self, control: Control, name: str, objective: Goal, split: str | None) -> float | None:
        if control.name != name or control.status != "finished":
            return None
        if split is None or split in self.splits(objective)[:1]:
            return finite(control.values.get(objective.name))
        found = self.results(control.run)
        return None if found is None else metric_of(found, objective.metric, split)

    def _bound(self, name: str, metric: str, split: str | None) -> list[float]:
        """One value for each seed: the bound as the trials' own results have it, mean over points."""
        by_seed: dict[int, list[float]] = {}
        for trial in self.state.trials:
            found = self.results(trial.run) if trial.status == "finished" else None
            if found is None or not found.splits:
                continue
            part = found.splits.get(split) if split else next(iter(found.splits.values()))
            value = finite(_bound_value(part, name, metric)) if part is not None else None
            if value is not None:
                by_seed.setdefault(trial.seed, []).append(value)
        return [sum(values) / len(values) for _, values in sorted(by_seed.items())]


def is_of_run(metric: str) -> bool:
    """Whether the metric belongs to the whole run (sizes, costs) and not to a split."""
    return metric.startswith(("size.", "cost."))


def _bound_value(split: SplitResult, name: str, metric: str) -> float | None:
    if metric in ("method", split.metric):
        return split.full_prompt if name == "full_prompt" else split.no_prompt
    estimate = split.rows.get(name, {}).get(metric)
    return estimate.value if estimate is not None else None


def learning_curve(trial: Trial, metric: str | None) -> tuple[str, tuple[tuple[int, float], ...]]:
    """Name and (training step, value) pairs of a trial's dev metric; from metrics.csv where nothing was reported."""
    found, pairs = metric, tuple((step, value) for step, value in trial.reports if finite(value) is not None)
    if not pairs or found is None:
        found, read = dev_reports(metric_rows(trial.run), metric)
        pairs = pairs or tuple(sorted(read.items()))
    return found or "dev metric", pairs


def log_tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log as plain text: what terminals do with carriage returns and colours is undone."""
    try:
        check_regular(path, "log")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except (OSError, ConfigError):
        return []
    shown = [plain_line(line.rstrip("\r").rpartition("\r")[2]) for line in text.split("\n")]
    return [line for line in shown if line.strip()][-lines:]


def plain_line(line: str) -> str:
    """Without escape sequences and other control characters."""
    kept, inside = [], False
    for character in line:
        if character == "\x1b":
            inside = True
        elif inside:
            inside = not (character.isalpha() or character in "~\\")
        elif character == "\t" or character.isprintable():
            kept.append(character)
    return "".join(kept)[:500]
