"""A chat client for OpenAI-compatible servers, with limits, retries and counts.

The `openai` library speaks the protocol; it is an optional extra and imported only when a client is opened. Retries are
made here and not by the library, so that each try passes the rate limits, is counted, and can be called off.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypedDict
from urllib.parse import urlsplit

from promptcomp.chat.limits import RateLimiter
from promptcomp.chat.replies import (
    PassingError,
    Reply,
    TooLargeError,
    limit_body,
    read_reply,
    retry_after,
    shorten,
)
from promptcomp.errors import ConfigError
from promptcomp.plain import without_credentials

OPENAI_URL = "https://api.openai.com/v1"
LONGEST_RETRY_AFTER = 600.0
"""Seconds; a server that asks for a longer wait (a daily quota) is taken as out of service."""
MOST_STOPS = 4
"""Stop texts that OpenAI's servers accept."""
_RETRIED = (408, 409, 429)
_OPTIONAL = {
    "max_tokens": None,  # newer models know it as max_completion_tokens
    "temperature": "the model takes no temperature: its own default was used",
    "stop": "the model takes no stop texts: answers run on to their end",
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
    """Further tries of a request that failed for a passing reason."""
    first_wait: float = 1.0
    """Seconds before the first further try; doubled for each one after it, less up to a quarter by chance."""
    longest_wait: float = 60.0
    """Most seconds between two tries, unless the server asks for more."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: the base URL is empty or none.
        """
        if self.base_url is not None and not self.base_url.strip():
            raise ConfigError("--base-url is empty; leave it out for OPENAI_BASE_URL or OpenAI's own")
        if not _is_url(self._whole_url):
            raise ConfigError(f"base URL {self.url!r}: expected http://HOST[:PORT]/v1 or https://...")

    @property
    def url(self) -> str:
        """The base URL that is used, without credentials."""
        return without_credentials(self._whole_url)

    @property
    def _whole_url(self) -> str:
        return (self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL).rstrip("/")


@dataclass(slots=True)
class Usage:
    """What a client has used so far."""

    requests: int = 0
    """Tries that were sent, the failed ones included."""
    failed: int = 0
    """Tries that brought no reply."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """Replies whose tokens the server did not tell."""


class StoppedError(EndpointError):
    """The client was told to stop before this request was answered."""


class ChatClient:
    """Asks one endpoint; use it as an async context manager.

    Any number of calls may run at once (the caller bounds them); they share the rate limits and the usage.

    Raises:
        ConfigError: the `openai` package or the key is missing, or the URL is none.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.usage = Usage()
        self.notes: list[str] = []
        """What had to be asked differently from what was meant, in words."""
        self.limiter = RateLimiter(endpoint.requests_per_minute, endpoint.tokens_per_minute, sleep=self._sleep)
        self._stopping = asyncio.Event()
        self._unknown: set[str] = set()
        """Of the optional parts of a request, those that this server does not know."""
        self._openai = _import_openai()
        self._client = self._openai.AsyncOpenAI(
            api_key=_api_key(endpoint),
            base_url=endpoint._whole_url,
            timeout=endpoint.timeout,
            max_retries=0,
            default_headers={"Accept-Encoding": "identity"},
            http_client=self._openai.DefaultAsyncHttpxClient(event_hooks={"response": [limit_body]}),
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
            max_tokens: most tokens of the answer.
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
            self.usage.requests += 1
            try:
                reply = await self._once(messages, max_tokens, temperature, stop)
            except PassingError as error:
                self.usage.failed += 1
                await self._wait_or_give_up(error, tries)
                continue
            except EndpointError:
                self.usage.failed += 1
                raise
            if reply is None:  # asked in a way that this server does not know; the client has adapted
                self.usage.failed += 1
                continue
            self._count(reply)
            if reply.prompt_tokens is not None:
                slot.tokens = reply.prompt_tokens + (reply.completion_tokens or 0)
            return reply

    async def _wait_or_give_up(self, error: PassingError, tries: int) -> None:
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
            raise PassingError(f"no answer within {self.endpoint.timeout:g} s") from None
        except TooLargeError as error:
            raise PassingError(str(error)) from None
        except errors.APIConnectionError as error:
            if isinstance(error.__cause__, TooLargeError):
                raise PassingError(str(error.__cause__)) from None
            raise PassingError(f"cannot be reached ({_cause(error)})") from None
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
        if error.status_code != 400 or not str(error.code).startswith("unsupported"):
            return False
        if unknown not in _OPTIONAL or unknown not in sent:
            return False
        if unknown not in self._unknown:  # requests that were under way meet it too
            self._unknown.add(unknown)
            self.notes += [note] if (note := _OPTIONAL[unknown]) else []
        return True

    def _status_error(self, error: Any) -> Exception:
        status, words, where = error.status_code, _server_words(error), self.endpoint.url
        if status in (401, 403):
            name = self.endpoint.api_key_env
            hint = f"check the key in {name}" if os.environ.get(name) else f"set the key in {name}"
            return EndpointError(f"{where}: the key is refused ({status}: {words}); {hint}")
        if status == 404:
            model = self.endpoint.model
            hint = "check --model and --base-url (it usually ends in /v1)"
            return EndpointError(f"{where}: no such model or address ({model!r}; 404: {words}); {hint}")
        if status == 429 and error.code == "insufficient_quota":  # waiting does not fill an account
            return EndpointError(f"{where}: the account has no quota left ({words})")
        if status in _RETRIED or status >= 500:
            return PassingError(
                f"answers with status {status} ({words})", retry_after(error.response.headers), status in (429, 503)
            )
        if status in (400, 413, 422):
            return RefusedError(f"{where}: refuses the request ({status}: {words})")
        return EndpointError(f"{where}: answers with status {status} ({words})")

    def _count(self, reply: Reply) -> None:
        if reply.prompt_tokens is None:
            self.usage.uncounted += 1
        self.usage.prompt_tokens += reply.prompt_tokens or 0
        self.usage.completion_tokens += reply.completion_tokens or 0


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and text.isprintable()
    except ValueError:
        return False


def _import_openai() -> Any:
    try:
        import openai
    except ImportError:
        raise ConfigError(
            "asking an endpoint needs the openai package, which is not installed; pip install 'promptcomp[api]'"
        ) from None
    return openai


def _api_key(endpoint: Endpoint) -> str:
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if key:
        return key
    if endpoint.url == OPENAI_URL:
        raise ConfigError(
            f"no key for {endpoint.url}: set it in the environment variable {endpoint.api_key_env},"
            " or name your own server with --base-url"
        )
    return "none"  # servers of one's own ask for no key, but the library insists on one


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return shorten(str(cause)) or type(cause).__name__


def _server_words(error: Any) -> str:
    body = error.body
    words = body.get("message") if isinstance(body, dict) else None
    return shorten(str(words or error.response.text or error.response.reason_phrase or "no words"))
