"""One call of a command that asks a model about many things: what is left to ask, what came of it, what it costs."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

from promptcomp.endpoints.client import ChatClient, Endpoint
from promptcomp.endpoints.records import EntryT, RecordFile

BYTES_PER_TOKEN = 4
"""Rule of thumb for an estimate without the model's tokenizer (English prose; other scripts take more tokens)."""


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


class Keyed(Protocol):
    """A question whose answer is found by its key."""

    @property
    def key(self) -> str: ...


ItemT = TypeVar("ItemT", bound=Keyed)


class AskingSession(ABC, Generic[ItemT, EntryT]):
    """The record and what is still to be asked. Use as a context manager."""

    record: RecordFile[EntryT]
    todo: list[ItemT]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.record.__exit__()

    def left(self) -> int:
        """Questions of this call that have no answer yet."""
        return sum(item.key not in self.record.entries for item in self.todo)

    def ask_endpoint(self, endpoint: Endpoint, concurrency: int, seen: Callable[[EntryT], None]) -> list[str]:
        """Have an endpoint answer what is left; gives back remarks on how it had to be asked.

        Raises:
            ConfigError: the endpoint cannot be used as given.
            AskingStopped: it failed, or a person stopped it; what was answered is kept.
        """

        async def ask() -> list[str]:
            async with ChatClient(endpoint) as client:
                await self._ask(client, concurrency, seen)
                return client.notes

        return asyncio.run(ask())

    @abstractmethod
    async def _ask(self, client: ChatClient, concurrency: int, seen: Callable[[EntryT], None]) -> None:
        """Ask about `todo`, several at a time."""
