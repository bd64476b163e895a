"""`promptcomp judge` and `promptcomp rationales`: commands that ask a model at an endpoint or a local one.

Nothing heavy is imported before they run.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from promptcomp.commands.common import (
    ConfigOption,
    JsonOption,
    MethodOption,
    Overrides,
    console_for,
    refuse_ignored,
    show,
    takes,
    tell,
)
from promptcomp.errors import ConfigError, Exit
from promptcomp.judge import JudgeOptions
from promptcomp.plain import say
from promptcomp.rationales import RationaleOptions

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

    model: Annotated[str | None, Option(help="Name of the model at the endpoint.")] = None
    base_url: Annotated[
        str | None, Option(help="OpenAI-compatible server, up to /v1; default: OPENAI_BASE_URL, else OpenAI.")
    ] = None
    api_key_env: Annotated[str, Option(help="Environment variable that holds the key.")] = "OPENAI_API_KEY"
    local: Annotated[str | None, Option(metavar="PATH", help="Use a local causal LM instead (folder or hub name).")] = (
        None
    )
    concurrency: Annotated[int, Option(min=1, help="Maximum number of simultaneous requests.")] = 4
    rpm: Annotated[int | None, Option(min=1, help="Maximum number of requests in a minute.")] = None
    tpm: Annotated[int | None, Option(min=1, help="Maximum number of tokens in a minute.")] = None
    timeout: Annotated[float, Option(min=0.01, help="Time limit of one request in seconds.")] = 120.0
    retries: Annotated[int, Option(min=0, help="Retries after a transient error.")] = 5
    device: Annotated[str, Option(help="For --local: auto, cpu, cuda.")] = "auto"
    batch_size: Annotated[int, Option(min=1, help="For --local.")] = 8
    price_in: Annotated[float | None, Option(min=0, help="Price of a million prompt tokens.")] = None
    price_out: Annotated[float | None, Option(min=0, help="Price of a million answer tokens.")] = None
    yes: Annotated[bool, Option("--yes", "-y", help="Start without asking for confirmation.")] = False

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
            from promptcomp.language_model import LanguageModelConfig

            LanguageModelConfig(path=str(self.local)).check_place()  # a mistake is told before torch is imported
            from promptcomp.chat.local_lm import local_identity

            return local_identity(str(self.local)), None
        from promptcomp.chat.client import Endpoint

        own = (self.base_url, self.api_key_env, self.timeout, self.retries)
        return self.model, Endpoint(self.model, *own, requests_per_minute=self.rpm, tokens_per_minute=self.tpm)

    def refuse_ignored(self, context: typer.Context) -> None:
        """
        Raises:
            ConfigError: an option for the other kind of model.
        """
        if (self.model is None) == (self.local is None):
            return  # `endpoint` says so
        if self.local is None:
            refuse_ignored(context, "goes with --local", "--device", "--batch-size")
        else:
            own = ("--base-url", "--api-key-env", "--concurrency", "--rpm", "--tpm", "--timeout", "--retries")
            refuse_ignored(context, "is for an endpoint, and goes with no --local", *own)

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

        before = [session.record.entries.get(question.key) for question in session.todo]  # refused, or not read
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
            now = [session.record.entries.get(question.key) for question in session.todo]
            wanted, left = len(now), sum(a is b for a, b in zip(before, now, strict=True))
            show(
                f"error: {stop}; {wanted - left} of {wanted} {session.made} and all are kept in"
                f" {session.record.path}; the same command continues with the other {left}",
                file=sys.stderr,
            )
            raise typer.Exit(Exit.INTERRUPTED if stop.interrupted else 1) from None


def _agree(session: AskingSession[KeptT], prices: Prices, yes: bool, console: Console) -> None:
    text, cost = session.estimate(prices)
    say(console, text)
    if yes:
        return
    if sys.stdin.isatty():
        if not typer.confirm("Start?", err=True):
            show("no request was sent", file=sys.stderr)
            raise typer.Exit(0)
    elif cost is not None or len(session.todo) > ASKS_FROM:
        raise ConfigError(f"{text}: there is no terminal to ask for confirmation; give --yes to start")


@contextmanager
def _progress(session: AskingSession[KeptT], console: Console) -> Iterator[Callable[[KeptT], None]]:
    """A bar with running counts; silent where no person reads."""
    from promptcomp.run.stage import WorkStage

    counts: Counter[str] = Counter()
    with WorkStage(console, session.name, len(session.todo), says=False) as bar:

        def seen(answer: KeptT) -> None:
            counts.update(session.marks_of(answer))
            bar.more(1, ", ".join(f"{counts[mark]} {mark}" for mark in session.marks))

        yield seen


@takes(options=JudgeOptions, asking=Asking)
def judge(context: typer.Context, as_json: JsonOption = False, *, options: JudgeOptions, asking: Asking) -> None:
    """Pairwise win rate of A over B, judged by a language model. The same command continues where it was stopped."""
    if options.malformed not in ("drop", "tie"):
        raise ConfigError(f"--malformed {options.malformed!r} is not known; choose drop or tie")
    asking.refuse_ignored(context)
    name, endpoint = asking.endpoint("judge")
    from promptcomp.judge.judging import JudgeSession, print_result

    with JudgeSession(options, name, endpoint.url if endpoint else None) as session:
        asking.ask(session, endpoint, console_for(as_json))
        result = session.write(asking.prices)
        tell(result, partial(print_result, session, result), as_json)


@takes(options=RationaleOptions, asking=Asking)
def rationales(
    context: typer.Context,
    overrides: Overrides = None,
    method: MethodOption = None,
    config: ConfigOption = None,
    show_template: Annotated[bool, Option("--show-template", help="Print the template (to edit it) and stop.")] = False,
    show_prompt: Annotated[bool, Option("--show-prompt", help="Print the first row's prompt and stop.")] = False,
    no_ask: Annotated[
        bool, Option("--no-ask", help="Send no request: parse the existing texts again, and report.")
    ] = False,
    as_json: JsonOption = False,
    *,
    options: RationaleOptions,
    asking: Asking,
) -> None:
    """Generate rationales and labels with a teacher, by few-shot chain of thought. The same command continues.

    The data is an experiment's (--method, --config) or named by data.* keys. What it writes is data for
    data.name=rationale_files.
    """
    from promptcomp.rationales.rationale_job import load_data, pick_template, rows_of, template_name, template_path

    if show_template:
        from promptcomp.files import read_text

        name = options.template or template_name(load_data(method, config, overrides or ()))
        show(read_text(template_path(name), "template"), end="")
        return
    data = load_data(method, config, overrides or ())
    data.check_places()
    if show_prompt:
        show(pick_template(options.template, data).text(rows_of(data, options.split)[0]))
        return
    asking.refuse_ignored(context)
    teacher, endpoint = asking.endpoint("teacher")
    from promptcomp.rationales.extraction import Extraction, print_report

    with Extraction(data, teacher, endpoint is not None, options) as extraction:
        if not no_ask:
            asking.ask(extraction, endpoint, console_for(as_json))
        report = extraction.write(asking.prices)
        tell(report, partial(print_report, report, extraction.kept), as_json)
