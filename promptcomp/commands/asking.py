"""What the commands share that ask a model at an endpoint or a local one. Nothing heavy is imported here."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from promptcomp.commands.common import show
from promptcomp.errors import ConfigError, Exit
from promptcomp.plain import say

if TYPE_CHECKING:
    from rich.console import Console

    from promptcomp.chat.answer_file import KeptT
    from promptcomp.chat.client import Endpoint
    from promptcomp.chat.session import AskingSession, Prices

ASKS_FROM = 200
"""More requests than this, or any price, need --yes where nobody can be asked."""


@dataclass(frozen=True, slots=True)
class Asking:
    """Options of the commands that ask a model: which one, how hard, at what price."""

    model: Annotated[str | None, Option(help="The name of the model that is asked, at an endpoint.")] = None
    base_url: Annotated[
        str | None, Option(help="OpenAI-compatible server, up to /v1; default: OPENAI_BASE_URL, else OpenAI.")
    ] = None
    api_key_env: Annotated[str, Option(help="Environment variable that holds the key.")] = "OPENAI_API_KEY"
    local: Annotated[str | None, Option(metavar="PATH", help="Ask a local causal LM instead (folder or hub name).")] = (
        None
    )
    concurrency: Annotated[int, Option(min=1, help="Most requests at a time.")] = 4
    rpm: Annotated[int | None, Option(min=1, help="Most requests in a minute.")] = None
    tpm: Annotated[int | None, Option(min=1, help="Most tokens in a minute.")] = None
    timeout: Annotated[float, Option(min=0.01, help="Seconds for one request.")] = 120.0
    retries: Annotated[int, Option(min=0, help="Further tries after a transient error.")] = 5
    device: Annotated[str, Option(help="For --local: auto, cpu, cuda.")] = "auto"
    batch_size: Annotated[int, Option(min=1, help="For --local.")] = 8
    price_in: Annotated[float | None, Option(min=0, help="Per million prompt tokens.")] = None
    price_out: Annotated[float | None, Option(min=0, help="Per million answer tokens.")] = None
    yes: Annotated[bool, Option("--yes", "-y", help="Start without asking.")] = False

    @property
    def prices(self) -> Prices:
        """As given."""
        from promptcomp.chat.session import Prices

        return Prices(self.price_in, self.price_out)

    def endpoint(self, who: str) -> tuple[str, Endpoint | None]:
        """The name of the model that is asked, as a record has it, and its endpoint; None: a local LM is asked.

        Raises:
            ConfigError: both or neither of --model and --local are there, or the URL is none.
        """
        if (self.model is None) == (self.local is None):
            raise ConfigError(f"name the {who}: either --model NAME (with --base-url URL) or --local PATH")
        if self.model is None:
            from promptcomp.chat.local_lm import local_identity

            return local_identity(str(self.local)), None
        from promptcomp.chat.client import Endpoint

        own = (self.base_url, self.api_key_env, self.timeout, self.retries)
        return self.model, Endpoint(self.model, *own, requests_per_minute=self.rpm, tokens_per_minute=self.tpm)

    def ask(self, session: AskingSession[KeptT], endpoint: Endpoint | None, console: Console) -> None:
        """Have the endpoint or the local LM answer what is left, with a bar; first say what an endpoint will be asked.

        Raises:
            ConfigError: it is much and nobody is here to agree, or the endpoint or the LM cannot be used.
            typer.Exit: a person said no (code 0), the endpoint failed (1), or a signal came (130); what was answered is
                kept.
        """
        if not session.todo:
            return
        from promptcomp.chat.session import AskingStopped

        try:
            if endpoint is not None:
                _agree(session, self.prices, self.yes, console)
                with _progress(session, console) as seen:
                    notes = session.ask_endpoint(endpoint, self.concurrency, seen)
                for note in notes:
                    say(console, f"note: {note}")
                return
            from promptcomp.chat.local_lm import LocalLM
            from promptcomp.run.opening import quiet

            with quiet():
                lm = LocalLM(str(self.local), self.device, chat=session.local_chat)
            with _progress(session, console) as seen:
                session.ask_local(lm, self.batch_size, seen)
        except AskingStopped as stop:
            left = sum(question.key not in session.record.entries for question in session.todo)
            wanted = len(session.todo)
            show(
                f"error: {stop}; {wanted - left} of {wanted} {session.made} and all are kept in"
                f" {session.record.path}; the same command continues with the other {left}",
                file=sys.stderr,
            )
            raise typer.Exit(Exit.INTERRUPTED if stop.interrupted else 1) from None


def takes(**groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that these dataclasses declare; it gets each of them as the parameter of its name."""

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        own = {name: signature(group, eval_str=True).parameters for name, group in groups.items()}

        @functools.wraps(command)
        def called(**given: Any) -> None:
            found = {name: groups[name](**{key: given.pop(key) for key in keys}) for name, keys in own.items()}
            command(**found, **given)

        whole = signature(command, eval_str=True)
        parameters = [each for each in whole.parameters.values() if each.name not in groups]
        parameters += [each.replace(kind=Parameter.KEYWORD_ONLY) for keys in own.values() for each in keys.values()]
        called.__signature__ = whole.replace(parameters=parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        return called

    return with_options


def _agree(session: AskingSession[KeptT], prices: Prices, yes: bool, console: Console) -> None:
    text, cost = session.estimate(prices)
    say(console, text)
    if yes:
        return
    if sys.stdin.isatty():
        if not typer.confirm("Start?", err=True):
            show("nothing was asked", file=sys.stderr)
            raise typer.Exit(0)
    elif cost is not None or len(session.todo) > ASKS_FROM:
        raise ConfigError(f"{text}: nobody is here to agree; give --yes to start")


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
