"""What a sweep would do and cost, before it does anything: `promptcomp sweep --dry-run`, and `--list`."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from promptcomp.config import ConfigError
from promptcomp.evaluation.formatting import bytes_text, many
from promptcomp.experiment import Experiment
from promptcomp.forecast.estimate import StepForecast, estimate
from promptcomp.plain import say
from promptcomp.run.configured import find
from promptcomp.sweeps.checking import samples_of, told
from promptcomp.sweeps.measuring import MeasuringFailed, measured
from promptcomp.sweeps.space import (
    base_tree,
    devices_of,
    experiment_of,
    grid,
    grid_size,
    planned_controls,
    planned_trial,
    tell_dimension,
)
from promptcomp.sweeps.study import check_begun
from promptcomp.sweeps.sweep_config import Choices, Dimension, Scalar, SweepConfig
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.views.wording import scalar_text, time_text

_CORNERS = 8
"""Points whose memory and work are estimated to find the smallest and the largest."""


class PointCost(BaseModel):
    """One point: what it would need, and what it takes where that was measured."""

    params: dict[str, Any]
    parameters: int
    trained: int
    memory_bytes: int
    """Of a training step on one device (estimated)."""
    train_flops: float
    step_seconds: float | None = None
    trial_seconds: float | None = None
    peak_bytes: int | None = None
    """Measured."""


class SweepPlan(BaseModel):
    """What a sweep would do."""

    title: str
    experiment: str
    directory: str
    sampler: str
    space: dict[str, str]
    fixed: dict[str, Any]
    objectives: list[str]
    points: int
    seeds: int
    trials: int
    controls: int
    finished: int
    """Runs that are there and would be reused."""
    started: int
    """Runs that would be continued."""
    over: int = 0
    """Trials that were pruned or have failed, and would not be run again."""
    workers: int
    devices_per_trial: int
    smallest: PointCost
    largest: PointCost
    hours: float | None = None
    """All that is left to do, one after another."""
    hours_with_workers: float | None = None
    device_hours: float | None = None
    notes: list[str] = []


def make_plan(config: SweepConfig, directory: SweepDirectory, workers: int, measure: bool) -> SweepPlan:
    """Plan a sweep.

    Args:
        config: the sweep, checked.
        directory: where it would be.
        workers: trials at a time.
        measure: measure the smallest and the largest point.

    Raises:
        ConfigError: a mistake that trials would end with, or another sweep than the one that is there.
    """
    state = check_begun(config, directory)
    begun, base = () if state is None else state.trials, base_tree(config)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    known = grid(config) if config.sampler == "grid" else list({each.point: each.params for each in begun}.values())
    planned = [planned_trial(config, directory, params, seed, base) for seed in seeds for params in known]
    # a mistake in the configuration is tried again at the next start
    over = {each.key for each in begun if each.status in ("pruned", "failed") and each.kind != "config"}
    left = [trial for trial in planned if (trial.point, trial.seed) not in over]
    controls = planned_controls(config, directory)
    states = [find(trial.experiment, trial.run)[0] for trial in (*left, *controls)]
    small, large = _ends(config, base)
    points = grid_size(config)
    plan = SweepPlan(
        title=config.title,
        experiment=config.experiment,
        directory=str(directory.path),
        sampler=config.sampler,
        space={name: tell_dimension(dimension) for name, dimension in config.space.items()},
        fixed=config.set,
        objectives=[
            f"{each.direction} {each.metric}" + ("" if each.split is None else f" on {each.split}")
            for each in config.objectives
        ],
        points=points,
        seeds=config.seeds,
        trials=points * config.seeds,
        controls=len(controls),
        finished=states.count("finished"),
        started=states.count("unfinished"),
        over=len(planned) - len(left),
        workers=workers,
        devices_per_trial=devices_of(small[1]),
        smallest=_cost(small[0], small[2]),
        largest=_cost(large[0], large[2]),
    )
    plan.notes += _machine(plan)
    return _with_time(plan, config, small, large) if measure else plan


_Point = tuple[dict[str, Scalar], Experiment, StepForecast]


def _ends(config: SweepConfig, base: Mapping[str, Any]) -> tuple[_Point, _Point]:
    """The points with the least and the most work among the corners of the space."""
    axes = [_corners_of(dimension) for dimension in config.space.values()]
    found: list[_Point] = []
    for values in itertools.islice(itertools.product(*axes), _CORNERS):
        params = dict(zip(config.space, values, strict=True))
        experiment = experiment_of(config, params, config.first_seed, base)
        try:
            found.append((params, experiment, estimate(experiment)))
        except ConfigError as error:
            raise ConfigError(f"point {told(params)}: {error}") from None
    order = sorted(found, key=lambda each: (each[2].train_flops, each[2].total_bytes))
    return order[0], order[-1]


def _corners_of(dimension: Dimension) -> Sequence[Scalar]:
    samples = samples_of(dimension)
    return samples if isinstance(dimension, Choices) else tuple(dict.fromkeys((samples[0], samples[-1])))


def _cost(params: Mapping[str, Scalar], found: StepForecast) -> PointCost:
    return PointCost(
        params=dict(params),
        parameters=sum(part.parameters for part in found.parts),
        trained=sum(part.trained for part in found.parts),
        memory_bytes=found.total_bytes,
        train_flops=found.train_flops,
    )


def _with_time(plan: SweepPlan, config: SweepConfig, small: _Point, large: _Point) -> SweepPlan:
    """Measure both ends; a trial is taken to lie half-way between them."""
    try:
        times = [measured(small[1])]
        times.append(measured(large[1]) if large[0] != small[0] else times[0])
    except MeasuringFailed as failure:
        plan.notes.append(f"no time can be estimated: the measured trial failed ({failure})")
        return plan
    seconds = [time.trial(point[1]) for time, point in zip(times, (small, large), strict=True)]
    left = max(0, plan.trials + plan.controls - plan.finished - plan.over)
    hours = left * sum(seconds) / 2 / 3600
    for cost, time, taken in zip((plan.smallest, plan.largest), times, seconds, strict=True):
        cost.step_seconds, cost.trial_seconds, cost.peak_bytes = time.step, taken, time.peak_bytes
    plan.hours = hours
    plan.hours_with_workers = max(hours / plan.workers, max(seconds) / 3600 if left else 0.0)
    plan.device_hours = hours * plan.devices_per_trial
    plan.notes += _budget(config, plan)
    return plan


def _budget(config: SweepConfig, plan: SweepPlan) -> list[str]:
    budget, rest = config.budget, "ends the sweep before all trials are done"
    limits = (
        (budget.trials, plan.trials, f"the budget ends after {budget.trials} of {plan.trials} trials"),
        (budget.hours, plan.hours_with_workers, f"the budget of {budget.hours or 0:g} h {rest}"),
        (budget.device_hours, plan.device_hours, f"the budget of {budget.device_hours or 0:g} device hours {rest}"),
    )
    return [text for limit, needed, text in limits if limit is not None and needed is not None and needed > limit]


def _machine(plan: SweepPlan) -> list[str]:
    gpus, cores = torch.cuda.device_count(), os.cpu_count() or 1
    if gpus and plan.workers * plan.devices_per_trial > gpus:
        needs = plan.workers * plan.devices_per_trial
        return [f"{plan.workers} workers of {plan.devices_per_trial} GPUs need {needs}, and there are {gpus}"]
    if not gpus and plan.workers > cores:
        return [f"{plan.workers} workers share {cores} cores: they will be slower than measured"]
    return []


def print_plan(
    config: SweepConfig, directory: SweepDirectory, workers: int, measure: bool, console: Console, as_json: bool
) -> None:
    """Print the plan of a sweep.

    Raises:
        ConfigError: a mistake that trials would end with.
    """
    if measure and console.is_terminal:
        console.print("measuring some steps of the smallest and the largest point ...", style="dim")
    plan = make_plan(config, directory, workers, measure)
    if as_json:
        print(plan.model_dump_json())
        return
    tell = functools.partial(say, console)
    tell(plan.title or plan.experiment)
    tell(f"experiment {plan.experiment}, in {plan.directory}")
    for name, text in plan.space.items():
        tell(f"  {name}: {text}")
    for name, value in plan.fixed.items():
        tell(f"  {name} = {value} for all")
    tell(f"sampler {plan.sampler}; {'; '.join(plan.objectives)}")
    controls = f", and {plan.controls} runs of controls" if plan.controls else ""
    tell(f"{many(plan.points, 'point')} x {many(plan.seeds, 'seed')} = {many(plan.trials, 'trial')}{controls}")
    if plan.finished or plan.started:
        tell(f"{plan.finished} of these runs are finished and reused, {plan.started} are continued")
    if plan.over:
        tell(f"{many(plan.over, 'trial')} that were pruned or have failed are not run again")
    tell(f"{many(plan.workers, 'worker')}, {many(plan.devices_per_trial, 'device')} a trial")
    console.print(_table(plan))
    if plan.hours is not None and plan.hours_with_workers is not None:
        alone, together = (time_text(hours * 3600) for hours in (plan.hours, plan.hours_with_workers))
        parallel = f", {together} with {plan.workers} workers" if plan.workers > 1 else ""
        tell(f"left to do: {alone} one after another{parallel}; {plan.device_hours:.2g} device hours")
    for note in plan.notes:
        tell(f"note: {note}")


def _table(plan: SweepPlan) -> Table:
    """One column for each end of the space."""
    table = Table(box=None, pad_edge=False)
    ends = (plan.smallest, plan.largest)
    for name in ("", "smallest point", "largest point"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for name in plan.space:
        table.add_row(name, *(scalar_text(end.params[name]) for end in ends))
    table.add_row("parameters (trained)", *(f"{end.parameters:,} ({end.trained:,})" for end in ends))
    table.add_row("memory of a step, estimated", *(bytes_text(end.memory_bytes) for end in ends))
    table.add_row("training, estimated", *(f"{end.train_flops:.2g} FLOP" for end in ends))
    if plan.smallest.trial_seconds is not None:
        table.add_row("a step, measured", *(f"{end.step_seconds:.3g} s" for end in ends))
        table.add_row("a trial, from it", *(f"{end.trial_seconds:.0f} s" for end in ends))
        table.add_row("most memory, measured", *(bytes_text(end.peak_bytes or 0) for end in ends))
    return table
