"""How the raw rows of known data sets become examples: inputs and labels as google-research/distilling-step-by-step.

A format knows the fields of a record, how the input is written, what the label is, and where a human rationale stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from promptcomp.datamodules.sources.rationale_parsing import NLI_LABELS

FormatName = Literal["cqa", "svamp", "esnli", "anli1", "asdiv", "gsm8k"]
Metric = Literal["exact_match", "equation"]
SEGMENT = "\x1f"
"""Stands in a row's input where the tokenizer's end-of-sequence token belongs (premise and hypothesis)."""
GSM8K_MARKER = "####"
_CALCULATOR = re.compile(r"<<[^<>]*>>")


class BadRow(ValueError):
    """A record that is not of its format; the message says why."""


@dataclass(frozen=True, slots=True)
class Example:
    """The data set's own part of a row."""

    input: str
    label: str
    options: tuple[str, ...] = ()
    rationale: str = ""
    """What a person wrote; empty where there is nothing."""


@dataclass(frozen=True, slots=True)
class Format:
    """One data set's way of writing a record."""

    read: Callable[[Mapping[str, Any]], Example]
    """
    Raises:
        BadRow: a field is missing or of the wrong kind.
    """
    metric: Metric
    fields: tuple[str, ...]
    """What it reads of a record."""


def text_of(record: Mapping[str, Any], *names: str) -> str:
    """The text of the first of these fields that the record has.

    Raises:
        BadRow: it has none of them, or there is no text in it.
    """
    for name in names:
        value = record.get(name)
        if isinstance(value, str):
            return value
        if value is not None:
            raise BadRow(f"{name!r} is {type(value).__name__}, expected text")
    raise BadRow(f"{' or '.join(map(repr, names))} is missing")


def _optional(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    return value if isinstance(value, str) else ""


def _cqa(record: Mapping[str, Any]) -> Example:
    question, answer = text_of(record, "question"), text_of(record, "answer")
    choices = record.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise BadRow("'choices' is not a list of texts")
    if answer not in choices:
        raise BadRow(f"'answer' {answer!r} is not among the choices {choices}")
    lines = [f"({chr(ord('a') + i)}) {choice}" for i, choice in enumerate(choices)]
    text = "\n".join([question, "Answer Choices:", *lines])
    return Example(text, answer, tuple(choices), _optional(record, "abstractive_explanation"))


def _svamp(record: Mapping[str, Any]) -> Example:
    if "input" in record:
        return Example(text_of(record, "input"), text_of(record, "label"))
    return Example(f"{text_of(record, 'Body')}\n{text_of(record, 'Question')}", text_of(record, "Equation"))


def _asdiv(record: Mapping[str, Any]) -> Example:
    if "input" in record:
        return Example(text_of(record, "input"), text_of(record, "label"))
    answer = text_of(record, "Answer").split()
    if not answer:
        raise BadRow("'Answer' is empty")
    text = f"{text_of(record, 'Body')}\n{text_of(record, 'Question')}"
    return Example(text, answer[0], rationale=_optional(record, "Formula"))


def _nli(explanation: str) -> Callable[[Mapping[str, Any]], Example]:
    def read(record: Mapping[str, Any]) -> Example:
        label = record.get("label")
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(NLI_LABELS):
            label = NLI_LABELS[label]
        if label not in NLI_LABELS:
            raise BadRow(f"'label' {label!r} is none of {', '.join(NLI_LABELS)} (or 0, 1, 2)")
        text = f"{text_of(record, 'premise')}{SEGMENT}{text_of(record, 'hypothesis')}"
        return Example(text, label, NLI_LABELS, _optional(record, explanation))

    return read


def _gsm8k(record: Mapping[str, Any]) -> Example:
    rationale, marker, label = text_of(record, "answer").rpartition(GSM8K_MARKER)
    if not marker or not label.strip():
        raise BadRow(f"'answer' has no {GSM8K_MARKER!r} with a number behind it")
    reasons = _CALCULATOR.sub("", rationale).strip()
    return Example(text_of(record, "question"), label.strip().replace(",", ""), rationale=reasons)


FORMATS: dict[str, Format] = {
    "cqa": Format(_cqa, "exact_match", ("question", "answer", "choices", "abstractive_explanation")),
    "svamp": Format(_svamp, "equation", ("input", "label", "Body", "Question", "Equation")),
    "esnli": Format(_nli("explanation_1"), "exact_match", ("premise", "hypothesis", "label", "explanation_1")),
    "anli1": Format(_nli("reason"), "exact_match", ("premise", "hypothesis", "label", "reason")),
    "asdiv": Format(_asdiv, "equation", ("input", "label", "Body", "Question", "Answer", "Formula")),
    "gsm8k": Format(_gsm8k, "equation", ("question", "answer")),
}
"""Formats by name."""
