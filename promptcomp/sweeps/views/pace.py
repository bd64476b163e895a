"""How far a sweep is, what it has used, and how long it may still take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from promptcomp.sweeps.state import SweepState, Trial

DONE = ("finished", "pruned", "failed")


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts of trials, and times."""

    planned: int
    counts: Mapping[str, int]
    """Status -> trials, all statuses; `waiting` includes those not drawn yet."""
    left_out: int
    """Seeds of dropped points that are not run."""
    controls: int
    """Controls that there will be."""
    controls_done: int
    elapsed: float | None
    """Seconds since the first start (to the end of the last trial or control when nothing is left)."""
    eta: float | None
    """Seconds until all is done at the present pace; None: not known (or done)."""
    device_hours: float
    """Of trials and controls."""
    control_hours: float
    """The controls' part of them."""

    @property
    def done(self) -> int:
        """Trials with an end: finished, pruned, failed."""
        return sum(self.counts[status] for status in DONE)

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        left = self.counts["waiting"] + self.counts["running"] + self.counts["stale"]
        return self.planned > 0 and not left and self.controls_done == self.controls


def aware(time: datetime) -> datetime:
    """Storages keep UTC without saying so."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


def progress_of(state: SweepState, now: datetime) -> Progress:
    """Count and time the trials of a state."""
    counts: Counter[str] = Counter(trial.status for trial in state.trials)
    tried = Counter(trial.point for trial in state.trials)
    left_out = sum(max(0, state.config.seeds - tried[point]) for point in state.dropped)
    planned = max(state.planned, len(state.trials))
    begun = len(state.trials) - counts["waiting"]
    full = {status: counts[status] for status in ("running", "stale", *DONE)}
    full["waiting"] = max(counts["waiting"], planned - begun - left_out)
    controls = max(len(state.controls), state.planned_controls)
    controls_done = sum(control.status in DONE for control in state.controls)
    left = full["waiting"] + full["stale"] + controls - controls_done
    over = planned > 0 and not left + full["running"]
    ended = [*(trial.ended for trial in state.trials), *(control.ended for control in state.controls)]
    ends = [aware(end) for end in ended if end is not None]
    until = max(ends) if over and ends else now
    elapsed = max(0.0, (until - aware(state.started)).total_seconds()) if state.started else None
    control_hours = sum(control.device_seconds for control in state.controls) / 3600
    return Progress(
        planned=planned,
        counts=full,
        left_out=left_out,
        controls=controls,
        controls_done=controls_done,
        elapsed=elapsed,
        eta=None if over or state.stopped_by else _eta(state, left, now),
        device_hours=sum(trial.device_seconds for trial in state.trials) / 3600 + control_hours,
        control_hours=control_hours,
    )


def duration(trial: Trial) -> float | None:
    """Seconds of the latest attempt; None: not begun or not ended."""
    if trial.started is None or trial.ended is None:
        return None
    return max(0.0, (aware(trial.ended) - aware(trial.started)).total_seconds())


def _eta(state: SweepState, waiting: int, now: datetime) -> float | None:
    """The work left over the workers: a trial takes what the finished ones took, or what its own pace says."""
    finished = [seconds for t in state.trials if t.status == "finished" and (seconds := duration(t))]
    left = []
    paces = []
    for trial in state.trials:
        if trial.status != "running" or trial.started is None:
            continue
        ran = max(0.0, (now - aware(trial.started)).total_seconds())
        if trial.step and trial.max_steps:
            paces.append(ran * max(1.0, trial.max_steps / trial.step))
            left.append(max(0.0, paces[-1] - ran))
        elif finished:
            left.append(max(0.0, sum(finished) / len(finished) - ran))
    typical = finished or paces
    if not typical:
        return None
    work = sum(left) + waiting * sum(typical) / len(typical)
    return max([work / max(1, state.workers, len(left)), *left])
