"""`promptcomp bench`: what a compressed prompt costs beside the whole prompt, cached and not."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from promptcomp.commands.common import ConfigOption, JsonOption, MethodOption, Overrides, console_for


def bench(
    run: Annotated[
        str | None,
        Argument(metavar="[RUN]", help="A run directory; without one, give --method or --config."),
    ] = None,
    overrides: Overrides = None,
    method: MethodOption = None,
    config: ConfigOption = None,
    lm: Annotated[
        str | None,
        Option(help="With --method: an LM of this architecture with random weights (they cost the same)."),
    ] = None,
    slots: Annotated[int | None, Option(min=1, help="With --method: method.num_slots.")] = None,
    lengths: Annotated[str, Option(help="Prompt lengths in tokens.")] = "64,256,1024,2048",
    batch_sizes: Annotated[str, Option(help="Queries served at once, each behind a prompt of its own.")] = "1,8",
    new_tokens: Annotated[int, Option(min=1, help="Tokens of an answer.")] = 32,
    query_tokens: Annotated[
        int | None, Option(min=1, help="Tokens of a query; default: the data's mean, or 32.")
    ] = None,
    repeats: Annotated[int, Option(min=3, help="Warm runs of each measurement.")] = 9,
    seconds: Annotated[
        float, Option(min=0, help="About how long one measurement may take; slow ones repeat less.")
    ] = 30.0,
    seed: Annotated[int, Option(help="Order of the measurements.")] = 0,
    device: Annotated[str, Option(help="auto, cpu or cuda.")] = "auto",
    output: Annotated[
        Path | None, Option("--output", "-o", help="Folder for bench.json, bench.csv and a plot.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure one query behind a prompt: read anew, behind a cache of the whole prompt, or compressed."""
    words = list(overrides or ())
    if run is not None and "=" in run and not os.path.exists(run):
        words, run = [run, *words], None
    if run is not None:  # a mistake is told before torch is imported
        from promptcomp.run.run_directory import open_existing

        open_existing(Path(run))
    elif method or config:
        from promptcomp.experiment import load

        load(method, config, words)
    from promptcomp.bench.requests import open_subject
    from promptcomp.bench.timing import BenchPlan, numbers, run_bench

    plan = BenchPlan(
        lengths=numbers(lengths, "--lengths"),
        batch_sizes=numbers(batch_sizes, "--batch-sizes"),
        new_tokens=new_tokens,
        repeats=repeats,
        seed=seed,
        device=device,
        seconds=seconds,
    )
    subject = partial(
        open_subject,
        None if run is None else Path(run),
        words,
        method=method,
        config=config,
        lm=lm,
        slots=slots,
        query_tokens=query_tokens,
    )
    run_bench(subject, plan, output, console_for(as_json), as_json)
