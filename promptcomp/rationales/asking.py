"""Asking the teacher: several requests at a time at an endpoint, or in batches with a local model."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from promptcomp.endpoints import ChatClient, EndpointError, Message, RefusedError, StoppedError
from promptcomp.rationales.record import Completion, Record, now

Seen = Callable[[Completion], None]
BYTES_PER_TOKEN = 4
"""Rule of thumb for an estimate without the teacher's tokenizer (English prose)."""
_REFUSALS = 3
"""So many refused requests before any answer: the request as such is wrong, not one example."""


@dataclass(frozen=True, slots=True)
class Writing:
    """How the teacher writes."""

    max_tokens: int
    stop: tuple[str, ...]
    temperature: float = 0.0
    """0 is greedy."""


@dataclass(frozen=True, slots=True)
class Request:
    """One text that is wanted."""

    key: str
    id: str
    split: str
    sample: int
    prompt: str
    """For a plain LM."""
    messages: tuple[Message, ...]
    """For a chat model."""

    @property
    def prompt_tokens(self) -> int:
        """About how many tokens the prompt takes."""
        return len(self.prompt.encode()) // BYTES_PER_TOKEN


def request_key(teacher: str, prompt: object, writing: Writing, sample: int, seed: int) -> str:
    """Equal for requests whose answers may stand for each other; the seed counts only where there is chance."""
    chance = [seed, sample] if writing.temperature > 0 else []
    identity = [teacher, prompt, writing.max_tokens, list(writing.stop), writing.temperature, *chance]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


class TeacherStopped(RuntimeError):
    """Asking ended early; what was written is kept."""

    def __init__(self, reason: str, *, interrupted: bool) -> None:
        super().__init__(reason)
        self.interrupted = interrupted
        """By a signal rather than by the teacher."""


class LocalModel(Protocol):
    """Continues texts."""

    def prepare(self, prompts: Sequence[str], max_tokens: int) -> list[str | None]:
        """Read what all prompts share; gives back for each why it cannot be continued (None: it can)."""

    def continue_texts(self, prompts: Sequence[str], writing: Writing, seed: int) -> list[tuple[str, int, int, bool]]:
        """Text, prompt tokens, completion tokens and whether the text was cut, for each prompt."""


def ask_local(
    requests: Sequence[Request], model: LocalModel, record: Record, writing: Writing, batch_size: int, seen: Seen
) -> None:
    """Have a local model write, in batches of like length.

    Raises:
        TeacherStopped: a person stopped it.
    """
    try:
        reasons = model.prepare([request.prompt for request in requests], writing.max_tokens)
        possible = []
        for request, reason in zip(requests, reasons, strict=True):
            if reason is None:
                possible.append(request)
            else:
                _keep(_completion(request, error=reason), record, seen)
        possible.sort(key=lambda request: len(request.prompt))
        for start in range(0, len(possible), batch_size):
            batch = possible[start : start + batch_size]
            seed = int(batch[0].key[:12], 16)  # other chance in every batch, the same in a repetition
            texts = model.continue_texts([request.prompt for request in batch], writing, seed)
            for request, (text, prompt_tokens, completion_tokens, cut) in zip(batch, texts, strict=True):
                completion = _completion(
                    request,
                    text=text,
                    cut=cut,
                    prompt_tokens=prompt_tokens,
                    completion_tokens=completion_tokens,
                )
                _keep(completion, record, seen)
    except KeyboardInterrupt:
        raise TeacherStopped("stopped", interrupted=True) from None


async def ask_endpoint(
    requests: Sequence[Request], client: ChatClient, record: Record, writing: Writing, concurrency: int, seen: Seen
) -> None:
    """Have an endpoint write; after a fault or the first Ctrl-C requests under way may finish and are kept.

    Raises:
        TeacherStopped: the endpoint cannot serve, or a person stopped it.
    """
    await _Crew(requests, client, record, writing, seen).run(concurrency)


class _Crew:
    """Workers that share a queue, a client and a record."""

    def __init__(
        self, requests: Sequence[Request], client: ChatClient, record: Record, writing: Writing, seen: Seen
    ) -> None:
        self._queue = iter(requests)
        self._client, self._record, self._writing, self._seen = client, record, writing, seen
        self._answered = any(completion.error is None for completion in record.completions.values())
        self._refused: list[tuple[Request, RefusedError]] = []
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
            raise TeacherStopped("stopped", interrupted=True)
        if self._fault is None and self._refused:
            self._fault = self._refused[0][1]
        if self._fault is not None:
            raise TeacherStopped(str(self._fault), interrupted=False)

    async def _work(self) -> None:
        while not self._interrupted and self._fault is None:
            request = next(self._queue, None)
            if request is None:
                return
            try:
                await self._ask(request)
            except StoppedError:
                return
            except RefusedError as error:
                self._refuse(request, error)
            except EndpointError as error:
                self._fail(error)

    async def _ask(self, request: Request) -> None:
        writing = self._writing
        reply = await self._client.complete(
            request.messages,
            max_tokens=writing.max_tokens,
            temperature=writing.temperature,
            expected_tokens=request.prompt_tokens + writing.max_tokens // 2,
            stop=writing.stop,
        )
        completion = _completion(
            request,
            text=reply.text,
            cut=reply.finish_reason == "length",
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            model=reply.model,
        )
        _keep(completion, self._record, self._seen)
        if not self._answered:
            self._answered = True
            for refused, error in self._refused:
                self._refuse(refused, error)
            self._refused.clear()

    def _refuse(self, request: Request, error: RefusedError) -> None:
        """One refused example is counted and passed over, but only once it is known that others are answered."""
        if self._answered:
            _keep(_completion(request, error=str(error)), self._record, self._seen)
            return
        self._refused.append((request, error))
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


def _completion(
    request: Request,
    *,
    text: str = "",
    cut: bool = False,
    error: str | None = None,
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
    model: str | None = None,
) -> Completion:
    return Completion(
        key=request.key,
        id=request.id,
        split=request.split,
        sample=request.sample,
        text=text,
        cut=cut,
        error=error,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        model=model,
        time=now(),
    )


def _keep(completion: Completion, record: Record, seen: Seen) -> None:
    record.append(completion)
    seen(completion)
