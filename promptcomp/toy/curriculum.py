"""Pretraining text of the toy world, in stages: a small LM learns to copy, then to look up, then to classify.

Trained on classification tasks alone, LMs this small stay for thousands of steps at guessing among the labels they have
seen. Repeated random words and single-word lookup make the copying circuit (an "induction head") form first;
classification in context then comes within a few hundred steps.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from promptcomp.datamodules.tasks import Row
from promptcomp.toy.icl_world import ToyRule, draw_rule
from promptcomp.toy.toy_sections import Group
from promptcomp.toy.words import CATEGORIES

DocumentKind = Literal["repetition", "lookup", "natural", "words", "classification", "definition"]

_GROUPS: tuple[Group, ...] = ("nouns", "nouns", "adjectives")  # nouns have twice as many categories
_ALL_WORDS: tuple[str, ...] = tuple(word for words in CATEGORIES.values() for word in words)


@dataclass(frozen=True, slots=True)
class Document:
    """Labelled rows in reading order. `knowable[i]`: the label of row i follows from the rows before it."""

    rows: tuple[Row, ...]
    knowable: tuple[bool, ...]


def repeated_words(length: int, rng: random.Random) -> tuple[list[str], int]:
    """A random segment of 5-14 words repeated up to `length` words; also the number of words in one copy."""
    period = rng.randint(5, 14)
    segment = [rng.choice(_ALL_WORDS) for _ in range(period)]
    return (segment * (length // period + 1))[:length], period


def draw_document(
    kind: DocumentKind,
    num_rows: int,
    num_classes: int,
    rng: random.Random,
    two_slot_share: float,
    split: str = "pretrain",
) -> Document:
    """One document of labelled rows.

    Args:
        kind: `lookup`: single words have labels; `natural`: the label is the category's name; `words`: categories have
            random labels and sentences are the bare word; `classification`: the tasks that are evaluated later;
            `definition`: the same with "category => label" lines in front.
        num_rows: Labelled rows of the document.
        num_classes: Classes of its task (fewer where a group has no set so large).
        rng: Source of all choices.
        two_slot_share: Share of sentences with a distractor.
        split: Whose class sets are used ("pretrain" has no pair of a dev, test or test_hard set).
    """
    form: Literal["classification", "natural", "lookup"] = (
        "lookup" if kind == "lookup" else "natural" if kind == "natural" else "classification"
    )
    rule = draw_rule(rng, split, form, _GROUPS, num_classes)
    if kind == "words":
        bare = tuple(CATEGORIES[c] if isinstance(c, str) else c for c in rule.classes)
        rule = ToyRule(rule.form, bare, rule.labels, ())
    rows = list(rule.rows(num_rows, rng, two_slot_share, frozenset()))
    if kind == "definition":
        names = [Row(str(c), label, rule.labels) for c, label in zip(rule.classes, rule.labels, strict=True)]
        rng.shuffle(names)
        rows = names + rows[len(names) :]
    seen: set[str] = set()
    knowable = []
    for row in rows:
        key = row.input if kind == "lookup" else row.output
        knowable.append(kind == "natural" or key in seen)
        seen.add(key)
    return Document(tuple(rows), tuple(knowable))
