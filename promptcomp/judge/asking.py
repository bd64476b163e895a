"""Asking the judge about many pairs: several at a time at an endpoint, in batches with a local model."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from promptcomp.endpoints import ChatClient, EndpointError, Message, RefusedError, StoppedError
from promptcomp.judge.exchange import Exchange
from promptcomp.judge.record import Judgement, Record

ANSWER_TOKENS = 80
"""About how many tokens an answer takes."""
_REFUSALS = 3
"""So many refused requests before any answer: the request as such is wrong, not one example."""

Seen = Callable[[Judgement], None]


class JudgeStopped(RuntimeError):
    """Judging ended early; what was judged is kept."""

    def __init__(self, reason: str, *, interrupted: bool) -> None:
        super().__init__(reason)
        self.interrupted = interrupted
        """By a signal rather than by the judge."""


class LocalModel(Protocol):
    """Answers a batch of chats."""

    def too_long(self, messages: Sequence[Message], max_tokens: int) -> str | None:
        """Why a chat cannot be answered; None: it can."""

    def answer(self, chats: Sequence[Sequence[Message]], max_tokens: int) -> list[tuple[str, int, int, bool]]:
        """Text, prompt tokens, completion tokens and whether the text was cut, for each chat."""


async def ask_endpoint(
    exchanges: Sequence[Exchange], client: ChatClient, record: Record, concurrency: int, max_tokens: int, seen: Seen
) -> None:
    """Have an endpoint judge; after a fault or the first Ctrl-C requests under way may finish and are kept.

    Args:
        exchanges: what is to be judged.
        client: the endpoint.
        record: where judgements go.
        concurrency: most requests at a time.
        max_tokens: most tokens of an answer.
        seen: told of every judgement.

    Raises:
        JudgeStopped: the endpoint cannot serve, or a person stopped it.
    """
    await _Crew(exchanges, client, record, max_tokens, seen).run(concurrency)


class _Crew:
    """Workers that share a queue, a client and a record."""

    def __init__(
        self, exchanges: Sequence[Exchange], client: ChatClient, record: Record, max_tokens: int, seen: Seen
    ) -> None:
        self._queue = iter(exchanges)
        self._client = client
        self._record = record
        self._max_tokens = max_tokens
        self._seen = seen
        self._answered = any(judgement.attempts for judgement in record.judgements.values())
        self._refused: list[tuple[Exchange, RefusedError]] = []
        self._fault: EndpointError | None = None
        self._interrupted = False
        self._workers: list[asyncio.Task[None]] = []

    async def run(self, concurrency: int) -> None:
        with self._signals():
            self._workers = [asyncio.create_task(self._work()) for _ in range(concurrency)]
            try:
                await asyncio.gather(*self._workers)
            except asyncio.CancelledError:
                if not self._interrupted:
                    raise
            finally:
                for worker in self._workers:
                    worker.cancel()
        if self._interrupted:
            raise JudgeStopped("stopped", interrupted=True)
        if self._fault is None and self._refused:
            self._fault = self._refused[0][1]
        if self._fault is not None:
            raise JudgeStopped(str(self._fault), interrupted=False)

    async def _work(self) -> None:
        while not self._interrupted and self._fault is None:
            exchange = next(self._queue, None)
            if exchange is None:
                return
            try:
                await self._judge(exchange)
            except StoppedError:
                return
            except RefusedError as error:
                self._refuse(exchange, error)
            except EndpointError as error:
                self._fail(error)

    async def _judge(self, exchange: Exchange) -> None:
        judgement = None
        while judgement is None:
            reply = await self._client.complete(
                exchange.messages,
                max_tokens=self._max_tokens,
                expected_tokens=exchange.prompt_tokens + ANSWER_TOKENS,
            )
            judgement = exchange.take(
                reply.text,
                reply.prompt_tokens,
                reply.completion_tokens,
                cut=reply.finish_reason == "length",
                model=reply.model,
            )
        self._keep(judgement)
        if not self._answered:
            self._answered = True
            for refused, error in self._refused:
                self._keep(refused.refuse(str(error)))
            self._refused.clear()

    def _keep(self, judgement: Judgement) -> None:
        _keep(judgement, self._record, self._seen)

    def _refuse(self, exchange: Exchange, error: RefusedError) -> None:
        """One refused example is counted and passed over, but only once it is known that others are answered."""
        if self._answered:
            self._keep(exchange.refuse(str(error)))
            return
        self._refused.append((exchange, error))
        if len(self._refused) >= _REFUSALS:
            self._fail(error)

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
                loop.add_signal_handler(number, self._interrupt)
                caught.append(number)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    def _interrupt(self) -> None:
        if self._interrupted:
            for worker in self._workers:
                worker.cancel()
        self._interrupted = True
        self._client.stop()


def ask_local(
    exchanges: Sequence[Exchange], model: LocalModel, record: Record, batch_size: int, max_tokens: int, seen: Seen
) -> None:
    """Have a local model judge, in batches of like length.

    Raises:
        JudgeStopped: a person stopped it.
    """
    try:
        ordered = []
        for exchange in sorted(exchanges, key=lambda exchange: exchange.prompt_tokens):
            reason = model.too_long(exchange.messages, max_tokens)
            if reason is None:
                ordered.append(exchange)
                continue
            _keep(exchange.refuse(reason), record, seen)
        for start in range(0, len(ordered), batch_size):
            pending = ordered[start : start + batch_size]
            while pending:
                answers = model.answer([exchange.messages for exchange in pending], max_tokens)
                again = []
                for exchange, (text, prompt_tokens, completion_tokens, cut) in zip(pending, answers, strict=True):
                    judgement = exchange.take(text, prompt_tokens, completion_tokens, cut=cut)
                    if judgement is None:
                        again.append(exchange)
                        continue
                    _keep(judgement, record, seen)
                pending = again
    except KeyboardInterrupt:
        raise JudgeStopped("stopped", interrupted=True) from None


def _keep(judgement: Judgement, record: Record, seen: Seen) -> None:
    record.append(judgement)
    seen(judgement)
