"""`promptcomp bench`: what a compressed prompt costs compared with the full prompt, cached and not."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from promptcomp.bench import BenchPlan
from promptcomp.commands.common import ConfigOption, JsonOption, MethodOption, Overrides, console_for, takes


@takes(plan=BenchPlan)
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
    query_tokens: Annotated[
        int | None, Option(min=1, help="Tokens of a query; default: the data's mean, or 32.")
    ] = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Folder for bench.json, bench.csv and a plot.")
    ] = None,
    as_json: JsonOption = False,
    *,
    plan: BenchPlan,
) -> None:
    """Measure the cost of a query after a prompt: without a cache, with a cache of the full prompt, and compressed."""
    plan.sizes()  # mistakes are told before torch is imported
    words = list(overrides or ())
    if run is not None and "=" in run and not os.path.exists(run):
        words, run = [run, *words], None
    if run is not None and method is None and config is None:  # a mistake is told before torch is imported
        from promptcomp.run.run_directory import open_existing

        open_existing(Path(run))
    elif run is None and (method or config):
        from promptcomp.experiment import load

        load(method, config, words)
    from promptcomp.bench.requests import open_subject
    from promptcomp.bench.timing import run_bench

    place, data = None if run is None else Path(run), {"slots": slots, "query_tokens": query_tokens}
    subject = partial(open_subject, place, words, method=method, config=config, lm=lm, **data)
    run_bench(subject, plan, output, console_for(as_json), as_json)
