"""Reading a teacher's completion: its rationale, its label, and how well that went.

`reference` mode is what google-research/distilling-step-by-step does, with its losses: a last character cut off
blindly, run-on text kept as a label, blanks for failures (and a crash on CommonsenseQA without exactly one marker,
which here is a blank with a status). `strict` mode reads what a person would and says so where it cannot; nothing is
guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from promptcomp.config import ConfigError
from promptcomp.evaluation.texts import value_of

ParseStatus = Literal[
    "ok", "repaired", "empty", "no_marker", "two_markers", "empty_label", "out_of_set", "not_an_equation"
]
"""ok: read as it stands; repaired: the label was cut off or lacked its letter and could still be read; empty: no text;
no_marker, two_markers: not exactly one end of the rationale; empty_label: nothing behind it; out_of_set: none of the
labels; not_an_equation: an arithmetic label without a value."""
STATUSES: tuple[str, ...] = get_args(ParseStatus)
ParseMode = Literal["strict", "reference"]
Style = Literal["palm", "gpt_neox"]
"""Whose completions: the original has a parser for each teacher."""
ParsedTask = Literal["cqa", "svamp", "esnli", "anli1", "asdiv"]
NLI_LABELS = ("entailment", "neutral", "contradiction")
_MIN_PREFIX = 4
_LETTER = re.compile(r"\(([a-zA-Z])\)")
_ANY_BRACKET = re.compile(r"\(.\)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a completion says."""

    rationale: str
    label: str
    status: ParseStatus


def parse(
    task: ParsedTask,
    completion: str,
    *,
    mode: ParseMode = "strict",
    style: Style = "palm",
    options: Sequence[str] = (),
) -> Parsed:
    """Read a completion.

    Args:
        task: Which demonstrations it imitates.
        completion: The teacher's text behind the prompt.
        mode: See the module docstring.
        style: Which of the original's parsers ("reference" mode).
        options: The choices of a CommonsenseQA question, in the order of their letters ("strict" mode).

    Raises:
        ConfigError: the original has no such parser.
    """
    if mode == "strict":
        return _strict(task, completion, options)
    if task == "asdiv" and style == "gpt_neox":
        raise ConfigError("the original has no parser for asdiv completions of gpt_neox; use parsing 'strict'")
    if task == "esnli":
        return _reference_esnli(completion, style)
    if task == "anli1":
        return _reference_anli(completion, style)
    if task == "cqa":
        return _reference_question(completion, style, "So the answer is", _bracketed)
    return _reference_question(completion, style, "The answer is", _expression)


# ---- strict

_MARKERS: dict[str, str] = {
    "cqa": r"[Ss]o the answer is:?",
    "svamp": r"[Tt]he answer is:?",
    "asdiv": r"[Tt]he answer is:?",
    "esnli": r"Answer:",
    "anli1": r"(?:[Ss]o the|[Tt]he) answer is:?",
}


def _strict(task: ParsedTask, completion: str, options: Sequence[str]) -> Parsed:
    next_item = r"^\s*Premise:" if task in ("esnli", "anli1") else r"^\s*Q:"
    text = re.split(next_item, completion, maxsplit=1, flags=re.MULTILINE)[0]
    return concluded(text, _MARKERS[task], lambda answer: _strict_label(task, answer, options))


def concluded(text: str, marker: str, read: Callable[[str], tuple[str, ParseStatus]]) -> Parsed:
    """A rationale and, behind each match of the regular expression `marker`, an answer, whose label `read` finds."""
    text = text.strip()
    if not text:
        return Parsed("", "", "empty")
    rationale, *answers = (part.strip() for part in re.split(marker, text))
    if not answers:
        return Parsed("", "", "no_marker")
    found = [read(answer) for answer in answers]
    if len(answers) > 1:  # two conclusions: only where they agree is there a label
        return Parsed(rationale, found[0][0] if len({label for label, _ in found}) == 1 else "", "two_markers")
    return Parsed(rationale, *found[0])


def _strict_label(task: ParsedTask, answer: str, options: Sequence[str]) -> tuple[str, ParseStatus]:
    if not answer.strip(" ."):
        return "", "empty_label"
    if task == "cqa":
        return _choice(answer, options)
    if task in ("svamp", "asdiv"):
        return _equation(answer)
    return _member(_first_line(answer), NLI_LABELS)


def _choice(answer: str, options: Sequence[str]) -> tuple[str, ParseStatus]:
    """The option of the letter; without a letter (or without options) the text."""
    letter = _LETTER.search(answer)
    text = _first_line(answer[letter.end() :] if letter else answer)
    if not options:
        return (text, "ok") if text else ("", "empty_label")
    if letter and ord(letter[1].lower()) - ord("a") < len(options):
        return options[ord(letter[1].lower()) - ord("a")], "ok"
    wanted = _normal(text)
    found = [option for option in options if _normal(option) == wanted]
    return (found[0], "repaired") if found else ("", "out_of_set")


def _member(text: str, names: Sequence[str]) -> tuple[str, ParseStatus]:
    """The label that the text is, or the only one that it is the beginning of (a completion that was cut)."""
    wanted = _normal(text)
    if wanted in names:
        return wanted, "ok"
    starts = [name for name in names if len(wanted) >= _MIN_PREFIX and name.startswith(wanted)]
    return (starts[0], "repaired") if len(starts) == 1 else ("", "out_of_set")


def _equation(answer: str) -> tuple[str, ParseStatus]:
    """The expression from the first bracket to the last, or a bare one, if it has a value."""
    line = _first_line(answer)
    brackets = _expression(line)
    text = brackets or line
    if value_of(text) is not None:
        return text, "ok" if brackets else "repaired"
    without_commas = _THOUSANDS.sub("", text)
    return (without_commas, "repaired") if value_of(without_commas) is not None else ("", "not_an_equation")


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0].strip()
    return line[:-1].strip() if line.endswith(".") else line


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .")


# ---- the original's way


def _ends(text: str, style: Style) -> str:
    return text.strip() if style == "gpt_neox" else text.rstrip()


def _two_parts(text: str, marker: str) -> tuple[str, str] | ParseStatus:
    parts = text.split(marker)
    if len(parts) == 2:
        return parts[0], parts[1]
    return "no_marker" if len(parts) == 1 else "two_markers"


def _reference_question(completion: str, style: Style, marker: str, label_in: Callable[[str], str]) -> Parsed:
    parts = _two_parts(_ends(completion.split("Q:")[0], style), marker)
    if isinstance(parts, str):
        return Parsed(" ", " ", parts)
    label = label_in(parts[1])
    return Parsed(_ends(parts[0], style), label or " ", "ok" if label else "empty_label")


def _bracketed(text: str) -> str:
    pieces = _ANY_BRACKET.split(text)
    return pieces[1].strip().removesuffix(".") if len(pieces) > 1 else ""


def _expression(text: str) -> str:
    brackets = re.search(r"\(.*\)", text)
    return brackets[0] if brackets else ""


def _reference_esnli(completion: str, style: Style) -> Parsed:
    rationale = _ends(completion.split("Answer:")[0], style)
    if "Answer: " not in completion:
        return Parsed(rationale, " ", "no_marker" if "Answer:" not in completion else "empty_label")
    label = _ends(completion.split("Answer: ")[1].split("Premise")[0], style)
    return Parsed(rationale, label, "ok" if label in NLI_LABELS else "out_of_set" if label else "empty_label")


def _reference_anli(completion: str, style: Style) -> Parsed:
    text = _ends(completion.split("Premise:")[0], style)
    markers = ("So the answer is", "The answer is") if style == "gpt_neox" else ("So the answer is",)
    tried = [_two_parts(text, marker) for marker in markers]
    parts = next((found for found in tried if not isinstance(found, str)), tried[0])
    if isinstance(parts, str):
        return Parsed("", "", parts)
    label = parts[1].lstrip()[:-1]  # whatever the last character is
    status: ParseStatus = "ok" if label in NLI_LABELS else "out_of_set" if label else "empty_label"
    return Parsed(_ends(parts[0], style), label, status)
