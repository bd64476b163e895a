"""A method and its matched controls: full prompt and no prompt, trained in the same way and untrained.

Every one is an ordinary run in a process of its own, as a trial of a sweep (`trial_process`). A run under `output_dir`
with the wanted configuration is reused when it is finished and continued when it is not, so that the same command goes
on after a crash, and several methods share their controls.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from promptcomp.checkpoints.checkpoint_files import step_of
from promptcomp.checkpoints.places import existing
from promptcomp.config import ConfigError, build
from promptcomp.errors import Exit, RunFailed
from promptcomp.evaluation.predictions import read_predictions
from promptcomp.evaluation.results import read_results
from promptcomp.evaluation.summarize import ReferencePoints, Role, RoleRun, SplitPoints, split_points
from promptcomp.experiment import Experiment
from promptcomp.files import locked, make_folder, write_atomic
from promptcomp.plain import say
from promptcomp.report import print_points
from promptcomp.run.configured import find, identity
from promptcomp.run.fitting import Outcome
from promptcomp.run.processes import started_rank
from promptcomp.run.run_directory import RunDirectory, check_unused
from promptcomp.run.trial_process import Ended, WantedRun, attend
from promptcomp.stopping import Stop

FILE_NAME = "controls.json"


@dataclass(frozen=True, slots=True)
class ControlsOutcome:
    """What `fit --with-controls` has to show."""

    method: Outcome
    points: ReferencePoints | None
    """None when a run was stopped."""
    preempted: bool = False
    """A run was preempted."""

    @property
    def interrupted(self) -> bool:
        """A run was stopped; the same command continues."""
        return self.points is None

    def as_json(self) -> dict[str, Any]:
        """The method's outcome and the reference points."""
        points = None if self.points is None else json.loads(self.points.model_dump_json())
        return {**self.method.as_json(), "interrupted": self.interrupted, "controls": points}

    def print(self, console: Console) -> None:
        """The method's report, then the reference points."""
        if self.points is None:
            console.print("Stopped. Finished runs are kept: the same command continues where it was.")
            return
        self.method.print(console)
        console.print()
        print_points(self.points, console)
        say(console, f"saved as {self.method.run / FILE_NAME}")


def wanted_runs(experiment: Experiment) -> tuple[dict[Role, Experiment], tuple[str, ...]]:
    """The runs of a table of reference points, the method first, and notes on those that there are not."""
    method = experiment.method
    train, title = method.lm_training, method.title
    runs: dict[Role, Experiment] = {"method": experiment}
    notes: list[str] = []
    if train == "none" or not experiment.trainer.max_steps:
        notes.append(f"{title} does not train the LM, so there is nothing to train in its controls: untrained only")
    else:
        section = {"train": train, **(method.model_dump(include={"lora"}) if train == "lora" else {})}
        runs["full_prompt_trained"] = _control(experiment, "full_prompt", section)
        runs["no_prompt_trained"] = _control(experiment, "no_prompt", section)
        if getattr(method, "init_from", None) is not None:
            notes.append("method.init_from is for the method alone: the trained controls start from the untrained LM")
    runs["full_prompt_untrained"] = _control(experiment, "full_prompt", {})
    runs["no_prompt_untrained"] = _control(experiment, "no_prompt", {})
    return runs, tuple(notes)


def _control(experiment: Experiment, name: str, section: Mapping[str, Any]) -> Experiment:
    tree = experiment.model_dump(mode="json")
    how = section.get("train", "untrained")
    tree["evaluation"]["slots"] = None  # a choice among those of the method
    tree |= {"method": {"name": name, **section}, "name": f"{name}-{how}-{experiment.data.name}"}
    return build(Experiment, tree, source=f"the control {name}")


def print_plan(experiment: Experiment, run_dir: Path | None, console: Console) -> None:
    """Say which runs there are and which would be made."""
    runs, notes = wanted_runs(experiment)
    for role, wanted in runs.items():
        state, path = find(wanted, run_dir if role == "method" else None)
        what = {"finished": "reuse", "unfinished": "continue", "missing": "new run"}[state]
        say(console, f"{role}: {what} {path or ''}".rstrip())
    for note in notes:
        say(console, note)


def fit_with_controls(experiment: Experiment, run_dir: Path | None, console: Console) -> ControlsOutcome:
    """Train (or find) the method and its matched controls, evaluate all, and write controls.json to the method's run.

    Args:
        experiment: the method's.
        run_dir: directory of the method's run; None: one under output_dir. The controls' are under output_dir.
        console: for people.

    Raises:
        ConfigError: a mistake in the configuration, or several machines.
        RunFailed: a run has failed.
    """
    if started_rank() is not None:
        raise ConfigError(
            "--with-controls makes several runs one after the other, and torchrun and srun start the processes of one; "
            "make the method's run with them, then call the command with --with-controls without them"
        )
    if experiment.trainer.num_nodes > 1:
        raise ConfigError(
            f"--with-controls starts its runs on this machine alone, not on trainer.num_nodes="
            f"{experiment.trainer.num_nodes}: make each run by itself on all of them, then repeat the command, which "
            "reuses finished runs"
        )
    runs, notes = wanted_runs(experiment)
    outcomes: dict[Role, Outcome] = {}
    how: dict[Role, RoleRun] = {}
    stop = Stop()
    with stop.installed():
        for role, wanted in runs.items():
            outcome, ended = _ensure(role, wanted, run_dir if role == "method" else None, console, stop)
            outcomes[role], how[role] = outcome, RoleRun(run=str(outcome.run), how=ended.origin)
            if outcome.interrupted:
                return ControlsOutcome(outcomes["method"], None, outcome.preempted)
    points = _points(experiment, outcomes, how, notes)
    write_atomic(outcomes["method"].run / FILE_NAME, points.model_dump_json(indent=2) + "\n")
    return ControlsOutcome(outcomes["method"], points)


def _ensure(
    role: Role, wanted: Experiment, run_dir: Path | None, console: Console, stop: Stop
) -> tuple[Outcome, Ended]:
    """The finished run of an experiment: found, continued or made. Another process that makes it is waited for."""

    def tell(text: str) -> None:
        say(console, f"{role}: {text}")

    def look() -> tuple[Path | None, Path | None]:
        state, path = find(wanted, run_dir)
        if path is None and run_dir is not None and RunDirectory(run_dir).config.is_file():
            check_unused(run_dir)
        return (path if state == "finished" else None), path or run_dir

    locks, name = Path(wanted.output_dir) / ".locks", identity(wanted)
    make_folder(locks, "; choose another output_dir")
    waiting = functools.partial(tell, "waiting for another process that makes the same run")
    try:
        with locked(locks / name, waiting, stop.is_set):
            run = WantedRun(wanted, locks / f"{name}.yaml", locks / f"{name}.json", look)
            ended = attend(run, stop, tell, fork=True, patience=math.inf)
    except InterruptedError:
        ended = Ended("interrupted", code=stop.code)
    if ended.run is not None:
        results = read_results(ended.run)
        return Outcome(ended.run, results, results.cost.steps or 0), ended
    place = look()[1]
    if ended.how in ("interrupted", "preempted"):
        checkpoint = existing(RunDirectory(place).last) if place is not None else None
        step = step_of(checkpoint) if checkpoint is not None else 0
        preempted = ended.code == Exit.PREEMPTED
        return Outcome(place or Path(wanted.output_dir), None, step, interrupted=True, preempted=preempted), ended
    if ended.code == Exit.MISTAKE:  # told by the run itself, or the line says it
        raise RunFailed(ended.line, ended.code)
    died = f"was killed by signal {-ended.code}" if ended.code < 0 else f"ended with exit code {ended.code}"
    text = f"the run in {place or wanted.output_dir} {died}, see above; the same command continues it"
    raise RunFailed(text, ended.code)


def _points(
    experiment: Experiment, outcomes: Mapping[Role, Outcome], how: dict[Role, RoleRun], notes: tuple[str, ...]
) -> ReferencePoints:
    results = outcomes["method"].results
    assert results is not None
    predictions = {role: read_predictions(RunDirectory(outcome.run).predictions) for role, outcome in outcomes.items()}
    resamples = experiment.evaluation.bootstrap_resamples
    splits: dict[str, SplitPoints] = {}
    for split, result in results.splits.items():
        members = {role: [p for p in found if p.split == split] for role, found in predictions.items()}
        splits[split] = split_points(members, result.metric, resamples)  # type: ignore[arg-type]
    return ReferencePoints(
        method=results.title or results.method,
        context_kind=results.context_kind,
        data=results.data,
        lm=results.lm,
        seed=results.seed,
        runs=how,
        splits=splits,
        notes=notes,
    )
