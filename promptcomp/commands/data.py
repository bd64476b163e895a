"""`promptcomp data ...`: what data there is, what the model sees of it, and what is wrong with it."""

from __future__ import annotations

from typing import Annotated

import typer

from promptcomp.commands.common import ConfigOption, JsonOption, MethodOption, Overrides, console_for

app = typer.Typer(help="Look at data: what can be read, rows as the model sees them, bad rows.", no_args_is_help=True)


@app.command("list")
def data_list(as_json: JsonOption = False) -> None:
    """List the kinds of data and their keys."""
    from promptcomp.run.listing import print_data

    print_data(console_for(as_json), as_json)


@app.command("show")
def data_show(
    overrides: Overrides = None,
    method: MethodOption = None,
    config: ConfigOption = None,
    split: Annotated[str, typer.Option("--split", help="Which split.")] = "train",
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many contexts.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Print rows of an experiment's data exactly as the model will see them."""
    from promptcomp.run.listing import print_rows

    print_rows(method, config, overrides or (), split, count, console_for(as_json), as_json)


@app.command("validate")
def data_validate(
    overrides: Overrides = None, method: MethodOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Find every bad row of an experiment's data, with file and line. Exit code 1 when there is one."""
    from promptcomp.run.listing import print_problems

    if print_problems(method, config, overrides or (), console_for(as_json), as_json):
        raise typer.Exit(1)
