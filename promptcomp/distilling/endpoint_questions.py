"""Questions about a text that another LM asks, at an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from promptcomp.chat.client import ChatClient, Endpoint, EndpointError, Message, RefusedError
from promptcomp.chat.replies import Reply
from promptcomp.errors import Exit, RunFailed

_AT_ONCE = 4
_LOOK = 0.2
"""Seconds between two looks whether to stop."""


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
