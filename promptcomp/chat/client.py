"""A chat client for OpenAI-compatible servers, with limits, retries and counts.

The `openai` library speaks the protocol; it is an optional extra and imported only when a client is opened. Retries are
made here and not by the library, so that each try passes the rate limits, is counted, and can be called off.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypedDict
from urllib.parse import urlsplit

from promptcomp.chat import api_key
from promptcomp.chat.replies import (
    Reply,
    TooLargeError,
    TransientError,
    limit_body,
    read_reply,
    retry_after,
    shorten,
)
from promptcomp.errors import ConfigError
from promptcomp.plain import without_credentials

WINDOW = 60.0
"""Seconds that the limits are counted over."""


@dataclass(slots=True)
class Slot:
    """A request that was let through; its tokens are put right when the reply tells them."""

    time: float
    tokens: int


class RateLimiter:
    """Lets requests through one after another so that no 60 seconds hold more than the limits.

    Args:
        requests_per_minute: maximum number of requests in any 60 seconds; None: no limit.
        tokens_per_minute: most tokens (prompt and completion) in any 60 seconds; None: no limit. A request that is
            larger than the limit by itself goes out alone.
        clock: seconds, monotonic.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self._clock = clock
        self._sleep = sleep
        self._recent: deque[Slot] = deque()
        self._paused_until = float("-inf")
        self._turn = asyncio.Lock()  # first come, first served

    async def acquire(self, tokens: int = 0) -> Slot:
        """Wait until a request of about `tokens` tokens may go out."""
        async with self._turn:
            while (wait := self._wait(tokens)) > 0:
                await self._sleep(wait)
            slot = Slot(self._clock(), tokens)
            if self.requests_per_minute is not None or self.tokens_per_minute is not None:
                self._recent.append(slot)
            return slot

    def pause(self, seconds: float) -> None:
        """Let nothing through for `seconds`: the server has asked everybody to wait."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def _wait(self, tokens: int) -> float:
        """Seconds until something may change; 0: go."""
        now = self._clock()
        if now < self._paused_until:
            return self._paused_until - now
        while self._recent and self._recent[0].time + WINDOW <= now:
            self._recent.popleft()
        if not self._recent:
            return 0.0
        used = sum(slot.tokens for slot in self._recent)
        full = self.requests_per_minute is not None and len(self._recent) >= self.requests_per_minute
        full = full or (self.tokens_per_minute is not None and used + tokens > self.tokens_per_minute)
        # A little more than the rest of the window: a float may otherwise land just short of it and wait for nothing.
        return self._recent[0].time + WINDOW - now + 1e-3 if full else 0.0


OPENAI_URL = "https://api.openai.com/v1"
LONGEST_RETRY_AFTER = 600.0
"""Seconds; a server that asks for a longer wait (a daily quota) is taken as out of service."""
MOST_STOPS = 4
"""Stop texts that OpenAI's servers accept."""
_RETRIED = (408, 409, 429)
_OPTIONAL = {
    "max_tokens": None,  # newer models know it as max_completion_tokens
    "temperature": "the model accepts no temperature: its default was used",
    "stop": "the model accepts no stop texts: answers were not ended by them",
}
"""Parts of a request that a server may not know, and what to tell when they are left out."""


class Message(TypedDict):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class EndpointError(RuntimeError):
    """The endpoint cannot serve: it is down, too slow, not what it should be, or it refuses the key or the model."""


class RefusedError(EndpointError):
    """The endpoint refuses this request (400, 413, 422), for example because it is too long; others may pass."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is served and how hard it may be asked."""

    model: str
    """The model's name at the server."""
    base_url: str | None = None
    """Up to and without `/chat/completions`; None: OPENAI_BASE_URL, else OpenAI's own."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; may be unset for a server of your own."""
    timeout: float = 120.0
    """Seconds for one whole request."""
    retries: int = 5
    """Retries of a request after a transient error."""
    first_wait: float = 1.0
    """Seconds before the first further try; doubled for each one after it, less up to a quarter by chance."""
    longest_wait: float = 60.0
    """Most seconds between two tries, unless the server asks for more."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: the base URL or the model's name is empty or none.
        """
        if not self.model.strip() or not self.model.isprintable():
            raise ConfigError(f"{self.model!r} is no name of a model; give one that the server knows")
        if self.base_url is not None and not self.base_url.strip():
            raise ConfigError("the server's URL is empty; leave it out for OPENAI_BASE_URL or OpenAI's own")
        try:
            parts = urlsplit(self._whole_url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            known = False
        if not known or not self._whole_url.isprintable():
            raise ConfigError(f"base URL {self.url!r}: expected http://HOST[:PORT]/v1 or https://...")

    @property
    def url(self) -> str:
        """The base URL that is used, without credentials."""
        return without_credentials(self._whole_url)

    def key(self) -> str:
        """The key in its environment variable; empty: none is set.

        Raises:
            ConfigError: no request can carry it.
        """
        return api_key(os.environ.get(self.api_key_env, ""), f"the environment variable {self.api_key_env}")

    @property
    def _whole_url(self) -> str:
        return (self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL).rstrip("/")


class StoppedError(EndpointError):
    """The client was stopped before this request was answered."""


class ChatClient:
    """Asks one endpoint; use it as an async context manager.

    Any number of calls may run at once (the caller bounds them); they share the rate limits and nothing else.

    Raises:
        ConfigError: the `openai` package or the key is missing, or the URL or the key is none.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.failed = 0
        """Tries that brought no reply."""
        self.notes: list[str] = []
        """How requests had to differ from what was configured, in words."""
        self.limiter = RateLimiter(endpoint.requests_per_minute, endpoint.tokens_per_minute, sleep=self._sleep)
        self._stopping = asyncio.Event()
        self._unknown: set[str] = set()
        """Of the optional parts of a request, those that this server does not know."""
        try:
            import openai
        except ImportError:
            raise ConfigError(
                "an endpoint needs the openai package, which is not installed; pip install 'promptcomp[api]'"
            ) from None
        key = endpoint.key()
        if not key and endpoint.url == OPENAI_URL:
            raise ConfigError(
                f"no key for {endpoint.url}: set it in the environment variable {endpoint.api_key_env},"
                " or name the URL of a server of your own"
            )
        self._openai: Any = openai
        self._client: Any = openai.AsyncOpenAI(
            api_key=key or "none",  # servers of one's own ask for no key, but the library insists on one
            base_url=endpoint._whole_url,
            timeout=endpoint.timeout,
            max_retries=0,
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [limit_body]}),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    def stop(self) -> None:
        """Send nothing more; requests that are under way may finish. Calls that wait end with `StoppedError`."""
        self._stopping.set()

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        expected_tokens: int = 0,
        stop: Sequence[str] = (),
    ) -> Reply:
        """One answer.

        Args:
            messages: the chat so far.
            max_tokens: maximum number of tokens of the answer.
            temperature: 0 is greedy.
            expected_tokens: about how many tokens the request takes in all, for the limit of tokens per minute.
            stop: texts that end the answer, at most four are sent; a server may ignore them or leave them in.

        Raises:
            RefusedError: the server refuses this request.
            StoppedError: the client was stopped first.
            EndpointError: the server could not be made to answer; says why and how often it was tried.
        """
        tries = 0
        while True:
            slot = await self.limiter.acquire(expected_tokens)
            if self._stopping.is_set():
                raise StoppedError(f"{self.endpoint.url}: stopped")
            tries += 1
            try:
                reply = await self._once(messages, max_tokens, temperature, stop)
            except TransientError as error:
                self.failed += 1
                await self._wait_or_give_up(error, tries)
                continue
            if reply is None:  # asked in a way that this server does not know; the client has adapted
                continue
            if reply.prompt_tokens is not None:
                slot.tokens = reply.prompt_tokens + (reply.completion_tokens or 0)
            return reply

    async def _wait_or_give_up(self, error: TransientError, tries: int) -> None:
        where = self.endpoint.url
        if error.retry_after is not None and error.retry_after > LONGEST_RETRY_AFTER:
            raise EndpointError(f"{where}: {error}; it asks to wait {error.retry_after:.0f} s") from None
        if tries > self.endpoint.retries or self._stopping.is_set():
            raise EndpointError(f"{where}: {error} ({tries} tr{'y' if tries == 1 else 'ies'})") from None
        wait = min(self.endpoint.first_wait * 2 ** min(tries - 1, 30), self.endpoint.longest_wait)
        wait *= 1 - 0.25 * random.random()  # several clients must not come back in step
        if error.retry_after is not None:
            wait = error.retry_after
        if error.limited:
            self.limiter.pause(wait)
        await self._sleep(wait)

    async def _sleep(self, seconds: float) -> None:
        """Sleep; to be stopped ends it."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise StoppedError(f"{self.endpoint.url}: stopped")

    async def _once(
        self, messages: Sequence[Message], max_tokens: int, temperature: float, stop: Sequence[str]
    ) -> Reply | None:
        """One try; None: the same request has to be put differently."""
        errors = self._openai
        options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
        if stop:
            options["stop"] = list(stop)[:MOST_STOPS]
        options = {name: value for name, value in options.items() if name not in self._unknown}
        if "max_tokens" not in options:
            options["max_completion_tokens"] = max_tokens
        try:
            async with asyncio.timeout(self.endpoint.timeout):  # the library's own limit is per read, not for the whole
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=self.endpoint.model, messages=list(messages), **options
                )
        except (TimeoutError, errors.APITimeoutError):
            raise TransientError(f"no answer within {self.endpoint.timeout:g} s") from None
        except TooLargeError as error:
            raise TransientError(str(error)) from None
        except errors.APIConnectionError as error:
            if isinstance(error.__cause__, TooLargeError):
                raise TransientError(str(error.__cause__)) from None
            cause = error.__cause__ or error
            raise TransientError(f"cannot be reached ({shorten(str(cause)) or type(cause).__name__})") from None
        except errors.APIStatusError as error:
            if self._adapt(error, options):
                return None
            raise self._status_error(error) from None
        except errors.OpenAIError as error:
            raise EndpointError(f"{self.endpoint.url}: {shorten(str(error))}") from None
        return read_reply(raw.text, raw.headers)

    def _adapt(self, error: Any, sent: Container[str]) -> bool:
        """Whether the trouble was a part of the request that this server does not know; it is sent no more."""
        unknown = str(error.param)
        told = error.status_code == 400 and str(error.code).startswith("unsupported")
        if not told or unknown not in _OPTIONAL or unknown not in sent:
            return False
        if unknown not in self._unknown:  # requests that were under way meet it too
            self._unknown.add(unknown)
            self.notes += [note] if (note := _OPTIONAL[unknown]) else []
        return True

    def _status_error(self, error: Any) -> Exception:
        status, where, response = error.status_code, self.endpoint.url, error.response
        told = error.body.get("message") if isinstance(error.body, dict) else None
        words = shorten(str(told or response.text or response.reason_phrase or "no message"))
        if status in (400, 413, 422):
            return RefusedError(f"{where}: refuses the request ({status}: {words})")
        problem = f"answers with status {status} ({words})"
        if status in (401, 403):
            name = self.endpoint.api_key_env
            hint = f"{'check' if os.environ.get(name) else 'set'} the key in {name}"
            problem = f"the key is refused ({status}: {words}); {hint}"
        elif status == 404:
            hint = "check the model's name and the server's URL (it usually ends in /v1)"
            problem = f"no such model or address ({self.endpoint.model!r}; 404: {words}); {hint}"
        elif status == 429 and error.code == "insufficient_quota":  # waiting does not fill an account
            problem = f"the account has no quota left ({words})"
        elif status in _RETRIED or status >= 500:
            return TransientError(problem, retry_after(response.headers), status in (429, 503))
        return EndpointError(f"{where}: {problem}")
