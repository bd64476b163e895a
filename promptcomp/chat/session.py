"""A session of many questions to a model: it asks those that are left, several at a time, and loses no answer."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from promptcomp.chat.answer_file import AnswerFile, KeptT
from promptcomp.chat.client import ChatClient, Endpoint, EndpointError, Message, RefusedError, StoppedError
from promptcomp.chat.replies import Reply

if TYPE_CHECKING:
    from promptcomp.chat.local_lm import LocalLM

BYTES_PER_TOKEN = 4
"""Rule of thumb for an estimate without the model's tokenizer (English prose; other scripts take more tokens)."""
REFUSALS = 3
"""So many refused requests before any answer: the request as such is wrong, not one example."""

KeptT_co = TypeVar("KeptT_co", covariant=True)


class AskingStopped(RuntimeError):
    """Asking ended early; what was kept is kept."""

    def __init__(self, reason: str, *, interrupted: bool) -> None:
        super().__init__(reason)
        self.interrupted = interrupted
        """By a signal rather than by the endpoint."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Dollars (or whatever) for a million tokens."""

    prompt: float | None = None
    completion: float | None = None

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """What so many tokens cost; None: no price is known."""
        if self.prompt is None and self.completion is None:
            return None
        return (prompt_tokens * (self.prompt or 0.0) + completion_tokens * (self.completion or 0.0)) / 1e6


@dataclass(frozen=True, slots=True)
class Writing:
    """How answers are written."""

    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    """0 is greedy."""


class Question(Protocol[KeptT_co]):
    """Something to ask; its answer is found by its key."""

    @property
    def key(self) -> str: ...

    @property
    def messages(self) -> Sequence[Message]:
        """What to ask now, as a chat."""

    @property
    def local_prompt(self) -> str | Sequence[Message]:
        """The same for a local LM: a text to go on with, or a chat."""

    @property
    def prompt_tokens(self) -> int:
        """About how many tokens the question takes."""

    @property
    def length(self) -> int:
        """Questions of like length go into one batch."""

    def take(self, reply: Reply) -> KeptT_co | None:
        """Read an answer; None: ask again."""

    def refuse(self, error: str) -> KeptT_co:
        """The line for a question that cannot be answered."""


class AskingSession(ABC, Generic[KeptT]):
    """One call of a command: the file of answers and what is still to be asked. Use as a context manager."""

    name: str
    """Of the command, for the progress bar."""
    marks: tuple[str, ...]
    """What answers are counted by while they come in."""
    made: str
    """What has happened to answers, for the message of a call that was stopped."""
    local_chat = False
    """A local LM answers chats instead of going on with texts."""
    record: AnswerFile[KeptT]
    todo: Sequence[Question[KeptT]]
    writing: Writing
    answer_tokens: int
    """About how many tokens an answer takes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.record.__exit__()

    @abstractmethod
    def estimate(self, prices: Prices) -> tuple[str, float | None]:
        """What is still to come in one sentence, by a rule of thumb of four bytes for a token, and what it costs."""

    @abstractmethod
    def marks_of(self, answer: KeptT) -> Sequence[str]:
        """Which of the marks an answer has."""

    def spent(self, used: Collection[KeptT], prices: Prices) -> dict[str, object]:
        """What the answers that were used have taken, for a report."""
        prompt = sum(answer.prompt_tokens or 0 for answer in used)
        completion = sum(answer.completion_tokens or 0 for answer in used)
        return {
            "models": sorted({answer.model for answer in used if answer.model}),
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "cost": prices.cost(prompt, completion),
            "cut": sum(answer.cut for answer in used),
        }

    def ask_endpoint(self, endpoint: Endpoint, concurrency: int, seen: Callable[[KeptT], None]) -> list[str]:
        """Have an endpoint answer what is left; gives back notes on how it had to be asked.

        After a fault or the first Ctrl-C requests under way may finish and are kept.

        Args:
            endpoint: who is asked.
            concurrency: maximum number of requests at a time.
            seen: told of every answer that was kept.

        Raises:
            ConfigError: the endpoint cannot be used as given.
            AskingStopped: it failed, or a person stopped it; what was answered is kept.
        """

        async def ask() -> list[str]:
            async with ChatClient(endpoint) as client:
                await _Workers(self, client, seen).run(concurrency)
                return client.notes

        return asyncio.run(ask())

    def ask_local(self, lm: LocalLM, batch_size: int, seen: Callable[[KeptT], None]) -> None:
        """Have a local LM answer what is left, in batches of like length.

        Raises:
            AskingStopped: a person stopped it; what was answered is kept.
        """
        try:
            reasons = lm.prepare([question.local_prompt for question in self.todo], self.writing.max_tokens)
            possible = []
            for question, reason in zip(self.todo, reasons, strict=True):
                if reason is None:
                    possible.append(question)
                else:
                    self.record.append(question.refuse(reason), seen)
            possible.sort(key=lambda question: question.length)
            for start in range(0, len(possible), batch_size):
                self._ask_batch(lm, possible[start : start + batch_size], seen)
        except KeyboardInterrupt:
            raise AskingStopped("stopped", interrupted=True) from None

    def _ask_batch(self, lm: LocalLM, pending: list[Question[KeptT]], seen: Callable[[KeptT], None]) -> None:
        seed = int(pending[0].key[:12], 16)  # other chance in every batch, the same in a repetition
        while pending:
            replies = lm.answer([question.local_prompt for question in pending], self.writing, seed)
            again = []
            for question, reply in zip(pending, replies, strict=True):
                answer = question.take(reply)
                if answer is None:
                    again.append(question)
                else:
                    self.record.append(answer, seen)
            pending = again


class _Workers(Generic[KeptT]):
    """Tasks that share the questions and a client."""

    def __init__(self, session: AskingSession[KeptT], client: ChatClient, seen: Callable[[KeptT], None]) -> None:
        self._session, self._client, self._seen = session, client, seen
        self._queue = iter(session.todo)
        self._answered = any(answer.error is None for answer in session.record.entries.values())
        """The endpoint is known to answer such requests."""
        self._refused: list[tuple[Question[KeptT], RefusedError]] = []
        self._fault: EndpointError | None = None
        self._interrupted = False
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, concurrency: int) -> None:
        """
        Raises:
            AskingStopped: the endpoint cannot serve, or a person stopped it.
        """
        with self._signals():
            self._tasks = [asyncio.create_task(self._work()) for _ in range(concurrency)]
            try:
                await asyncio.gather(*self._tasks)
            except asyncio.CancelledError:
                if not self._interrupted:
                    raise
            finally:
                for task in self._tasks:
                    task.cancel()
        if self._interrupted:
            raise AskingStopped("stopped", interrupted=True)
        if self._fault is None and self._refused:
            self._fault = self._refused[0][1]
        if self._fault is not None:
            raise AskingStopped(str(self._fault), interrupted=False)

    async def _work(self) -> None:
        while not self._interrupted and self._fault is None:
            question = next(self._queue, None)
            if question is None:
                return
            try:
                await self._ask(question)
            except StoppedError:
                return
            except RefusedError as error:
                self._refuse(question, error)
            except EndpointError as error:
                self._fail(error)

    async def _ask(self, question: Question[KeptT]) -> None:
        writing, answer = self._session.writing, None
        while answer is None:
            reply = await self._client.complete(
                question.messages,
                max_tokens=writing.max_tokens,
                temperature=writing.temperature,
                expected_tokens=question.prompt_tokens + self._session.answer_tokens,
                stop=writing.stop,
            )
            answer = question.take(reply)
        self._session.record.append(answer, self._seen)
        self._answered = True
        for refused, error in self._refused:
            self._keep_refusal(refused, error)
        self._refused.clear()

    def _refuse(self, question: Question[KeptT], error: RefusedError) -> None:
        """One refused question is counted and passed over, but only once it is known that others are answered."""
        if self._answered:
            self._keep_refusal(question, error)
            return
        self._refused.append((question, error))
        if len(self._refused) >= REFUSALS:
            self._fail(error)

    def _keep_refusal(self, question: Question[KeptT], error: RefusedError) -> None:
        self._session.record.append(question.refuse(str(error)), self._seen)

    def _fail(self, error: EndpointError) -> None:
        self._fault = self._fault or error
        self._client.stop()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """First signal: finish what is under way; second: drop it."""
        loop, caught = asyncio.get_running_loop(), []
        for number in (signal.SIGINT, signal.SIGTERM):
            # Not everywhere (Windows, threads); there a signal ends the program at once, and the record is as safe.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                before = signal.getsignal(number)
                loop.add_signal_handler(number, self._interrupt)
                caught.append((number, before))
        try:
            yield
        finally:
            for number, before in caught:
                loop.remove_signal_handler(number)
                signal.signal(number, before)

    def _interrupt(self) -> None:
        if self._interrupted:
            for task in self._tasks:
                task.cancel()
        self._interrupted = True
        self._client.stop()
