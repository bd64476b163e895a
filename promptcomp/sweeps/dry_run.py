"""`promptcomp sweep --dry-run` and `--list` on the screen."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from promptcomp.sweeps.config import SweepConfig
from promptcomp.sweeps.directory import SweepDirectory
from promptcomp.sweeps.forecast import SweepPlan, make_plan, tell_dimension
from promptcomp.sweeps.points import grid_size
from promptcomp.sweeps.reading import read_sweep, shipped_sweeps


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
    say(f"{plan.points} points x {plan.seeds} seeds = {plan.trials} trials{controls}")
    if plan.finished or plan.started:
        say(f"{plan.finished} of these runs are finished and reused, {plan.started} are continued")
    say(f"{plan.workers} workers, {plan.devices_per_trial} devices a trial")
    console.print(_table(plan))
    if plan.hours is not None and plan.hours_with_workers is not None:
        parallel = f", {_hours(plan.hours_with_workers)} with {plan.workers} workers" if plan.workers > 1 else ""
        say(f"left to do: {_hours(plan.hours)} one after another{parallel}; {plan.device_hours:.2g} device hours")
    for remark in plan.remarks:
        say(f"note: {remark}")


def _table(plan: SweepPlan) -> Table:
    table = Table(box=None, pad_edge=False)
    names = ("", "point", "parameters", "trained", "step memory", "work", "a step", "a trial", "peak measured")
    for name in names:
        table.add_column(name, justify="left" if name in ("", "point") else "right", overflow="fold")
    for title, cost in (("smallest", plan.smallest), ("largest", plan.largest)):
        table.add_row(
            title,
            ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in cost.params.items()),
            f"{cost.parameters:,}",
            f"{cost.trained:,}",
            _gib(cost.memory_bytes),
            f"{cost.train_flops:.2g} FLOP",
            "-" if cost.step_seconds is None else f"{cost.step_seconds:.3g} s",
            "-" if cost.trial_seconds is None else f"{cost.trial_seconds:.0f} s",
            "-" if cost.peak_bytes is None else _gib(cost.peak_bytes),
        )
    return table


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


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
        console.print(f"[bold]{name}[/]  {config.title}", highlight=False, soft_wrap=True)
        for key, dimension in config.space.items():
            console.print(f"    {key}: {tell_dimension(dimension)}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"    {config.experiment}, {config.sampler}, {trials} trials", highlight=False, soft_wrap=True)
    console.print("\nStart one with: promptcomp sweep NAME (--dry-run shows its cost first)", highlight=False)
