"""What the commands share that ask a model at an endpoint or a local one. Nothing heavy is imported here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptcomp.commands.common import show
from promptcomp.errors import ConfigError, Exit

if TYPE_CHECKING:
    from rich.console import Console

    from promptcomp.endpoints import AskingSession, AskingStopped, Endpoint
    from promptcomp.endpoints.records import EntryT
    from promptcomp.endpoints.session import ItemT

ASKS_FROM = 200
"""More requests than this, or any price, need --yes where nobody can be asked."""

BaseUrlOption = Annotated[
    str | None,
    typer.Option("--base-url", help="OpenAI-compatible server, up to /v1; default: OPENAI_BASE_URL, else OpenAI."),
]
KeyOption = Annotated[str, typer.Option("--api-key-env", help="Environment variable that holds the key.")]
ConcurrencyOption = Annotated[int, typer.Option("--concurrency", min=1, help="Most requests at a time.")]
RpmOption = Annotated[int | None, typer.Option("--rpm", min=1, help="Most requests in a minute.")]
TpmOption = Annotated[int | None, typer.Option("--tpm", min=1, help="Most tokens in a minute.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.01, help="Seconds for one request.")]
RetriesOption = Annotated[int, typer.Option("--retries", min=0, help="Further tries after a passing fault.")]
DeviceOption = Annotated[str, typer.Option("--device", help="For --local: auto, cpu, cuda.")]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", min=1, help="For --local.")]
PriceInOption = Annotated[float | None, typer.Option("--price-in", min=0, help="Per million prompt tokens.")]
PriceOutOption = Annotated[float | None, typer.Option("--price-out", min=0, help="Per million answer tokens.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Start without asking.")]


def identity_of(model: str | None, local: str | None) -> str:
    """Who is asked, as a record names it."""
    if model is not None:
        return model
    from promptcomp.language_model.local import local_identity

    return local_identity(str(local))


def agree(estimate: str, calls: int, cost: float | None, yes: bool, console: Console) -> None:
    """Tell what is about to be asked, and go on only if it should be.

    Raises:
        ConfigError: it is much, and nobody is here to agree.
        typer.Exit: with code 1, the answer was no.
    """
    console.print(estimate, markup=False, highlight=False)
    if yes:
        return
    if sys.stdin.isatty():
        if not typer.confirm("Start?", err=True):
            raise typer.Exit(1)
    elif cost is not None or calls > ASKS_FROM:
        raise ConfigError(f"{estimate}: nobody is here to agree; give --yes to start")


def ask_endpoint(
    session: AskingSession[ItemT, EntryT],
    endpoint: Endpoint,
    concurrency: int,
    progress: AbstractContextManager[Callable[[EntryT], None]],
    console: Console,
) -> None:
    """Have an endpoint answer what is left, with a bar, and print remarks on how it had to be asked."""
    with progress as seen:
        notes = session.ask_endpoint(endpoint, concurrency, seen)
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False)


def stopped(session: AskingSession[Any, Any], stop: AskingStopped, made: str) -> typer.Exit:
    """Tell how far the call came (`made`: "texts were written in this call"); gives back how to end it."""
    left, wanted = session.left(), len(session.todo)
    show(
        f"error: {stop}; {wanted - left} of {wanted} {made} and all are kept in"
        f" {session.record.path}; the same command continues with the other {left}",
        file=sys.stderr,
    )
    return typer.Exit(Exit.INTERRUPTED if stop.interrupted else 1)
