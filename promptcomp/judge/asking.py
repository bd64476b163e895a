"""Asking the judge about many pairs: several at a time at an endpoint, in batches with a local model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from promptcomp.endpoints import AskingStopped, ChatClient, Crew, Message
from promptcomp.judge.exchange import Exchange
from promptcomp.judge.record import Judgement, Record

ANSWER_TOKENS = 80
"""About how many tokens an answer takes."""

Seen = Callable[[Judgement], None]


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
        AskingStopped: the endpoint cannot serve, or a person stopped it.
    """

    async def ask(exchange: Exchange) -> None:
        judgement = None
        while judgement is None:
            reply = await client.complete(
                exchange.messages,
                max_tokens=max_tokens,
                expected_tokens=exchange.prompt_tokens + ANSWER_TOKENS,
            )
            judgement = exchange.take(
                reply.text,
                reply.prompt_tokens,
                reply.completion_tokens,
                cut=reply.finish_reason == "length",
                model=reply.model,
            )
        record.append(judgement, seen)

    def refuse(exchange: Exchange, reason: str) -> None:
        record.append(exchange.refuse(reason), seen)

    answered = any(judgement.attempts for judgement in record.entries.values())
    await Crew(exchanges, client, ask=ask, refuse=refuse, answered=answered).run(concurrency)


def ask_local(
    exchanges: Sequence[Exchange], model: LocalModel, record: Record, batch_size: int, max_tokens: int, seen: Seen
) -> None:
    """Have a local model judge, in batches of like length.

    Raises:
        AskingStopped: a person stopped it.
    """
    try:
        ordered = []
        for exchange in sorted(exchanges, key=lambda exchange: exchange.prompt_tokens):
            reason = model.too_long(exchange.messages, max_tokens)
            if reason is None:
                ordered.append(exchange)
                continue
            record.append(exchange.refuse(reason), seen)
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
                    record.append(judgement, seen)
                pending = again
    except KeyboardInterrupt:
        raise AskingStopped("stopped", interrupted=True) from None
