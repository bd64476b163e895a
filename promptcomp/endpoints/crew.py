"""Asking an endpoint about many things, several at a time, without losing what was answered."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Generic, TypeVar

from promptcomp.endpoints.client import ChatClient, EndpointError, RefusedError, StoppedError

Item = TypeVar("Item")

REFUSALS = 3
"""So many refused requests before any answer: the request as such is wrong, not one example."""


class AskingStopped(RuntimeError):
    """Asking ended early; what was kept is kept."""

    def __init__(self, reason: str, *, interrupted: bool) -> None:
        super().__init__(reason)
        self.interrupted = interrupted
        """By a signal rather than by the endpoint."""


class Crew(Generic[Item]):
    """Workers that share a queue and a client. After a fault or the first Ctrl-C requests under way may finish.

    Args:
        items: What is to be asked.
        client: The endpoint.
        ask: Asks about one item and keeps the answer.
        refuse: Keeps that an item was refused, with the endpoint's reason.
        answered: Whether the endpoint is known to answer such requests.
    """

    def __init__(
        self,
        items: Sequence[Item],
        client: ChatClient,
        *,
        ask: Callable[[Item], Awaitable[None]],
        refuse: Callable[[Item, str], None],
        answered: bool,
    ) -> None:
        self._queue = iter(items)
        self._client = client
        self._ask, self._keep_refusal = ask, refuse
        self._answered = answered
        self._refused: list[tuple[Item, RefusedError]] = []
        self._fault: EndpointError | None = None
        self._interrupted = False
        self._workers: list[asyncio.Task[None]] = []

    async def run(self, concurrency: int) -> None:
        """Ask with that many workers.

        Raises:
            AskingStopped: the endpoint cannot serve, or a person stopped it.
        """
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
            raise AskingStopped("stopped", interrupted=True)
        if self._fault is None and self._refused:
            self._fault = self._refused[0][1]
        if self._fault is not None:
            raise AskingStopped(str(self._fault), interrupted=False)

    async def _work(self) -> None:
        while not self._interrupted and self._fault is None:
            item = next(self._queue, None)
            if item is None:
                return
            try:
                await self._ask(item)
            except StoppedError:
                return
            except RefusedError as error:
                self._refuse(item, error)
            except EndpointError as error:
                self._fail(error)
            else:
                self._note_answer()

    def _note_answer(self) -> None:
        if not self._answered:
            self._answered = True
            for item, error in self._refused:
                self._keep_refusal(item, str(error))
            self._refused.clear()

    def _refuse(self, item: Item, error: RefusedError) -> None:
        """One refused item is counted and passed over, but only once it is known that others are answered."""
        if self._answered:
            self._keep_refusal(item, str(error))
            return
        self._refused.append((item, error))
        if len(self._refused) >= REFUSALS:
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
            for worker in self._workers:
                worker.cancel()
        self._interrupted = True
        self._client.stop()
