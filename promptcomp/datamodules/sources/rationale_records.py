"""One record of a file or table as a row with a rationale: by a known format or by a map of columns.

A format knows the fields of a record of a known data set, how the input is written (as google-research/distilling-
step-by-step does), what the label is, and where a human rationale stands.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from promptcomp.config import Config
from promptcomp.datamodules.sources.rationale_parsing import NLI_LABELS, STATUSES
from promptcomp.datamodules.sources.records import Asked, Named, name_in, text_problems, whole_number
from promptcomp.datamodules.sources.rows import option_problems
from promptcomp.datamodules.tasks import RationaleRow
from promptcomp.evaluation.texts import same_label

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


def text_of(record: Mapping[str, Any], name: str) -> str:
    """The text in a field.

    Raises:
        BadRow: it is missing, or there is no text in it.
    """
    if problems := text_problems(record, (name,)):
        raise BadRow(problems[0])
    return str(record[name])


def _optional(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    return value if isinstance(value, str) else ""


def _cqa(record: Mapping[str, Any]) -> Example:
    question, answer = text_of(record, "question"), text_of(record, "answer")
    choices = record.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise BadRow("'choices' is not a list of texts")
    if len(choices) > len(string.ascii_lowercase):
        raise BadRow(
            f"'choices' has {len(choices)} texts, and there are {len(string.ascii_lowercase)} letters for them"
        )
    same = [answer] if answer in choices else [choice for choice in choices if same_label(answer, choice)]
    if not same:
        raise BadRow(f"'answer' {answer!r} is not among the choices {choices}")
    lines = [f"({chr(ord('a') + i)}) {choice}" for i, choice in enumerate(choices)]
    text = "\n".join([question, "Answer Choices:", *lines])
    return Example(text, same[0], tuple(choices), _optional(record, "abstractive_explanation"))


def _svamp(record: Mapping[str, Any]) -> Example:
    if record.get("input") is not None:  # null where files of both kinds became one table
        return Example(text_of(record, "input"), text_of(record, "label"))
    return Example(f"{text_of(record, 'Body')}\n{text_of(record, 'Question')}", text_of(record, "Equation"))


def _asdiv(record: Mapping[str, Any]) -> Example:
    if record.get("input") is not None:
        return Example(text_of(record, "input"), text_of(record, "label"))
    answer = text_of(record, "Answer").split()
    if not answer:
        raise BadRow("'Answer' is empty")
    text = f"{text_of(record, 'Body')}\n{text_of(record, 'Question')}"
    return Example(text, answer[0], rationale=_optional(record, "Formula"))


def _nli(explanation: str) -> Callable[[Mapping[str, Any]], Example]:
    def read(record: Mapping[str, Any]) -> Example:
        label = record.get("label")
        number = None if isinstance(label, bool) else _index(label)
        if number is not None and 0 <= number < len(NLI_LABELS):
            label = NLI_LABELS[number]
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


HUMAN = "human"
ID_FIELDS = ("uid", "ID")
"""Names of the rows in the known formats."""


class RationaleColumns(Config):
    """Names of the columns of a table; those of the teacher may be missing in it."""

    id: str | None = "id"
    """Names the row; null or absent: its number does."""
    input: str = "input"
    """Column with the input, or a template of several: "{premise} => {hypothesis}"."""
    label: str = "label"
    """Column with the label."""
    label_names: tuple[str, ...] = ()
    """Names of labels that are numbers, from 0 on (in CSV and TSV too)."""
    options: str | None = "options"
    """Column with the list of possible labels."""
    llm_label: str | None = "llm_label"
    """Column with the label that the teacher gave."""
    llm_rationale: str | None = "llm_rationale"
    """Column with the rationale that the teacher (or a person) wrote."""
    parse_status: str | None = "parse_status"
    """Column that says how the teacher's text was read."""
    teacher: str | None = "teacher"
    """Column with the teacher's name."""


class RecordReader:
    """Makes rows of records."""

    def __init__(self, columns: RationaleColumns, format_name: FormatName | None, human: bool) -> None:
        """
        Args:
            columns: Names of the columns, where no format is given; in any case those of the teacher.
            format_name: A known format.
            human: Take the format's human rationale where the record has none of a teacher.
        """
        self.columns, self._human = columns, human
        self._format = FORMATS[format_name] if format_name is not None else None
        self.names = columns.label_names or (NLI_LABELS if format_name in ("esnli", "anli1") else ())
        """Of labels that are numbers."""

    def asked(self) -> Asked:
        """The columns for a reader; each row is looked at by itself, as formats may write theirs in several ways."""
        columns = self.columns
        names = [columns.id, columns.llm_label, columns.llm_rationale, columns.parse_status, columns.teacher]
        if self._format is not None:
            return Asked(optional=(*(name for name in names if name), *ID_FIELDS, *self._format.fields))
        fields = [columns.input] if "{" not in columns.input else _fields(columns.input)
        names += [columns.label, columns.options]
        lists = (columns.options,) if columns.options else ()
        numbers = (columns.label,) if columns.label_names else ()
        return Asked(tuple(fields), tuple(name for name in names if name), lists=lists, numbers=numbers)

    def named(self) -> Named:
        """The optional columns to which a user has given a name; a format has its own label and options."""
        given = () if self._format is not None else ("label", "options")
        return Named(self.columns, "id", "llm_label", "llm_rationale", "parse_status", "teacher", *given)

    def row(self, record: Mapping[str, Any], number: int, split: str) -> RationaleRow:
        """The row in a record.

        Raises:
            BadRow: the record is not of the format.
        """
        example = self._format.read(record) if self._format is not None else self._example(record)
        if not example.input.strip():
            raise BadRow("the input is empty")
        columns = self.columns
        given = record.get(columns.llm_label) if columns.llm_label else None
        label = label_of_number(given, self.names) if is_number(given) else _text(record, columns.llm_label)
        rationale = _text(record, columns.llm_rationale)
        teacher, status = _text(record, columns.teacher), _text(record, columns.parse_status) or "ok"
        if status not in STATUSES:
            raise BadRow(f"{columns.parse_status!r} {status!r} is none of {', '.join(STATUSES)}")
        if self._human and not rationale and example.rationale:
            rationale, label, teacher = example.rationale, label or example.label, HUMAN
        return RationaleRow(
            self.id_of(record, number, split),
            example.input,
            example.label,
            label,
            rationale,
            status,
            teacher,
            example.options,
        )

    def id_of(self, record: Mapping[str, Any], number: int, split: str) -> str:
        """What names a record.

        Raises:
            BadRow: its name is neither text nor a whole number.
        """
        names = (self.columns.id,) if self._format is None else (self.columns.id, *ID_FIELDS)
        for name in (name for name in names if name is not None):
            try:
                if (found := name_in(record.get(name))) is not None:
                    return found
            except ValueError:
                raise BadRow(f"{name!r} is {type(record[name]).__name__}, expected text or a whole number") from None
        return f"{split}-{number}"

    def _example(self, record: Mapping[str, Any]) -> Example:
        columns = self.columns
        if "{" in columns.input:
            try:
                text = _Filled().vformat(columns.input, (), record)
            except (KeyError, ValueError, IndexError, AttributeError, TypeError, OverflowError, MemoryError) as error:
                raise BadRow(f"columns.input {columns.input!r} cannot be filled in ({error})") from None
        else:
            text = text_of(record, columns.input)
        options = record.get(columns.options) if columns.options else None
        if options is not None and (not isinstance(options, list) or not all(isinstance(o, str) for o in options)):
            raise BadRow(f"{columns.options!r} is not a list of texts")
        if options and (problems := option_problems(options, columns.options or "")):
            raise BadRow(problems[0])
        label = self._label(record.get(columns.label))
        if options and label and label not in options:
            same = [option for option in options if same_label(option, label)]
            if not same:
                raise BadRow(f"{columns.label!r} {label!r} is not among the options {options}")
            label = same[0]
        return Example(text, label, tuple(options or columns.label_names))

    def _label(self, value: Any) -> str:
        names = self.columns.label_names
        if names and value not in names and (number := _index(value)) is not None:
            if not 0 <= number < len(names):
                raise BadRow(f"{self.columns.label!r} {number} has no name in columns.label_names")
            return names[number]
        if value is None:
            return ""
        if not isinstance(value, str) and not is_number(value):
            raise BadRow(f"{self.columns.label!r} is {type(value).__name__}, expected text")
        if names and value not in names:
            raise BadRow(f"{self.columns.label!r} {value!r} is none of columns.label_names")
        return label_of_number(value, ()) if is_number(value) else str(value)


def _index(value: Any) -> int | None:
    """The number that a label is, in tables of text too; None: it is none."""
    try:
        return int(value) if isinstance(value, bool) else whole_number(value)
    except ValueError:
        return None


class _Filled(string.Formatter):
    """Fills a template with texts and finite numbers, and nothing else ("None" is no text of a row)."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The value of a field.

        Raises:
            ValueError: it is neither text nor a finite number.
        """
        value, first = super().get_field(field_name, args, kwargs)
        if not isinstance(value, str | int | float) or not _is_finite(value):
            raise ValueError(f"{field_name!r} is {type(value).__name__}, expected text or a finite number")
        return value, first


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of JSON is a finite number (true and false are none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)


def label_of_number(value: float, names: Sequence[str]) -> str:
    """The label that a number is: the name that it has, or itself as text (1.0 is 1, as in a column with gaps)."""
    if (number := _index(value)) is None:
        return str(value)
    return names[number] if 0 <= number < len(names) else str(number)


def _is_finite(value: str | int | float) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _fields(template: str) -> list[str]:
    """The columns that a template names."""
    try:
        parts = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    except ValueError:  # said of each row
        return []
    return [re.split(r"[.\[]", name)[0] for name in parts]


def _text(record: Mapping[str, Any], name: str | None) -> str:
    if problems := text_problems(record, (), (name,)):
        raise BadRow(problems[0])
    return (record.get(name) if name else None) or ""
