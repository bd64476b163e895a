"""`promptcomp bench`: what a compressed prompt costs compared with the full prompt, cached and not."""

from __future__ import annotations

import os
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from promptcomp.bench import BenchPlan, LoadPlan
from promptcomp.commands.common import (
    ConfigOption,
    JsonOption,
    MethodOption,
    Overrides,
    console_for,
    refuse_ignored,
    takes,
)
from promptcomp.errors import ConfigError
from promptcomp.files import check_empty


@takes(plan=BenchPlan, served=LoadPlan)
def bench(
    context: typer.Context,
    run: Annotated[
        str | None,
        Argument(metavar="RUN", help="A run directory, or a file of 'distill'; or give --method or --config."),
    ] = None,
    overrides: Overrides = None,
    method: MethodOption = None,
    config: ConfigOption = None,
    lm: Annotated[
        str | None, Option(help="With --method: an LM of this architecture with random weights (they cost the same).")
    ] = None,
    slots: Annotated[int | None, Option(min=1, help="With --method: method.num_slots.")] = None,
    query_tokens: Annotated[
        int | None, Option(min=1, help="Tokens of a query; default: the data's mean, or 32.")
    ] = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Folder for bench.json, bench.csv and a plot.")
    ] = None,
    as_json: JsonOption = False,
    *,
    plan: BenchPlan,
    served: LoadPlan,
) -> None:
    """Measure the cost of a query after a prompt: without a cache, with a cache of the full prompt, and compressed."""
    if output is not None:
        check_empty(output)
    if served.server is None:
        own = [f"--{each.name.replace('_', '-')}" for each in fields(LoadPlan)]
        refuse_ignored(context, "goes with --server", *own, "--no-ignore-eos")
    else:
        here = ("--lengths", "--batch-sizes", "--repeats", "--seconds", "--seed", "--device", "--query-tokens")
        refuse_ignored(context, "is for measurements on this machine, not of a --server", *here)
    if served.server is not None:
        if run or overrides or method or config or lm or slots:
            raise ConfigError("--server measures what is served there; leave RUN, --method, --config and --lm out")
        loads = served.loads()
        from promptcomp.bench.server_load import run_server_bench

        run_server_bench(served, loads, plan, output, console_for(as_json), as_json)
        return
    plan.sizes()  # mistakes are told before torch is imported
    words = list(overrides or ())
    if run is not None and "=" in run and not os.path.exists(run):
        words, run = [run, *words], None
    place = None if run is None else Path(run)
    if place is not None and place.is_file():
        if words or method or config or lm or slots:
            raise ConfigError(f"{run}: a file brings its own method, LM and length; leave everything but measuring out")
        from promptcomp.bench.requests import open_file
        from promptcomp.bench.timing import run_bench

        run_bench(partial(open_file, place, query_tokens), plan, output, console_for(as_json), as_json)
        return
    if place is not None:
        if method or config or lm or slots:
            raise ConfigError(
                "a run directory brings its own method and LM; leave --method, --config, --lm, --slots out"
            )
        from promptcomp.run.configured import trained_experiment

        experiment = trained_experiment(place, words)
    elif method is None and config is None:
        raise ConfigError("give a run directory, or --method NAME or --config FILE (with --lm PATH for random weights)")
    else:
        from promptcomp.experiment import load

        own = [*([] if lm is None else [f"lm.path={lm}"]), *([] if slots is None else [f"method.num_slots={slots}"])]
        experiment = load(method, config, [*own, *words])
    if lm is None:
        (experiment if place is None else experiment.without_training()).check(trains=False)
    else:
        experiment.lm.check_place()
    from promptcomp.bench.requests import open_subject
    from promptcomp.bench.timing import run_bench

    subject = partial(open_subject, experiment, place, has_random_lm=lm is not None, query_tokens=query_tokens)
    run_bench(subject, plan, output, console_for(as_json), as_json)
