"""From what a teacher wrote to a rationale and a label; of several answers the majority's (self-consistency).

Self-consistency: Wang et al. 2023, arXiv 2203.11171; the rationale kept is the first one of the majority.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from promptcomp.chat.replies import cut_at
from promptcomp.datamodules.rationale.row_selection import agree
from promptcomp.datamodules.sources.rationale_parsing import Parsed, ParseStatus, parse
from promptcomp.datamodules.tasks import RationaleRow
from promptcomp.evaluation.texts import value_of
from promptcomp.rationales.template import PromptTemplate


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a teacher's answers to one example come to."""

    parsed: Parsed
    votes: int
    """Answers with this label."""
    answers: int
    """All answers."""


def read(template: PromptTemplate, text: str, row: RationaleRow) -> Parsed:
    """One answer. What a reasoning model thought before it (`<think>`) is left aside.

    Args:
        template: how the teacher was asked.
        text: the whole answer.
        row: the example; its options are the labels that count.
    """
    text = cut_at(text.rpartition("</think>")[2], template.stop)
    if template.parse is not None:
        return parse(template.parse, text, options=row.options)
    assert template.marker is not None
    return _by_marker(text.strip(), template.marker, row.options, template.equation)


def _by_marker(text: str, marker: str, options: Sequence[str], equation: bool) -> Parsed:
    if not text:
        return Parsed("", "", "empty")
    rationale, *answers = (part.strip() for part in text.split(marker.strip()))
    if not answers:
        return Parsed("", "", "no_marker")
    found = [_label(answer, options, equation) for answer in answers]
    if len(answers) > 1:  # two conclusions: only where they agree is there a label
        return Parsed(rationale, found[0][0] if len({label for label, _ in found}) == 1 else "", "two_markers")
    return Parsed(rationale, *found[0])


def _label(answer: str, options: Sequence[str], equation: bool) -> tuple[str, ParseStatus]:
    line = answer.lstrip(": ").partition("\n")[0].strip().removesuffix(".").strip()
    if not line:
        return "", "empty_label"
    if equation:
        plain = line.replace(",", "").replace("$", "").removesuffix("%").strip()
        return (
            (plain, "ok" if plain == line else "repaired") if value_of(plain) is not None else ("", "not_an_equation")
        )
    if not options:
        return line, "ok"
    if line in options:
        return line, "ok"
    near = [option for option in options if agree(option, line, "exact_match")]
    return (near[0], "repaired") if near else ("", "out_of_set")


def majority(answers: Sequence[Parsed], metric: str) -> Verdict:
    """The label that most answers give, with the first of their rationales; of two as frequent the earlier.

    Args:
        answers: at least one.
        metric: how labels are compared: "equation" (by value) or as text.
    """
    groups: list[list[Parsed]] = []
    for answer in answers:
        if not answer.label.strip():
            continue
        own = next((group for group in groups if agree(group[0].label, answer.label, metric)), None)
        if own is None:
            groups.append([answer])
        else:
            own.append(answer)
    if not groups:
        return Verdict(answers[0], 0, len(answers))
    best = max(groups, key=len)  # the first of equals
    return Verdict(next((a for a in best if a.rationale), best[0]), len(best), len(answers))
