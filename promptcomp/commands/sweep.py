"""`promptcomp sweep` and `promptcomp curve`: many runs over ranges of keys; start, continue, look at, repair.

`promptcomp sweep NAME` is short for `promptcomp sweep run NAME`; the names of the subcommands come first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from promptcomp.commands.common import (
    JsonOption,
    MethodOption,
    Overrides,
    RunByDefault,
    console_for,
    refuse_ignored,
    show,
)
from promptcomp.commands.completing import experiment_names, overrides, sweep_names
from promptcomp.commands.slurm_options import (
    SlurmCommand,
    SlurmOption,
    load_for_submission,
    refuse_overrides,
    show_plan,
    submit_sweep,
)
from promptcomp.commands.sweep_show import sweep_best, sweep_doctor, sweep_plot, sweep_show, sweep_work
from promptcomp.errors import ConfigError, Exit, command
from promptcomp.plain import say

if TYPE_CHECKING:
    from rich.console import Console

    from promptcomp.sweeps.state import SweepState
    from promptcomp.sweeps.sweep_config import SweepConfig


app = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    help="Run an experiment over ranges of its keys: promptcomp sweep NAME|FILE|DIR [KEY=...], or one of the commands.",
    epilog="`promptcomp sweep --list` lists the shipped sweeps, `promptcomp sweep run --help` the options.",
)

SweepWords = Annotated[
    list[str] | None,
    Argument(
        metavar="KEY=...",
        help="key=2,4,8 or key=1e-5..1e-3:log[:steps=5]: values to try; key=value: for all trials; sweep.key=value: "
        "of the sweep itself (sweep.seeds=5).",
        autocompletion=overrides,
    ),
]


@app.command("run", cls=SlurmCommand)
def sweep_run(
    context: typer.Context,
    target: Annotated[
        str | None,
        Argument(
            metavar="SWEEP",
            help="A shipped sweep (--list), a YAML file, or a sweep's directory; or an experiment, with key=2,4,8.",
            autocompletion=sweep_names,
        ),
    ] = None,
    words: SweepWords = None,
    method: MethodOption = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="The sweep's directory; default: sweeps/NAME.")
    ] = None,
    workers: Annotated[
        int, Option("--workers", "-w", min=1, help="Trials at a time on this machine, or jobs (--slurm).")
    ] = 1,
    devices: Annotated[
        str | None, Option(help="GPUs to use, as 0,1,2,3; every worker gets its own. Default: all GPUs.")
    ] = None,
    storage: Annotated[
        str | None, Option(help="A database (postgresql://...) instead of the journal in the directory.")
    ] = None,
    seeds: Annotated[int | None, Option(min=1, help="Trials of every point.")] = None,
    sampler: Annotated[str | None, Option(help="grid, random, tpe or nsga2.")] = None,
    points: Annotated[int | None, Option(min=1, help="Points to draw (not for a grid).")] = None,
    objective: Annotated[
        list[str] | None, Option(help="METRIC[@SPLIT][:min|:max], for example retained or size.memory_slots:min.")
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Run no trial: print the plan, and its cost from measured steps.")
    ] = False,
    measure: Annotated[
        bool, Option("--measure/--no-measure", help="With --dry-run: measure some steps, or only count FLOPs.")
    ] = True,
    yes: Annotated[bool, Option("--yes", "-y", help="Accept a grid of more than 10,000 points.")] = False,
    slurm: SlurmOption = None,
    list_all: Annotated[bool, Option("--list", help="List the shipped sweeps.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Start or continue a sweep. The same command continues it, also on further machines at the same time."""
    if list_all:
        _print_list(as_json)
        return
    if not dry_run or slurm is not None:
        refuse_ignored(context, "goes with --dry-run, and with no --slurm", "--measure", "--no-measure")
    profile = None
    if slurm is None:
        refuse_overrides([target or "", *(words or ())])
    else:
        refuse_ignored(context, "are this machine's; a job's are those of its profile", "--devices")
        given = [target] if target is not None and target.startswith("slurm.") else []
        target = None if given else target
        profile, words = load_for_submission(slurm, [*given, *(words or ())])
    own = [f"sweep.sampler={sampler}"] if sampler is not None else []
    own += [f"sweep.{key}={value}" for key, value in (("points", points), ("seeds", seeds)) if value is not None]
    own += [f"sweep.objectives={_objectives(objective)}"] if objective else []
    config, directory = _open(target, [*(words or ()), *own], method, output)
    from promptcomp.sweeps.checking import check, check_splits, check_workers, url_of
    from promptcomp.sweeps.sweep_directory import SweepDirectory

    if storage:
        check_workers(url_of(storage), workers)
    experiments = check(config, allow_huge=yes)
    if profile is not None:
        from promptcomp.cluster.submit import check_all_parts, workers_job

        check_all_parts(experiments, profile)
    check_splits(config)
    if dry_run and profile is not None:
        show_plan(workers_job(directory, workers, profile), profile, as_json)
        return
    if dry_run:
        from promptcomp.sweeps.preview import print_plan

        print_plan(config, SweepDirectory(directory), workers, measure, console_for(as_json), as_json)
        return
    if profile is not None and slurm is not None:
        submit_sweep(slurm, profile, config, directory, workers, storage, as_json)
        return
    _run(config, directory, storage, workers, devices, as_json)


def _open(
    target: str | None, words: Sequence[str], method: str | None, output: Path | None
) -> tuple[SweepConfig, Path]:
    """The sweep that is meant, and its directory."""
    from promptcomp.documents import is_experiment, read_yaml, shipped
    from promptcomp.sweeps.sweep_file import default_directory, find_sweep, read_sweep, sweep_of

    if target is not None and "=" in target and not os.path.exists(target):
        words, target = [target, *words], None
    if target is not None and method is None and target not in shipped("sweeps"):
        is_file = target.endswith((".yaml", ".yml"))
        if target in shipped() or (is_file and is_experiment(read_yaml(Path(target)))):
            method, target = target, None
    if target is not None and method is not None:
        raise ConfigError(f"{target!r} beside --method {method}: name one of them; what is tried is written key=2,4,8")
    if method is not None:
        config = sweep_of(method, words)
        return config, output or default_directory(config, Path(method).stem)
    if target is None:
        raise ConfigError("name a sweep (promptcomp sweep --list), a YAML file or a directory, or give --method NAME")
    config, origin = read_sweep(target, words), find_sweep(target)
    if origin.directory is None:
        return config, output or Path("sweeps") / origin.name
    if output not in (None, origin.directory):
        raise ConfigError(f"{target} is continued where it is; leave -o out, or start from its YAML file")
    return config, origin.directory


def _objectives(texts: Sequence[str]) -> str:
    """The YAML of METRIC[@SPLIT][:min|:max] texts."""
    from promptcomp.evaluation.predictions import LOWER_IS_BETTER

    found = []
    for text in texts:
        name, _, direction = text.partition(":")
        metric, _, split = name.partition("@")
        if direction not in ("", "min", "max") or not metric:
            raise ConfigError(f"--objective {text!r}: write METRIC, METRIC@SPLIT, METRIC:min or METRIC@SPLIT:max")
        smaller = direction == "min" or (not direction and metric in LOWER_IS_BETTER)
        objective = {"metric": metric, "direction": "minimize" if smaller else "maximize"}
        found.append(objective | ({"split": split} if split else {}))
    return json.dumps(found)


def _run(
    config: SweepConfig, directory: Path, storage: str | None, workers: int, devices: str | None, as_json: bool
) -> None:
    from promptcomp.sweeps.views.html_report import state_json, write_report
    from promptcomp.sweeps.views.overview import print_state

    console = console_for(as_json)
    state, finished = work(config, directory, storage, workers, devices, console)
    if as_json:
        print(json.dumps(state_json(state)))
    else:
        print_state(state, console)
    if not finished:
        raise stopped(console)
    say(console, f"report: {write_report(state)}")
    if any(trial.status == "failed" for trial in (*state.trials, *state.controls)):
        raise typer.Exit(1)


def work(
    config: SweepConfig, directory: Path, storage: str | None, workers: int, devices: str | None, console: Console
) -> tuple[SweepState, bool]:
    """Run a sweep under the live view; its state, and whether it has come to its end."""
    from promptcomp.sweeps.running import run_sweep
    from promptcomp.sweeps.study import read_state
    from promptcomp.sweeps.sweep_directory import SweepDirectory
    from promptcomp.sweeps.views.overview import LiveView

    place = SweepDirectory(directory)
    with LiveView(console) as view:
        finished = run_sweep(
            config, place, storage=storage, workers=workers, devices=devices, console=console, on_state=view.update
        )
    return read_state(place, storage), finished


def planned(
    config: SweepConfig, directory: Path, workers: int, split: str | None, dry_run: bool, as_json: bool
) -> SweepState | None:
    """The state of a checked sweep that has come to its end; None after a dry run, which prints its plan.

    Raises:
        ConfigError: data without the split that is to be shown, or a mistake that shows when the sweep is begun.
        typer.Exit: somebody has stopped it.
    """
    from promptcomp.sweeps.checking import check_splits

    console = console_for(as_json)
    check_splits(config, split)
    if dry_run:
        from promptcomp.sweeps.preview import print_plan
        from promptcomp.sweeps.sweep_directory import SweepDirectory

        print_plan(config, SweepDirectory(directory), workers, False, console, as_json)
        return None
    state, finished = work(config, directory, None, workers, None, console)
    if not finished:
        raise stopped(console)
    return state


def stopped(console: Console) -> typer.Exit:
    """How a command ends that somebody has stopped."""
    console.print("Stopped. Finished trials are kept: the same command continues.")
    return typer.Exit(Exit.INTERRUPTED)


def curve(
    context: typer.Context,
    method: Annotated[
        str, Argument(metavar="METHOD", help="A shipped experiment or a YAML file.", autocompletion=experiment_names)
    ],
    overrides: Overrides = None,
    fractions: Annotated[str, Option(help="Shares of the training data, with commas.")] = "0.125,0.25,0.5,1",
    seeds: Annotated[int | None, Option(min=1, help="Trials of each point: seeds 0, 1, ... Default: 3.")] = None,
    against: Annotated[list[str] | None, Option(help="Baselines (repeat, or with commas); default: finetune.")] = None,
    sizes: Annotated[list[str] | None, Option(help="Students: values of --size-key (repeat, or with commas).")] = None,
    size_key: Annotated[str, Option(help="The key that --sizes gives values of.")] = "lm.path",
    workers: Annotated[int, Option("--workers", "-w", min=1, help="Trials at a time, each a process.")] = 1,
    split: Annotated[str | None, Option(help="The split to show; default: the first.")] = None,
    metric: Annotated[str | None, Option(help="The metric to show; default: that of the data.")] = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="The sweep's directory; default: curves/METHOD.")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Train nothing: print the plan.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Accuracy against the share of training data: a sweep with a view. The same command continues it.

    KEY=VALUE holds for all methods (method.*: for METHOD alone), NAME:KEY=VALUE for one of them.
    """
    from promptcomp.sweeps.checking import check, check_metric
    from promptcomp.sweeps.sweep_file import data_efficiency

    if not sizes:
        refuse_ignored(context, "goes with --sizes", "--size-key")
    if "=" in method:
        raise ConfigError(
            f"{method!r}: the method comes first, for example `{command('curve', 'step_by_step', method)}`"
        )
    baselines = [name.strip() for name in ",".join(against or ["finetune"]).split(",") if name.strip()]
    if not baselines:
        raise ConfigError("--against names no method; give one, or leave it out for finetune")
    config = data_efficiency(
        method,
        baselines,
        [*(overrides or ()), *([f"sweep.seeds={seeds}"] if seeds is not None else [])],
        shares=fractions,
        sizes=",".join(sizes or ()),
        size_key=size_key,
    )
    check(config)
    if metric is not None:
        check_metric(metric)
    console, directory = console_for(as_json), output or Path("curves") / Path(method).stem
    state = planned(config, directory, workers, split, dry_run, as_json)
    if state is None:
        return
    from promptcomp.sweeps.views.efficiency import efficiency_of, print_efficiency
    from promptcomp.sweeps.views.html_report import write_report
    from promptcomp.sweeps.views.overview import ONE_SEED

    found = efficiency_of(state, metric, split)
    if found is None:
        raise ConfigError(f"no trial has finished with a value; `{command('sweep', 'show', directory)}` says why")
    if as_json:
        show(found.model_dump_json())
    else:
        print_efficiency(found, console)
        if all(mean.seeds == 1 for row in found.rows for mean in row.values.values()):
            console.print(ONE_SEED, highlight=False)
    say(console, f"report: {write_report(state)}")
    if len(found.missing) > sum(trial.status == "pruned" for trial in state.trials):
        raise typer.Exit(1)


def _print_list(as_json: bool) -> None:
    """The sweeps that come with the package."""
    from rich.text import Text

    from promptcomp.documents import shipped
    from promptcomp.sweeps.space import grid_size, tell_dimension
    from promptcomp.sweeps.sweep_file import read_sweep

    configs, console = {name: read_sweep(name) for name in shipped("sweeps")}, console_for(False)
    if as_json:
        print(json.dumps({name: config.model_dump(mode="json") for name, config in configs.items()}))
        return
    for name, config in configs.items():
        console.print(Text.assemble((name, "bold"), f"  {config.title}"), soft_wrap=not console.is_terminal)
        for key, dimension in config.space.items():
            say(console, f"    {key}: {tell_dimension(dimension)}")
        say(console, f"    {config.experiment}, {config.sampler}, {grid_size(config) * config.seeds} trials")
    console.print("\nStart one with: promptcomp sweep NAME (--dry-run shows its cost first)", highlight=False)


@app.command("measure", hidden=True)
def sweep_measure(config: Annotated[Path, Argument(help="An experiment's YAML.")]) -> None:
    """Measure a few steps of one trial and print them as JSON (what --dry-run starts)."""
    from promptcomp.sweeps.measuring import print_measured

    print_measured(config)


app.command("show")(sweep_show)
app.command("best")(sweep_best)
app.command("plot")(sweep_plot)
app.command("work", hidden=True)(sweep_work)
app.command("doctor")(sweep_doctor)
