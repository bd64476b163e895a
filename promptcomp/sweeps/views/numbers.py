"""What views read from run directories besides the state (other splits, the bounds), and progress.

A file that is missing or torn gives nothing: a view of a running sweep must not end because of one run.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean

from promptcomp.config import ConfigError
from promptcomp.evaluation.bootstrap import Mean, mean_of
from promptcomp.evaluation.results import FILE_NAME, Results, finite, read_results
from promptcomp.files import tail
from promptcomp.sweeps.planning import Trial
from promptcomp.sweeps.space import CONTROLS
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.values import Goal, metric_of

_ESCAPE = re.compile(r"\x1b[^A-Za-z~\\]*[A-Za-z~\\]?")


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
        return self.name.replace("_", " ") + (" (trained)" if self.trained else "")


class Runs:
    """The results files of a state's runs, each read once."""

    def __init__(self, state: SweepState) -> None:
        self.state = state
        self.results = functools.cache(_read)

    def splits(self, objective: Goal) -> list[str]:
        """Splits that have the objective's metric, its own first; empty for metrics that belong to no split."""
        if is_of_run(objective.metric):
            return []
        for _, found in self._finished():
            names = list(found.splits)
            own = objective.split if objective.split in names else names[0]
            return [own, *(n for n in names if n != own and metric_of(found, objective.metric, n) is not None)]
        return [objective.split] if objective.split else []

    def _finished(self) -> Iterator[tuple[Trial, Results]]:
        """Trials with results of some split."""
        for trial in self.state.trials:
            found = self.results(trial.run) if trial.status == "finished" else None
            if found is not None and found.splits:
                yield trial, found

    def value(self, run: Trial, objective: Goal, split: str | None) -> float | None:
        """A finished run's metric on a split (None: the objective's own)."""
        if run.status != "finished":
            return None
        if split is None or split in self.splits(objective)[:1]:
            return finite(run.values.get(objective.name))
        found = self.results(run.run)
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
            controls = [self.value(c, objective, split) for c in self.state.controls if c.point == name]
            trained = [value for value in controls if value is not None]
            values = trained or self._bound(name, metric, split or objective.split)
            if values:
                found.append(Band(name, mean_of(values), bool(trained)))
        return found

    def measured_bands(self, objective: Goal) -> list[Band]:
        """Without the ends of `retained`, which are 1 and 0 by definition."""
        return [band for band in self.bands(objective, None) if band.value.seeds]

    def _bound(self, name: str, metric: str, split: str | None) -> list[float]:
        """One value for each seed: the bound as the trials' own results have it, mean over points."""
        by_seed: dict[int, list[float]] = {}
        for trial, found in self._finished():
            part = found.splits.get(split) if split else next(iter(found.splits.values()))
            if part is None:
                continue
            estimate = part.rows.get(name, {}).get(metric)
            headline = part.full_prompt if name == "full_prompt" else part.no_prompt
            known = headline if metric in ("method", part.metric) else None if estimate is None else estimate.value
            if (value := finite(known)) is not None:
                by_seed.setdefault(trial.seed, []).append(value)
        return [sum(values) / len(values) for _, values in sorted(by_seed.items())]


def mean_difference(own: Mapping[int, float], theirs: Mapping[int, float]) -> Mean | None:
    """Of two values for each seed, over the seeds that both have; None: there are none."""
    common = sorted(own.keys() & theirs.keys())
    return mean_of([own[seed] - theirs[seed] for seed in common]) if common else None


def _read(run: Path) -> Results | None:
    """results.json of a run; None while it is not there or not readable."""
    try:
        return read_results(run / FILE_NAME)
    except ConfigError:
        return None


def is_of_run(metric: str) -> bool:
    """Whether the metric belongs to the whole run (sizes, costs) and not to a split."""
    return metric.startswith(("size.", "cost."))


def log_tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log as plain text: what terminals do with carriage returns and colours is undone."""
    shown = [plain_line(line.rstrip("\r").rpartition("\r")[2]) for line in tail(path).split("\n")]
    return [line for line in shown if line.strip()][-lines:]


def plain_line(line: str) -> str:
    """One line without escape sequences and other control characters."""
    return "".join(c for c in _ESCAPE.sub("", line.replace("\n", " ")) if c == "\t" or c.isprintable())[:500]


DONE = ("finished", "pruned", "failed")


class Progress:
    """Counts of trials, and times.

    Args:
        state: as read.
        now: an aware time.
    """

    def __init__(self, state: SweepState, now: datetime) -> None:
        found: Counter[str] = Counter(trial.status for trial in state.trials)
        tried = Counter(trial.point for trial in state.trials)
        self.planned = max(state.planned, len(state.trials))
        self.left_out = sum(max(0, state.config.seeds - tried[point]) for point in state.dropped)
        """Seeds of dropped points that are not run."""
        waiting = self.planned - (len(state.trials) - found["waiting"]) - self.left_out
        self.counts: dict[str, int] = {status: found[status] for status in ("running", "stale", *DONE)}
        """Status -> trials, all statuses; `waiting` includes those not drawn yet."""
        self.counts["waiting"] = max(found["waiting"], waiting)
        self.controls = max(len(state.controls), state.planned_controls)
        """Controls that there will be."""
        self.controls_done = sum(control.status in DONE for control in state.controls)
        ends = [each.ended for each in (*state.trials, *state.controls) if each.ended is not None]
        until = max(ends) if self.over and ends else now
        self.elapsed = max(0.0, (until - state.started).total_seconds()) if state.started else None
        """Seconds since the first start (to the end of the last trial or control when nothing is left)."""
        left = self.counts["waiting"] + self.counts["stale"] + self.controls - self.controls_done
        self.eta = None if self.over or state.stopped_by else _eta(state, left)
        """Seconds until all is done at the present pace; None: not known (or done)."""
        self.control_hours = sum(control.device_seconds for control in state.controls) / 3600
        self.device_hours = sum(trial.device_seconds for trial in state.trials) / 3600 + self.control_hours
        """Of trials and controls."""

    @property
    def done(self) -> int:
        """Trials with an end: finished, pruned, failed."""
        return sum(self.counts[status] for status in DONE)

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        left = self.counts["waiting"] + self.counts["running"] + self.counts["stale"]
        return self.planned > 0 and not left and self.controls_done == self.controls


def duration(trial: Trial) -> float | None:
    """Seconds that its attempts took, not those that it waited between them; None: not begun or not ended."""
    return None if trial.started is None or trial.ended is None else _worked(trial)


def _worked(trial: Trial) -> float:
    return max(0.0, trial.device_seconds) / max(1, trial.devices)


def _eta(state: SweepState, waiting: int) -> float | None:
    """The work left over the workers: a trial takes what the finished ones took, or what its own pace says."""
    finished = [seconds for t in state.trials if t.status == "finished" and (seconds := duration(t))]
    left, paces = [], []
    for trial in state.trials:
        if trial.status == "running" and trial.started is not None:
            ran = _worked(trial)
            if trial.step and trial.max_steps:
                paces.append(ran * max(1.0, trial.max_steps / trial.step))
                left.append(max(0.0, paces[-1] - ran))
            elif finished:
                left.append(max(0.0, fmean(finished) - ran))
    if not (typical := finished or paces):
        return None
    return max([(sum(left) + waiting * fmean(typical)) / max(1, state.workers, len(left)), *left])
