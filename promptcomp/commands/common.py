"""Options and small helpers that commands share. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from promptcomp.plain import printable

if TYPE_CHECKING:
    from rich.console import Console

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Configuration overrides, for example optim.lr=1e-4; the last wins."),
]
MethodOption = Annotated[
    str | None, typer.Option("--method", "-m", help="A shipped experiment; 'promptcomp methods' lists them.")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML file with a whole experiment.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, no tables.")]


def show(text: str, end: str = "\n", file: TextIO | None = None) -> None:
    """Print a text; control characters that files, names or paths have brought are shown as escapes."""
    print(printable(text), end=end, file=file, flush=True)


def console_for(as_json: bool) -> Console:
    """Where people read: standard output, or standard error when standard output carries JSON."""
    from promptcomp.terminal import PlainConsole

    return PlainConsole(stderr=as_json)
