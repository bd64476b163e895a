"""What the commands share that ask a model at an endpoint or a local one. Nothing heavy is imported here."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from promptcomp.commands.common import show
from promptcomp.errors import ConfigError, Exit

if TYPE_CHECKING:
    from rich.console import Console

    from promptcomp.chat import AskingSession, AskingStopped, Endpoint, Prices
    from promptcomp.chat.answer_file import KeptT

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


def endpoint_of(
    who: str,
    model: str | None,
    local: str | None,
    base_url: str | None,
    api_key_env: str,
    timeout: float,
    retries: int,
    rpm: int | None,
    tpm: int | None,
) -> tuple[str, Endpoint | None]:
    """The name of the model that is asked, as a record has it, and its endpoint; None: a local LM is asked.

    Raises:
        ConfigError: both or neither of --model and --local are there, or the URL is none.
    """
    if (model is None) == (local is None):
        raise ConfigError(f"name the {who}: either --model NAME (with --base-url URL) or --local PATH")
    if model is None:
        from promptcomp.chat.local_lm import local_identity

        return local_identity(str(local)), None
    from promptcomp.chat import Endpoint

    return model, Endpoint(
        model, base_url, api_key_env, timeout, retries, requests_per_minute=rpm, tokens_per_minute=tpm
    )


def ask(
    session: AskingSession[KeptT],
    endpoint: Endpoint | None,
    local: str | None,
    *,
    concurrency: int,
    device: str,
    batch_size: int,
    prices: Prices,
    yes: bool,
    console: Console,
) -> None:
    """Have the endpoint or the local LM answer what is left, with a bar; first tell what an endpoint will be asked.

    Raises:
        ConfigError: it is much and nobody is here to agree, or the endpoint or the LM cannot be used.
        typer.Exit: a person said no (code 0), the endpoint failed (1), or a signal came (130); what was answered is
            kept.
    """
    if not session.todo:
        return
    from promptcomp.chat import AskingStopped

    try:
        if endpoint is not None:
            _agree(session, prices, yes, console)
            with _progress(session, console) as seen:
                notes = session.ask_endpoint(endpoint, concurrency, seen)
            for note in notes:
                console.print(f"note: {note}", markup=False, highlight=False)
            return
        from promptcomp.chat.local_lm import LocalLM
        from promptcomp.run.quiet import quiet

        with quiet():
            lm = LocalLM(str(local), device, chat=session.local_chat)
        with _progress(session, console) as seen:
            session.ask_local(lm, batch_size, seen)
    except AskingStopped as stop:
        raise _stopped(session, stop) from None


def _agree(session: AskingSession[KeptT], prices: Prices, yes: bool, console: Console) -> None:
    estimate = session.estimate(prices)
    console.print(estimate.text, markup=False, highlight=False)
    if yes:
        return
    if sys.stdin.isatty():
        if not typer.confirm("Start?", err=True):
            show("nothing was asked", file=sys.stderr)
            raise typer.Exit(0)
    elif estimate.cost is not None or estimate.calls > ASKS_FROM:
        raise ConfigError(f"{estimate.text}: nobody is here to agree; give --yes to start")


@contextmanager
def _progress(session: AskingSession[KeptT], console: Console) -> Iterator[Callable[[KeptT], None]]:
    """A bar with running counts; silent where no person reads."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn(f"[bold]{session.name}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}"),
    )
    rest = (TextColumn("{task.fields[state]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    counts: Counter[str] = Counter()
    with Progress(*columns, *rest, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(session.todo), state="")

        def seen(answer: KeptT) -> None:
            counts.update(session.marks_of(answer))
            bar.update(task, advance=1, state=", ".join(f"{counts[mark]} {mark}" for mark in session.marks))

        yield seen


def _stopped(session: AskingSession[KeptT], stop: AskingStopped) -> typer.Exit:
    """Tell how far the call came; gives back how to end it."""
    left, wanted = session.left(), len(session.todo)
    show(
        f"error: {stop}; {wanted - left} of {wanted} {session.made} and all are kept in"
        f" {session.record.path}; the same command continues with the other {left}",
        file=sys.stderr,
    )
    return typer.Exit(Exit.INTERRUPTED if stop.interrupted else 1)
