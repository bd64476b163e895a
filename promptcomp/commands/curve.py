"""`promptcomp curve METHOD`: how much data a method saves against its baselines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from promptcomp.commands.common import JsonOption, Overrides, console_for, show
from promptcomp.errors import ConfigError, command
from promptcomp.stopping import INTERRUPTED


def curve(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A shipped experiment or a YAML file.")],
    overrides: Overrides = None,
    fractions: Annotated[
        str, typer.Option("--fractions", help="Shares of the training data, with commas.")
    ] = "0.125,0.25,0.5,1",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each point: seeds 0, 1, ...")] = 3,
    against: Annotated[
        list[str] | None, typer.Option("--against", help="Baselines (repeat, or with commas); default: finetune.")
    ] = None,
    sizes: Annotated[
        list[str] | None, typer.Option("--sizes", help="Students: values of --size-key (repeat, or with commas).")
    ] = None,
    size_key: Annotated[str, typer.Option("--size-key", help="The key that --sizes gives values of.")] = "lm.path",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Most runs at a time, each a process.")] = 1,
    split: Annotated[str | None, typer.Option("--split", help="Which split to show; default: the first.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="Which metric; default: the data's own.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The curve's folder; default: curves/METHOD.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Train nothing: list the runs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Accuracy against the share of training data. The same command continues where it was stopped.

    KEY=VALUE holds for all methods (method.*: for METHOD alone), NAME:KEY=VALUE for one of them.
    """
    from promptcomp.curve.plan import CurveSpec, fractions_of, names_of, plan
    from promptcomp.curve.plot import MISSING, can_plot, plot
    from promptcomp.curve.running import Interrupted
    from promptcomp.curve.session import Wanted, make_curve
    from promptcomp.curve.tables import print_curve
    from promptcomp.run.finding import find

    console = console_for(as_json)
    if "=" in method:
        raise ConfigError(
            f"{method!r}: the method comes first, for example `{command('curve', 'step_by_step', method)}`"
        )
    spec = CurveSpec(
        method=method,
        against=names_of(against or ["finetune"]),
        fractions=fractions_of(fractions),
        seeds=seeds,
        overrides=tuple(overrides or ()),
        sizes=names_of(sizes or []),
        size_key=size_key,
    )
    folder = output or Path("curves") / Path(method).stem

    def tell(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if dry_run:
        for point in plan(spec, folder / "runs"):
            run = folder / "runs" / point.folder
            state, _ = find(point.experiment, run)
            show(f"{point.title}: {state} {run}")
        return
    try:
        found = make_curve(spec, folder, workers=workers, wanted=Wanted(split, metric), tell=tell)
    except Interrupted as stop:
        print(f"{stop}; the same command continues", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if can_plot():
        plot(found, folder)
    else:
        tell(MISSING)
    if as_json:
        print(found.model_dump_json())
    else:
        print_curve(found, console)
        tell(f"saved in {folder}")
    if found.missing:
        raise typer.Exit(1)
