"""Short ways of writing what a sweep tries: `2,4,8`, `1e-5..1e-3:log`, `1..8`, `0..1:steps=5`."""

from __future__ import annotations

import json
import re
from typing import Any

from promptcomp.config import parse_value
from promptcomp.errors import ConfigError

Scalar = bool | int | float | str | None

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE_START = re.compile(rf"\s*{_NUMBER}\s*\.\.")
_RANGE = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*((?::[^:]*)*)$")
_EXPONENT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)[eE][+-]?\d+$")
_OPENING, _CLOSING = "[{(", "]})"


def is_range(text: str) -> bool:
    """Whether a text is meant as `lo..hi...` (a path such as ../data is not)."""
    return _RANGE_START.match(text) is not None


def read_range(text: str) -> dict[str, Any]:
    """The keys of an interval: `lo..hi`, followed by any of `:log`, `:int`, `:steps=N`; whole ends stay whole numbers.

    Raises:
        ValueError: the ends are no numbers, or an unknown word follows them.
    """
    found = _RANGE.match(text)
    if found is None:
        raise ValueError(f"{text!r}: a range is written lo..hi, lo..hi:log or lo..hi:steps=5")
    low, high, rest = found.groups()
    whole = all(re.fullmatch(r"[+-]?\d+", end) for end in (low, high))
    tree: dict[str, Any] = {"low": float(low), "high": float(high), "integer": whole}
    for word in rest.split(":")[1:]:
        name, equals, value = word.strip().partition("=")
        if word.strip() == "log":
            tree["log"] = True
        elif word.strip() == "int":
            tree["integer"] = True
        elif name == "steps" and equals and value.strip().isdigit():
            tree["steps"] = int(value)
        else:
            raise ValueError(f"{text!r}: {word!r} is not known; a range takes :log, :int and :steps=N")
    return tree


def number_or_same(value: Any) -> Any:
    """A number for a text such as 1e-5, which YAML takes for a text; everything else unchanged."""
    return float(value) if isinstance(value, str) and _EXPONENT.match(value) else value


def name_of_value(value: Any) -> Scalar:
    """How a value is kept in a trial's parameters: itself if it is a scalar, otherwise its JSON text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, sort_keys=True, default=str)


def split_values(text: str) -> list[str]:
    """The parts of `a,b,c`; commas within brackets, braces and quotes do not part.

    Raises:
        ConfigError: a part is empty.
    """
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        if letter == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    if len(parts) > 1 and not all(part.strip() for part in parts):
        raise ConfigError(f"{text!r}: a value is empty; write a,b,c without a comma too many")
    return [part.strip() for part in parts]


def read_value(text: str, where: str) -> Any:
    """One value, read as YAML.

    Raises:
        ConfigError: it is not YAML.
    """
    return number_or_same(parse_value(text, where))
