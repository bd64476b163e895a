"""Options and small helpers that commands share. Nothing heavy is imported here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from typer import Argument, Option

from promptcomp.plain import printable, say

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Overrides = Annotated[
    list[str] | None,
    Argument(metavar="[KEY=VALUE]...", help="Configuration overrides, for example optim.lr=1e-4; the last wins."),
]
MethodOption = Annotated[
    str | None, Option("--method", "-m", help="A shipped experiment; 'promptcomp methods' lists them.")
]
ConfigOption = Annotated[Path | None, Option("--config", "-c", help="A YAML file with a whole experiment.")]
JsonOption = Annotated[bool, Option("--json", help="Print one JSON document on standard output, no tables.")]


def show(text: str, end: str = "\n", file: TextIO | None = None) -> None:
    """Print a text; control characters that files, names or paths have brought are shown as escapes."""
    print(printable(text), end=end, file=file, flush=True)


def console_for(as_json: bool) -> Console:
    """Where people read: standard output, or standard error when standard output carries JSON."""
    from promptcomp.terminal import PlainConsole

    return PlainConsole(stderr=as_json)


def tell(found: Any, shown: str | RenderableType | Callable[[Console], None], as_json: bool) -> None:
    """What a command has done: one JSON document, or for people a text, a table, or what a function prints."""
    if as_json:
        print(json.dumps(found))
    elif isinstance(shown, str):
        say(console_for(False), shown)
    elif callable(shown):
        shown(console_for(False))
    else:
        console_for(False).print(shown)
