"""`promptcomp curve METHOD`: how much data a method saves against its baselines, as a sweep with a view."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from promptcomp.commands.common import JsonOption, Overrides, console_for, show
from promptcomp.commands.sweep import stopped, work
from promptcomp.errors import ConfigError, command


def curve(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A shipped experiment or a YAML file.")],
    overrides: Overrides = None,
    fractions: Annotated[
        str, typer.Option("--fractions", help="Shares of the training data, with commas.")
    ] = "0.125,0.25,0.5,1",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trials of each point: seeds 0, 1, ...")] = 3,
    against: Annotated[
        list[str] | None, typer.Option("--against", help="Baselines (repeat, or with commas); default: finetune.")
    ] = None,
    sizes: Annotated[
        list[str] | None, typer.Option("--sizes", help="Students: values of --size-key (repeat, or with commas).")
    ] = None,
    size_key: Annotated[str, typer.Option("--size-key", help="The key that --sizes gives values of.")] = "lm.path",
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Most trials at a time, each a process.")] = 1,
    split: Annotated[str | None, typer.Option("--split", help="Which split to show; default: the first.")] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="Which metric to show; default: the data's own.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The sweep's directory; default: curves/METHOD.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Train nothing: print the plan.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Accuracy against the share of training data: a sweep. The same command continues it.

    KEY=VALUE holds for all methods (method.*: for METHOD alone), NAME:KEY=VALUE for one of them.
    """
    from promptcomp.sweeps.checking import check, check_metric
    from promptcomp.sweeps.data_efficiency import data_efficiency
    from promptcomp.sweeps.sweep_directory import SweepDirectory

    if "=" in method:
        raise ConfigError(
            f"{method!r}: the method comes first, for example `{command('curve', 'step_by_step', method)}`"
        )
    config = data_efficiency(
        method,
        _names(against or ["finetune"]),
        overrides or (),
        shares=fractions,
        seeds=seeds,
        sizes=",".join(sizes or ()),
        size_key=size_key,
    )
    check(config)
    if metric is not None:
        check_metric(metric)
    console, directory = console_for(as_json), output or Path("curves") / Path(method).stem
    if dry_run:
        from promptcomp.sweeps.preview import print_plan

        print_plan(config, SweepDirectory(directory), workers, False, console, as_json)
        return
    state, finished = work(config, directory, None, workers, None, console)
    if not finished:
        raise stopped(console)
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
        if config.seeds == 1:
            console.print(ONE_SEED, highlight=False)
    console.print(f"report: {write_report(state)}", highlight=False, soft_wrap=True)
    if found.missing:
        raise typer.Exit(1)


def _names(texts: Iterable[str]) -> list[str]:
    """Names from comma-separated lists."""
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]
