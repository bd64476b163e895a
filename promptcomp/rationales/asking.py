"""Asking the teacher: several requests at a time at an endpoint, or in batches with a local model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from promptcomp.endpoints import BYTES_PER_TOKEN, AskingStopped, ChatClient, Crew, Message, now
from promptcomp.rationales.record import Completion, Record

Seen = Callable[[Completion], None]


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
        AskingStopped: a person stopped it.
    """
    try:
        reasons = model.prepare([request.prompt for request in requests], writing.max_tokens)
        possible = []
        for request, reason in zip(requests, reasons, strict=True):
            if reason is None:
                possible.append(request)
            else:
                record.append(_completion(request, error=reason), seen)
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
                record.append(completion, seen)
    except KeyboardInterrupt:
        raise AskingStopped("stopped", interrupted=True) from None


async def ask_endpoint(
    requests: Sequence[Request], client: ChatClient, record: Record, writing: Writing, concurrency: int, seen: Seen
) -> None:
    """Have an endpoint write; after a fault or the first Ctrl-C requests under way may finish and are kept.

    Raises:
        AskingStopped: the endpoint cannot serve, or a person stopped it.
    """

    async def ask(request: Request) -> None:
        reply = await client.complete(
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
        record.append(completion, seen)

    def refuse(request: Request, reason: str) -> None:
        record.append(_completion(request, error=reason), seen)

    answered = any(completion.error is None for completion in record.entries.values())
    await Crew(requests, client, ask=ask, refuse=refuse, answered=answered).run(concurrency)


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
