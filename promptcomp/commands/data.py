"""`promptcomp data ...`: what data there is, what the model sees of it, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from promptcomp.commands.common import ConfigOption, JsonOption, MethodOption, Overrides, console_for

app = typer.Typer(help="Look at data: what can be read, rows as the model sees them, bad rows.", no_args_is_help=True)
build_app = typer.Typer(help="Build published data sets from the files they are made of.", no_args_is_help=True)
app.add_typer(build_app, name="build")


@app.command("list")
def data_list(as_json: JsonOption = False) -> None:
    """List the kinds of data and their keys."""
    from promptcomp.commands.listing import print_data

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
    from promptcomp.commands.listing import print_rows

    print_rows(method, config, overrides or (), split, count, console_for(as_json), as_json)


@app.command("validate")
def data_validate(
    overrides: Overrides = None, method: MethodOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Find every bad row of an experiment's data, with file and line. Exit code 1 when there is one."""
    from promptcomp.commands.listing import print_problems

    if print_problems(method, config, overrides or (), console_for(as_json), as_json):
        raise typer.Exit(1)


@build_app.command("alpaca-plus")
def data_build_alpaca_plus(
    alpaca: Annotated[Path, typer.Option("--alpaca", help="Stanford Alpaca: alpaca_data.json.")],
    self_instruct: Annotated[Path, typer.Option("--self-instruct", help="Self-Instruct: all_instances_82K.jsonl.")],
    user_oriented: Annotated[
        Path, typer.Option("--user-oriented", help="Self-Instruct: user_oriented_instructions.jsonl.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the four files.")],
    seen: Annotated[int, typer.Option("--seen", min=0, help="Rows of the seen split.")] = 1000,
    unseen: Annotated[int, typer.Option("--unseen", min=0, help="Rows of the unseen split.")] = 1000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build Alpaca+ (gisting, Mu et al. 2023) by the published rules, and print what is in it."""
    import json

    from rich.table import Table

    from promptcomp.datamodules.sources import alpaca_plus as plus

    rows = plus.read_self_instruct(self_instruct), plus.read_alpaca(alpaca), plus.read_user_oriented(user_oriented)
    data = plus.build_alpaca_plus(*rows, seen, unseen)
    paths = plus.write_alpaca_plus(data, output, overwrite)
    figures = {split: plus.counts(found) for split, found in data.splits().items()}
    if as_json:
        print(json.dumps({split: {"file": str(paths[split]), **found} for split, found in figures.items()}))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("split", *figures["train"]):
        table.add_column(name.replace("_", " "), justify="left" if name == "split" else "right")
    for split, counted in figures.items():
        table.add_row(split, *(str(value) for value in counted.values()))
    console = console_for(as_json)
    console.print(table)
    console.print(f"written to {output}", highlight=False, soft_wrap=True)
