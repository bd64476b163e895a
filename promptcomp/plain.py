"""Foreign text made safe to show and to keep: no control characters, no credentials, no endless values."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, what turns the direction of writing, and half surrogate pairs."""
SECRETS = ("password", "passwd", "sslpassword", "token", "access_token", "api_key", "apikey", "key", "secret")
"""Names of values in addresses that nobody may read."""
_USER = re.compile(r"(?<=://)(?:[^\s/?#@:]*:[^\s@'\"]*|[^\s/?#@]*)@")
_VALUE = re.compile(rf"(?i)(?<![\w.])((?:{'|'.join(SECRETS)})=)[^&\s'\"]+")
_LARGEST = 2**64


def printable(text: str) -> str:
    """A text with every character that a terminal would act upon written as an escape, such as `\\x1b`."""
    return UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def without_credentials(text: str) -> str:
    """A text whose addresses (`scheme://...`) have neither user and password nor secret values (`?password=...`)."""
    return _VALUE.sub(r"\1...", _USER.sub("", text)) if "://" in text else text


def shown(value: Any, most: int = 120) -> str:
    """A value as a message shows it: its repr, cut where it is long."""
    if isinstance(value, int) and abs(value) >= _LARGEST:  # Python refuses to write out thousands of digits
        return f"a number of {value.bit_length()} bits"
    text = repr(value[:most] if isinstance(value, str | list) else value)
    return text if len(text) <= most else f"{text[: most - 10]}...{text[-1]}"


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a text as it is, however long its lines are."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def csv_text(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A table as CSV; None is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()
