"""Self-study: the LM, behind the whole text, asks itself questions about parts of it.

A part is quoted in the request, or a small LM asks about nothing in particular. Two kinds of requests need no LM: to go
on with the text from some words of it, and to sum up what follows them. Another LM may ask instead, at an endpoint.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np

from promptcomp.chat.answer_file import AnswerFile, FileHeader, KeptAnswer, now
from promptcomp.chat.client import ChatClient, Endpoint, EndpointError, Message, RefusedError
from promptcomp.chat.replies import Reply, without_thoughts
from promptcomp.config import ConfigError
from promptcomp.errors import Exit, RunFailed, command

ASKED = {
    "fact": "Write one short question about a fact in this part.",
    "detail": "Write one short question about a name, a number or a detail in this part.",
    "reason": "Write one short question that asks why or how something in this part is so.",
    "use": "Write one short question that a person who needs this part for a task of theirs would ask.",
}
"""Requests that are followed by a part, and answered by a question."""
DIRECT = {
    "continue": 'Go on with the text word by word after "{words}".',
    "sum up": 'Say in one sentence what the text says after "{words}".',
}
KINDS = (*ASKED, *DIRECT)
QUESTION_TOKENS = 48
"""Most tokens of a question that the LM writes."""
_PART, _QUOTED, _FEWEST = 45, 10, 20
"""Words of a part, of the beginning of one that a direct request quotes, and of the shortest text to study."""
_TRIES = 4
"""Requests for each question that is wanted: a small LM repeats itself."""
_LEAST_SHARE = 4
"""A study in which the LM has asked less than this part of the questions itself has failed."""
_BATCH = 16
_AT_ONCE = 4
_LOOK = 0.2
"""Seconds between two looks whether to stop."""
_MARK = re.compile(r"^(?:(?:[-*\u2022]|\d+[.)]|q(?:uestion)?\s*\d*\s*[:.])\s*)+", re.IGNORECASE)
_END = re.compile(r"[?\uff1f\u061f]")

Ask = Callable[[Sequence[str], int, int], Sequence[Reply]]
"""What an LM writes to some requests, given the most tokens of each and a seed."""


class KeptQuestion(KeptAnswer):
    """A request and what came of it; an empty text was no question."""

    name: ClassVar[str] = "question"
    again: ClassVar[str] = "asked"

    kind: str
    text: str
    seconds: float = 0.0
    """What the LM took for it."""


def study(
    file: Path, text: str, wanted: int, seed: int, ask: Ask, seen: Callable[[int], None] = lambda count: None
) -> tuple[list[str], list[KeptQuestion]]:
    """Different questions about a text, at most `wanted`, and all requests that were made for them; each is on disk as
    soon as it is there.

    Args:
        file: where they are kept; what it holds already is not asked again.
        text: to ask about.
        wanted: how many.
        seed: of the parts that are quoted, and of the LM's draws.
        ask: the LM behind the text.
        seen: told how many there are.

    Raises:
        ConfigError: the text is too short, or hardly a question came of it.
    """
    given = command("distill", "--questions", "FILE", "...")
    if (words := len(text.split())) < _FEWEST:
        raise ConfigError(
            f"the text has {words} words, too few to ask questions about (at least {_FEWEST}): give your own ({given})"
        )
    with AnswerFile(file, FileHeader(format="promptcomp distill questions"), KeptQuestion) as record:
        for number in range(-(-wanted * _TRIES // _BATCH)):
            found = _different(record.entries.values())
            seen(min(wanted, len(found)))
            if len(found) >= wanted:
                break
            _ask_batch(record, text, range(number * _BATCH, (number + 1) * _BATCH), seed, ask)
        kept = list(record.entries.values())
    own = different([entry.text for entry in kept if entry.text and entry.kind in ASKED])
    if len(own) * _LEAST_SHARE < min(wanted, len(kept)):
        raise ConfigError(
            f"of {len(kept)} requests only {len(own)} brought a question that was not there before: the LM cannot ask "
            f"about this text, give questions of your own ({given})"
        )
    return _different(kept)[:wanted], kept


def _ask_batch(record: AnswerFile[KeptQuestion], text: str, numbers: range, seed: int, ask: Ask) -> None:
    """Requests are the same in every call, and so are an LM's draws, which depend on the whole batch."""
    left = [number for number in numbers if str(number) not in record.entries]
    if not left:
        return
    kinds = {number: KINDS[number % len(KINDS)] for number in numbers}
    requests = {number: _request(text, kind, seed, number) for number, kind in kinds.items()}
    asked = [number for number in numbers if kinds[number] in ASKED]
    # all of a batch, although a kill may have left some of its answers: so they are the same again
    start = time.monotonic()
    written = ask([requests[number] for number in asked], QUESTION_TOKENS, seed * 1_000_003 + numbers.start)
    seconds, replies = (time.monotonic() - start) / len(asked), dict(zip(asked, written, strict=True))
    for number in left:
        entry = KeptQuestion(key=str(number), split="train", kind=kinds[number], text=requests[number], time=now())
        if (reply := replies.get(number)) is not None:
            took = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
            entry = entry.model_copy(update={"text": the_question(reply.text), "seconds": seconds, **took})
        record.append(entry)


def _request(text: str, kind: str, seed: int, number: int) -> str:
    """A request about a part of the text that depends on seed and number alone."""
    words = list(re.finditer(r"\S+", text))
    draw = np.random.default_rng((seed, number))
    length = min(_PART if kind in ASKED else _QUOTED, len(words) // 2)
    first = int(draw.integers(0, len(words) - length + 1))
    part = text[words[first].start() : words[first + length - 1].end()]
    if kind in DIRECT:
        return DIRECT[kind].replace("{words}", " ".join(part.split()))
    return f'A part of the text:\n"{part}"\n\n{ASKED[kind]} Write nothing but the question.'


def the_question(reply: str) -> str:
    """The question in what an LM has written; empty: there is none of at least three words."""
    line = next((line.strip() for line in without_thoughts(reply).splitlines() if _END.search(line)), "")
    line = _MARK.sub("", line).strip("\"'`* \u201c\u201d")
    end = _END.search(line)
    question = line[: end.end()] if end else ""
    return question if len(question.split()) > 2 or len(question) > 20 else ""


def _different(kept: Iterable[KeptQuestion]) -> list[str]:
    """The texts that are not empty, in the order of their requests, each once."""
    texts = [entry.text for entry in sorted(kept, key=lambda entry: int(entry.key)) if entry.text]
    return different(texts)


def different(texts: Sequence[str]) -> list[str]:
    """Each once; case and white space make no difference."""
    return list({" ".join(text.casefold().split()): text for text in reversed(texts)}.values())[::-1]


def held_out(count: int, share: int | None, seed: int) -> list[int]:
    """The numbers of the questions that are not trained on, in random order.

    Raises:
        ConfigError: there are too few questions, or none would be left.
    """
    number = min(32, max(1, count // 4)) if share is None else share
    if count < 2:
        raise ConfigError(f"two different questions are needed, one to train on and one held out; there are {count}")
    if number >= count:
        raise ConfigError(
            f"of {count} different questions {number} cannot be held out: give more questions, or another --held-out"
        )
    order = np.random.default_rng((seed, hash_of("held out"))).permutation(count)
    return [int(each) for each in order[:number]]


def hash_of(text: str) -> int:
    """A number that sets one use of a seed apart from another."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def ask_endpoint(
    endpoint: Endpoint, text: str, requests: Sequence[str], most: int, temperature: float, stopped: Callable[[], bool]
) -> list[Reply] | None:
    """What the model writes to requests about a text, which is the system's turn; None: it was stopped.

    Token counts are left out of the replies: they are not the cartridge's LM's. A request that the endpoint refuses
    has an empty reply.

    Args:
        endpoint: Who is asked.
        text: The whole text.
        requests: Each is a user's turn.
        most: Most tokens of a reply.
        temperature: 0 is greedy.
        stopped: Looked at while requests are under way, which are then given up.

    Raises:
        ConfigError: the openai package or the key is missing.
        RunFailed: the endpoint does not serve, or refuses every request; earlier batches are kept.
    """
    refused: list[RefusedError] = []

    async def ask() -> list[Reply] | None:
        turns = asyncio.Semaphore(_AT_ONCE)

        async def one(client: ChatClient, request: str) -> Reply:
            messages: list[Message] = [{"role": "system", "content": text}, {"role": "user", "content": request}]
            async with turns:
                try:
                    reply = await client.complete(messages, max_tokens=most, temperature=temperature)
                except RefusedError as error:
                    refused.append(error)
                    return Reply("", None, None, None, None)
            return Reply(reply.text, None, None, None, None)

        async with ChatClient(endpoint) as client:
            work = asyncio.gather(*(one(client, request) for request in requests))
            while not (await asyncio.wait({work}, timeout=_LOOK))[0]:
                if stopped():  # a server that does not answer is not waited for
                    work.cancel()
                    return None
            return work.result()

    try:
        with ThreadPoolExecutor(1) as pool:  # a notebook has a loop of its own in this thread
            replies = pool.submit(asyncio.run, ask()).result()
    except EndpointError as error:
        raise RunFailed(f"{error}; the questions so far are kept, and the same command goes on", Exit.CRASHED) from None
    if refused and len(refused) == len(requests):
        raise RunFailed(f"{refused[0]}; no question was written", Exit.CRASHED)
    return replies
