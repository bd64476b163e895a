"""`promptcomp sweep --dry-run` and `--list` on the screen."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from promptcomp.evaluation.formatting import bytes_text
from promptcomp.sweeps.forecast import SweepPlan, make_plan, tell_dimension
from promptcomp.sweeps.points import grid_size
from promptcomp.sweeps.sweep_config import SweepConfig
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.sweep_file import read_sweep, shipped_sweeps


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

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(plan.title or plan.experiment)
    say(f"experiment {plan.experiment}, in {plan.directory}")
    for name, text in plan.space.items():
        say(f"  {name}: {text}")
    for name, value in plan.fixed.items():
        say(f"  {name} = {value} for all")
    say(f"sampler {plan.sampler}; {'; '.join(plan.objectives)}")
    controls = f", and {plan.controls} runs of controls" if plan.controls else ""
    say(f"{_many(plan.points, 'point')} x {_many(plan.seeds, 'seed')} = {_many(plan.trials, 'trial')}{controls}")
    if plan.finished or plan.started:
        say(f"{plan.finished} of these runs are finished and reused, {plan.started} are continued")
    say(f"{_many(plan.workers, 'worker')}, {_many(plan.devices_per_trial, 'device')} a trial")
    console.print(_table(plan))
    if plan.hours is not None and plan.hours_with_workers is not None:
        parallel = f", {_hours(plan.hours_with_workers)} with {plan.workers} workers" if plan.workers > 1 else ""
        say(f"left to do: {_hours(plan.hours)} one after another{parallel}; {plan.device_hours:.2g} device hours")
    for remark in plan.remarks:
        say(f"note: {remark}")


def _table(plan: SweepPlan) -> Table:
    """One column for each end of the space."""
    table = Table(box=None, pad_edge=False)
    ends = (plan.smallest, plan.largest)
    for name in ("", "smallest point", "largest point"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for name in plan.space:
        table.add_row(name, *(_value(end.params[name]) for end in ends))
    table.add_row("parameters (trained)", *(f"{end.parameters:,} ({end.trained:,})" for end in ends))
    table.add_row("memory of a step, estimated", *(bytes_text(end.memory_bytes) for end in ends))
    table.add_row("training, estimated", *(f"{end.train_flops:.2g} FLOP" for end in ends))
    if plan.smallest.trial_seconds is not None:
        table.add_row("a step, measured", *(f"{end.step_seconds:.3g} s" for end in ends))
        table.add_row("a trial, from it", *(f"{end.trial_seconds:.0f} s" for end in ends))
        table.add_row("most memory, measured", *(bytes_text(end.peak_bytes or 0) for end in ends))
    return table


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _hours(hours: float) -> str:
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h"


def print_sweeps(console: Console, as_json: bool) -> None:
    """The sweeps that come with the package."""
    configs = {name: read_sweep(name) for name in shipped_sweeps()}
    if as_json:
        print(json.dumps({name: config.model_dump(mode="json") for name, config in configs.items()}))
        return
    for name, config in configs.items():
        trials = grid_size(config) * config.seeds
        console.print(Text.assemble((name, "bold"), f"  {config.title}"), highlight=False, soft_wrap=True)
        for key, dimension in config.space.items():
            console.print(f"    {key}: {tell_dimension(dimension)}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"    {config.experiment}, {config.sampler}, {trials} trials", highlight=False, soft_wrap=True)
    console.print("\nStart one with: promptcomp sweep NAME (--dry-run shows its cost first)", highlight=False)
