"""Reading a judge's answer: a JSON object with `reason` and `choice`, alone, fenced, or inside other words."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

Choice = Literal["A", "B", "tie"]

_CHOICES: dict[str, Choice] = {"a": "A", "b": "B", "tie": "tie"}
_FENCE = re.compile(r"\A```[\w-]*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
_DECODER = json.JSONDecoder(strict=False)  # line breaks inside a text are no reason to ask again


@dataclass(frozen=True, slots=True)
class Answer:
    """A judge's answer that could be read."""

    reason: str
    choice: Choice
    """By the order in which the answers were shown."""


def parse_answer(text: str) -> Answer | None:
    """The judgement in a judge's words; None if there is none, or if there are two that differ.

    A reasoning model's `<think>...</think>` is left aside. The object may have further keys.
    """
    text = text.rpartition("</think>")[2].strip()
    fenced = _FENCE.match(text)
    if fenced:
        text = fenced[1].strip()
    found = {}
    for value in _objects(text):
        answer = _answer(value)
        if answer is not None:
            found[answer.choice] = answer
    return next(iter(found.values())) if len(found) == 1 else None


def _objects(text: str) -> list[Any]:
    """The outermost JSON objects in a text, in order."""
    values, start = [], text.find("{")
    while start >= 0:
        try:
            value, end = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError:
            end = start + 1
        except RecursionError:  # no judgement is nested a thousand deep, and trying each brace would take long
            break
        else:
            values.append(value)
        start = text.find("{", end)
    return values


def _answer(value: Any) -> Answer | None:
    if not isinstance(value, dict):
        return None
    reason, choice = value.get("reason"), value.get("choice")
    if not isinstance(reason, str) or not isinstance(choice, str):
        return None
    known = _CHOICES.get(choice.strip().lower())
    return None if known is None else Answer(reason.strip(), known)
