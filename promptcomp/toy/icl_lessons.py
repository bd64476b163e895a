"""Decoder-only pretraining on the toy world, in stages: a small LM learns to copy, then to look up, then to classify.

Trained on classification tasks alone, LMs this small stay for thousands of steps at guessing among the labels they have
seen. Repeated random words and single-word lookup make the copying circuit (an "induction head") form first;
classification in context then comes within a few hundred steps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from promptcomp.batch import pad
from promptcomp.datamodules.tasks import Row, Task
from promptcomp.toy.icl_world import ToyRule, ToySource, draw_rule, toy_tokenizer
from promptcomp.toy.lessons import Lessons, answer_loss
from promptcomp.toy.recipe import DocumentKind, Skill, Stage, StagedCurriculum
from promptcomp.toy.toy_sections import Group, ToyConfig
from promptcomp.toy.words import ARROW, CATEGORIES, NEWLINE

_GROUPS: tuple[Group, ...] = ("nouns", "nouns", "adjectives")  # nouns have twice as many categories
_ALL_WORDS: tuple[str, ...] = tuple(word for words in CATEGORIES.values() for word in words)


@dataclass(frozen=True, slots=True)
class Document:
    """Labelled rows in reading order. `knowable[i]`: the label of row i follows from the rows before it."""

    rows: tuple[Row, ...]
    knowable: tuple[bool, ...]


def key_of(kind: DocumentKind, row: Row) -> str:
    """What must have been seen before, so that the row's label can be known."""
    return row.input if kind == "lookup" else row.output


def draw_document(
    kind: DocumentKind, num_rows: int, num_classes: int, rng: random.Random, two_slot_share: float
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
    """
    # "pretrain" has no pair of a dev, test or test_hard set
    rule = draw_rule(rng, "pretrain", kind if kind in ("lookup", "natural") else "classification", _GROUPS, num_classes)
    if kind == "words":
        bare = tuple(CATEGORIES[c] if isinstance(c, str) else c for c in rule.classes)
        rule = ToyRule(bare, rule.labels, ())
    rows = list(rule.rows(num_rows, rng, two_slot_share, frozenset()))
    if kind == "definition":
        names = [Row(str(c), label, rule.labels) for c, label in zip(rule.classes, rule.labels, strict=True)]
        rng.shuffle(names)
        rows = names + rows[len(names) :]
    keys = [key_of(kind, row) for row in rows]
    return Document(tuple(rows), tuple(kind == "natural" or key in keys[:i] for i, key in enumerate(keys)))


class ToyLessons(Lessons[Stage]):
    """Batches of the curriculum for a decoder-only LM."""

    def __init__(self, config: StagedCurriculum, batch_size: int, seed: int) -> None:
        super().__init__(config.stages, batch_size, f"curriculum/{seed}")
        self.config = config
        self.tokenizer = toy_tokenizer()
        self._skill_seed = f"skills/{seed}"

    def batch_loss(self, model: PreTrainedModel) -> Tensor:
        """Loss on a new batch (scalar): answers that can be known + `other_token_weight` times all other tokens."""
        rows = self.draw_batch()
        ids, mask = pad([row[0] for row in rows], 0, "right")
        answers, _ = pad([row[1] for row in rows], 0, "right")
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # [B, T, V]
        return answer_loss(logits, ids, answers.bool(), 0, self.config.other_token_weight)

    def skills(self, model: PreTrainedModel) -> dict[str, float]:
        """Accuracy on the last of 16 rows of 4-class documents, by kind; leaves a stage whose skills are there."""
        share = self.config.two_slot_share
        found: dict[str, float] = {}
        for kind in get_args(Skill):
            rng = random.Random(f"{self._skill_seed}/{kind}/pretrain/4/16")
            documents = [draw_document(kind, 16, 4, rng, share) for _ in range(self.config.skill_documents)]
            found[kind] = self.last_row_accuracy(model, [document.rows for document in documents])
        until = self.stage.until
        if not self.finished and until and all(found[kind] > value for kind, value in until.items()):
            self.next_stage()
        return found

    def report(self, model: PreTrainedModel) -> dict[str, Any]:
        """Accuracy on classification tasks by split, number of classes and number of demonstrations read before.

        Every task gives one document of 24 demonstrations and one query, so a cell's standard error is that of
        `documents` independent answers.
        """
        count = self.config.report_documents
        cells: dict[str, Any] = {}
        for split in ToyConfig.splits:
            for classes in (2, 3, 4):
                config = ToyConfig(
                    min_classes=classes,
                    max_classes=classes,
                    train_max_classes=classes,
                    num_dev_tasks=count,
                    num_test_tasks=count,
                    num_queries=1,
                    two_slot_share=self.config.two_slot_share,
                )
                accuracy = self.accuracy_by_demonstrations(model, ToySource(config).tasks(split)[:count])
                error = math.sqrt(accuracy[24] * (1 - accuracy[24]) / count)
                cells[f"{split}/{classes}"] = {
                    "documents": count,
                    "accuracy_by_demonstrations": {str(n): round(value, 4) for n, value in accuracy.items()},
                    "standard_error_at_24": round(error, 4),
                }
        return cells

    def accuracy_by_demonstrations(self, model: PreTrainedModel, tasks: Sequence[Task]) -> dict[int, float]:
        """Share of right answers by the number of demonstrations read before, up to 24."""
        found = self.row_accuracy(model, [(*task.demonstrations, *task.queries) for task in tasks])
        return {shown: found[shown] for shown in (0, 1, 2, 4, 8, 16, 24)}

    def row_accuracy(self, model: PreTrainedModel, documents: Sequence[Sequence[Row]]) -> list[float]:
        """Share of right answers among the row's options at each row of documents of equal length [rows]."""
        correct = torch.zeros(len(documents[0]))
        for start in range(0, len(documents), self._batch_size):
            part = documents[start : start + self._batch_size]
            ids, _ = pad([[1, *self._row_ids(rows)] for rows in part], 0, "right")
            logits = model(input_ids=ids, use_cache=False).logits
            for i, rows in enumerate(part):
                options = [self._ids[label] for label in rows[0].options]
                arrows = (ids[i] == self._ids[ARROW]).nonzero().flatten()
                answers = logits[i, arrows][:, options].argmax(-1)
                gold = torch.tensor([row.options.index(row.output) for row in rows])
                correct += (answers == gold).float()
        return (correct / len(documents)).tolist()

    def last_row_accuracy(self, model: PreTrainedModel, documents: Sequence[Sequence[Row]]) -> float:
        """Share of right answers at the last row of documents of equal length."""
        return self.row_accuracy(model, documents)[-1]

    def draw_batch(self, draw: Callable[[DocumentKind, int, tuple[int, int]], Any] | None = None) -> list[Any]:
        """What `draw` (None: `_draw`) gives, for each row of a new batch of the current stage."""
        draw = draw or self._draw
        stage = self.stage
        kinds, weights = list(stage.mix), list(stage.mix.values())
        num_rows = self._rng.randint(*stage.rows)
        drawn = self._rng.choices(kinds, weights, k=1 if stage.one_kind_per_batch else self._batch_size)
        return [draw(drawn[i % len(drawn)], num_rows, stage.classes) for i in range(self._batch_size)]

    def _draw(self, kind: DocumentKind, num_rows: int, classes: tuple[int, int]) -> tuple[list[int], Any]:
        """Token ids with BOS, and 1 where a token is an answer that can be known."""
        if kind == "repetition":
            return self._draw_repetition(4 * num_rows)
        num_classes = self._rng.randint(*classes)
        document = draw_document(kind, num_rows, num_classes, self._rng, self.config.two_slot_share)
        answers: list[int] = [0]
        for row, knowable in zip(document.rows, document.knowable, strict=True):
            answers += [0] * (len(row.input.split()) + 1) + [int(knowable), 0]
        return [1, *self._row_ids(document.rows)], answers

    def _draw_repetition(self, length: int) -> tuple[list[int], list[int]]:
        """A random segment of 5-14 words repeated up to `length` words."""
        period = self._rng.randint(5, 14)
        segment = [self._ids[self._rng.choice(_ALL_WORDS)] for _ in range(period)]
        ids = (segment * (length // period + 1))[:length]
        return [1, *ids], [0] * (1 + period) + [1] * (len(ids) - period)

    def _row_ids(self, rows: Sequence[Row]) -> list[int]:
        """Token ids of labelled rows."""
        words = [[*row.input.split(), ARROW, row.output, NEWLINE] for row in rows]
        return [self._ids[word] for row in words for word in row]
