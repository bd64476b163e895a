"""Metrics of generated texts, one example at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from promptcomp.evaluation.equations import same_value, value_of
from promptcomp.evaluation.labels import same_label
from promptcomp.evaluation.predictions import ROWS, Prediction
from promptcomp.evaluation.rouge import Rouge


@dataclass(slots=True)
class GeneratedTexts:
    """What one row (method or bound) answered, collected batch by batch in any order."""

    texts: dict[int, str] = field(default_factory=dict)
    """Example -> text."""
    unfinished: set[int] = field(default_factory=set)
    """Examples whose text reached the limit of new tokens before it ended."""

    def add(self, example: Sequence[int], texts: Sequence[str], unfinished: Sequence[bool]) -> None:
        """Add the answers of a batch: three sequences of one length."""
        for number, text, cut in zip(example, texts, unfinished, strict=True):
            self.texts[number] = text
            self.unfinished.discard(number)
            if cut:
                self.unfinished.add(number)


def exact_match(text: str, reference: str) -> float:
    """1 if the texts are equal but for white space (runs of it count as one blank, none at the ends), else 0."""
    return float(same_label(text, reference))


def agreement(text: str, full: str) -> float:
    """1 if a text is the positive control's text, white space inside included (the paper's exact match), else 0."""
    return float(text.strip() == full.strip())


def text_metrics(text: str, reference: str, full: str | None, rouge: Rouge) -> dict[str, float]:
    """The metrics of `records.TEXT_METRICS` of one answer.

    Args:
        text: what was generated.
        reference: the right answer.
        full: the answer of the full-prompt row, for `agreement`; None: there is none to agree with.
        rouge: the scorer.
    """
    found = {"exact_match": exact_match(text, reference), **rouge.scores(text, reference)}
    if value_of(reference) is not None:
        found["equation"] = float(same_value(text, reference))
    return found if full is None else {**found, "agreement": agreement(text, full)}


def add_texts(
    predictions: Sequence[Prediction],
    collected: Mapping[str, GeneratedTexts],
    questions: Mapping[int, tuple[str, str, str]],
    rouge: Rouge,
) -> list[Prediction]:
    """The predictions of a split with texts and their metrics.

    Args:
        predictions: of the split; those without a text in `collected` stay as they are.
        collected: row -> what was generated.
        questions: example -> instruction (the context as text), input and right answer.
        rouge: the scorer.
    """
    return [
        _with_texts(p, collected, questions[p.example], rouge) if p.example in questions else p for p in predictions
    ]


def _with_texts(
    prediction: Prediction, collected: Mapping[str, GeneratedTexts], question: tuple[str, str, str], rouge: Rouge
) -> Prediction:
    instruction, given, reference = question
    number = prediction.example
    texts = {row: collected[row].texts[number] if row in collected else None for row in ROWS}
    full = texts["full_prompt"]
    metrics = {
        row: text_metrics(text, reference, full if row != "full_prompt" else None, rouge)
        for row, text in texts.items()
        if text is not None
    }
    update = {
        "texts": texts,
        "reference": reference,
        "instruction": instruction,
        "input": given,
        "metrics": metrics,
        "unfinished": {row: number in found.unfinished for row, found in collected.items()},
    }
    return prediction.model_copy(update=update)
