"""Reading a server's responses: the reply, how long to wait, and what went wrong in a few words."""

from __future__ import annotations

import email.utils
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promptcomp.documents import parse_json

MOST_BYTES = 2**24
"""Maximum number of bytes of a response."""
_SHOWN = 160  # characters of a server's words in a message


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered."""

    text: str
    """Empty if the model said nothing."""
    prompt_tokens: int | None
    """As counted by the server; None: it does not tell."""
    completion_tokens: int | None
    finish_reason: str | None
    model: str | None
    """The model's name as the server tells it (often with its version)."""


class TransientError(Exception):
    """A try failed in a way that may pass."""

    def __init__(self, reason: str, retry_after: float | None = None, limited: bool = False) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.limited = limited


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that a server asks to wait (`retry-after-ms`, or `Retry-After` in seconds or as a date); None: not told.

    Args:
        headers: of the response, found whatever their case.
        now: seconds since the epoch; None: the present.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            continue
        return seconds if seconds >= 0 else None  # NaN too
    date = email.utils.parsedate_tz(headers.get("retry-after"))
    if date is None:
        return None
    return max(0.0, email.utils.mktime_tz(date) - (time.time() if now is None else now))


class TooLargeError(ValueError):
    """A response that no answer can be."""


async def limit_body(response: Any) -> None:
    """Have a response fail once more of it is read than any answer holds; a hook of the HTTP client."""
    whole: Any = response.stream
    is_plain = response.headers.get("content-encoding", "identity") == "identity"

    class Limited(type(whole)):  # type: ignore[misc]  # the client asks for its own kind of stream
        def __init__(self) -> None:
            self.size = 0

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in whole:
                self.size += len(chunk)
                if self.size > MOST_BYTES or not is_plain:
                    raise TooLargeError(f"answers with more than {MOST_BYTES >> 20} MiB, or compressed unasked")
                yield chunk

        async def aclose(self) -> None:
            await whole.aclose()

    response.stream = Limited()


def read_reply(text: str, headers: Mapping[str, str]) -> Reply:
    """The reply in a response's body. Anything but a chat completion is a transient error: proxies answer for servers.

    Raises:
        TransientError: it is something else.
    """
    kind = str(headers.get("content-type", "")).partition(";")[0].strip() or "no content type"
    try:
        body = parse_json(text)
    except ValueError:
        what = "HTML" if text.lstrip()[:1] == "<" else "no complete JSON"
        raise TransientError(f"answers with {what} ({kind}: {shorten(text)})") from None
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise TransientError(f"answers without choices ({kind}: {shorten(text)})")
    usage = body.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    content, reason, model = message.get("content"), choice.get("finish_reason"), body.get("model")
    return Reply(
        text=content if isinstance(content, str) else "",
        prompt_tokens=_whole(counts.get("prompt_tokens")),
        completion_tokens=_whole(counts.get("completion_tokens")),
        finish_reason=reason if isinstance(reason, str) else None,
        model=model if isinstance(model, str) else None,
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def shorten(text: str) -> str:
    """The beginning of a text, on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN else flat[:_SHOWN] + "..."


def without_thoughts(text: str) -> str:
    """What a reasoning model says after its `<think>...</think>`; empty: the tokens ended while it thought."""
    said = text.rpartition("</think>")[2]
    return "" if said.lstrip().startswith("<think>") else said


def cut_at(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop texts."""
    places = [place for place in (text.find(end) for end in stop) if place >= 0]
    return text[: min(places)] if places else text
