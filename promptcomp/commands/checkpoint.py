"""`promptcomp checkpoint ...`: inspect checkpoints, join sharded ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from promptcomp.checkpoints.places import places_of, to_join
from promptcomp.commands.common import Commands, JsonOption, console_for, tell
from promptcomp.plain import say

if TYPE_CHECKING:
    from rich.console import Console

    from promptcomp.checkpoints.describe import Description

app = typer.Typer(help="Inspect checkpoints, join sharded ones.", no_args_is_help=True, cls=Commands)
_Place = Annotated[Path, Argument(help="A run directory, a checkpoint (file or folder) or an export.")]
MOST_TENSORS = 20


@app.command()
def show(
    path: _Place,
    every_tensor: Annotated[bool, Option("--all", help="List every tensor.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show its content: format, method, LM, step, trained tensors, the optimiser's state, sizes."""
    places = places_of(path)  # a mistake is told before torch is imported
    from promptcomp.checkpoints.describe import describe

    found = [describe(place) for place in places]
    if as_json:
        print(json.dumps([each.model_dump(mode="json") for each in found]))
        return
    console = console_for(as_json)
    for number, each in enumerate(found):
        if number:
            console.print()
        _print(each, console, every_tensor)


def _print(found: Description, console: Console, every_tensor: bool) -> None:
    from promptcomp.evaluation.formatting import bytes_text
    from promptcomp.terminal import plain_table

    step = "" if found.step is None else f", step {found.step}"
    state = "no optimiser state" if found.optimizer is None else f"optimiser state of {found.optimizer['numbers']:,}"
    lines = [
        found.path,
        f"  {found.kind}, format {found.format}{step}, {bytes_text(found.bytes)}",
        f"  method {found.method} on {found.lm} ({found.family})",
        f"  {found.parameters:,} trained parameters in {len(found.tensors)} tensors, {state}",
    ]
    lines += [f"  {name}: {bytes_text(size)}" for name, size in found.files.items()]
    say(console, "\n".join(lines))
    shown = found.tensors if every_tensor else found.tensors[:MOST_TENSORS]
    rows = [("   ", tensor.name, " x ".join(map(str, tensor.shape)) or "number", tensor.dtype) for tensor in shown]
    console.print(plain_table(("", "tensor", "shape", "dtype"), rows, show_header=False))
    if len(shown) < len(found.tensors):
        console.print(f"    ... and {len(found.tensors) - len(shown)} more (--all)", highlight=False)


@app.command()
def verify(path: _Place, as_json: JsonOption = False) -> None:
    """Read everything; report missing or truncated files and numbers that are not finite. Exit code 1 if damaged."""
    places = places_of(path)
    from promptcomp.checkpoints.describe import damage

    found = {str(place): damage(place) for place in places}
    lines = [line for place, problems in found.items() for line in problems or [f"{place}: fine"]]
    tell(found, "\n".join(lines), as_json)
    if any(found.values()):
        raise typer.Exit(1)


@app.command()
def consolidate(
    path: Annotated[Path, Argument(help="A run directory, or a sharded checkpoint (a folder).")],
    output: Annotated[
        Path | None, Option("--output", "-o", help="The file to write; default: it replaces the folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Join the parts of a sharded checkpoint into one file, which every command takes."""
    to_join(path, output)
    from promptcomp.checkpoints.checkpoint_files import consolidate as join

    file = join(path, output)
    tell({"file": str(file), "bytes": file.stat().st_size}, f"written to {file}", as_json)
