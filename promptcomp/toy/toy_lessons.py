"""Decoder-only pretraining on the toy world: rendering, loss, skills and the walk through the stages."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from promptcomp.batch import pad
from promptcomp.config import Config
from promptcomp.datamodules.tasks import Row
from promptcomp.toy.curriculum import DocumentKind, draw_document, repeated_words
from promptcomp.toy.icl_world import ToySource, toy_tokenizer
from promptcomp.toy.stages import StagedLessons
from promptcomp.toy.toy_sections import ToyConfig
from promptcomp.toy.words import ARROW, NEWLINE


class Stage(Config):
    """One stage of the curriculum."""

    name: str
    steps: int = Field(ge=1)
    """Steps at most."""
    mix: dict[DocumentKind, float]
    """Weights of the document kinds."""
    rows: tuple[int, int]
    """Fewest and most labelled rows of a batch's documents."""
    classes: tuple[int, int]
    """Fewest and most classes of a task."""
    one_kind_per_batch: bool = False
    """True: a batch holds documents of one kind (repetition has lengths of its own)."""
    until: dict[DocumentKind, float] = Field(default_factory=dict)
    """Leave the stage early once the skills (see `ToyLessons.skills`) are above these values."""
    lr_scale: tuple[float, float] = (1.0, 1.0)
    """Learning rate at the stage's start and end, relative to `optim.lr`; linear between."""


class StagedCurriculum(Config):
    """What the curricula of both model families have in common."""

    stages: tuple[Stage, ...] = Field(min_length=1)
    two_slot_share: float = Field(default=0.3, ge=0, le=1)
    other_token_weight: float = 0.1
    """Weight of the mean loss over tokens that cannot be known (words, first labels); known answers have 1."""
    skill_documents: int = Field(default=64, ge=1)
    """Documents behind each skill."""
    report_documents: int = Field(default=512, ge=1)
    """Documents behind each cell of the final report."""


class ToyCurriculum(StagedCurriculum):
    """Pretraining on the toy world."""

    name: Literal["toy_icl"] = "toy_icl"


class ToyLessons(StagedLessons[Stage]):
    """Batches of the curriculum for a decoder-only LM."""

    def __init__(self, config: StagedCurriculum, batch_size: int, seed: int) -> None:
        super().__init__(config.stages)
        self.config = config
        self.tokenizer: PreTrainedTokenizerFast = toy_tokenizer()
        self._batch_size = batch_size
        self._rng = random.Random(f"curriculum/{seed}")
        self._skill_seed = f"skills/{seed}"
        self._ids = self.tokenizer.get_vocab()

    def loss(self, model: PreTrainedModel) -> Tensor:
        """Loss on a new batch (scalar): answers that can be known + `other_token_weight` times all other tokens."""
        ids, answers = self._batch(self.stage)
        mask = ids != self.tokenizer.pad_token_id
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]  # [B, T - 1, V]
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        known, other = answers[:, 1:], mask[:, 1:] & ~answers[:, 1:]
        self.count_step()
        return losses[known].mean() + self.config.other_token_weight * losses[other].mean()

    @torch.no_grad()
    def skills(self, model: PreTrainedModel) -> dict[str, float]:
        """Accuracy on the last of 16 rows of 4-class documents, by kind; leaves a stage whose skills are there."""
        kinds: tuple[DocumentKind, ...] = ("lookup", "words", "classification")
        share = self.config.two_slot_share
        found: dict[str, float] = {}
        for kind in kinds:
            rng = random.Random(f"{self._skill_seed}/{kind}/pretrain/4/16")
            documents = [draw_document(kind, 16, 4, rng, share) for _ in range(self.config.skill_documents)]
            found[kind] = self.last_row_accuracy(model, [document.rows for document in documents])
        if not self.finished:
            until = self.stage.until
            if until and all(found[kind] > value for kind, value in until.items()):
                self.next_stage()
        return found

    @torch.no_grad()
    def report(self, model: PreTrainedModel) -> dict[str, Any]:
        """Accuracy on classification tasks by split, number of classes and number of demonstrations read before.

        Every task gives one document of 24 demonstrations and one query, so a cell's standard error is that of
        `documents` independent answers.
        """
        count, share = self.config.report_documents, self.config.two_slot_share
        shown = (0, 1, 2, 4, 8, 16, 24)
        cells: dict[str, Any] = {}
        for split in ("train", "dev", "test", "test_hard"):
            for classes in (2, 3, 4):
                config = ToyConfig(
                    min_classes=classes,
                    max_classes=classes,
                    train_max_classes=classes,
                    num_queries=1,
                    two_slot_share=share,
                )
                source = ToySource(config.model_copy(update={"num_dev_tasks": count, "num_test_tasks": count}))
                documents = [(*t.demonstrations, *t.queries) for t in source.tasks(split)[:count]]
                accuracy = self.row_accuracy(model, documents)
                error = math.sqrt(accuracy[24] * (1 - accuracy[24]) / count)
                cells[f"{split}/{classes}"] = {
                    "documents": count,
                    "accuracy_by_demonstrations": {str(n): round(accuracy[n], 4) for n in shown},
                    "standard_error_at_24": round(error, 4),
                }
        return cells

    @torch.no_grad()
    def row_accuracy(self, model: PreTrainedModel, documents: Sequence[Sequence[Row]]) -> list[float]:
        """Share of right answers among the row's options at each row of documents of equal length [rows]."""
        model.eval()
        correct = torch.zeros(len(documents[0]))
        for start in range(0, len(documents), self._batch_size):
            part = documents[start : start + self._batch_size]
            ids, _ = pad([self._encode(rows, (True,) * len(rows))[0] for rows in part], 0, "right")
            logits = model(input_ids=ids, use_cache=False).logits
            for i, rows in enumerate(part):
                options = [self._ids[label] for label in rows[0].options]
                arrows = (ids[i] == self._ids[ARROW]).nonzero().flatten()
                answers = logits[i, arrows][:, options].argmax(-1)
                gold = torch.tensor([row.options.index(row.output) for row in rows])
                correct += (answers == gold).float()
        model.train()
        return (correct / len(documents)).tolist()

    def last_row_accuracy(self, model: PreTrainedModel, documents: Sequence[Sequence[Row]]) -> float:
        """Share of right answers at the last row of documents of equal length."""
        return self.row_accuracy(model, documents)[-1]

    def _batch(self, stage: Stage) -> tuple[Tensor, Tensor]:
        kinds, weights = list(stage.mix), list(stage.mix.values())
        num_rows = self._rng.randint(*stage.rows)
        drawn = self._rng.choices(kinds, weights, k=1 if stage.one_kind_per_batch else self._batch_size)
        rows = [self._draw(drawn[i % len(drawn)], num_rows, stage.classes) for i in range(self._batch_size)]
        ids, _ = pad([row[0] for row in rows], 0, "right")
        answers, _ = pad([row[1] for row in rows], 0, "right")
        return ids, answers.bool()

    def _draw(self, kind: DocumentKind, num_rows: int, classes: tuple[int, int]) -> tuple[list[int], list[int]]:
        if kind == "repetition":
            words, period = repeated_words(4 * num_rows, self._rng)
            ids = [self._ids[word] for word in words]
            return [1, *ids], [0] * (1 + period) + [1] * (len(ids) - period)
        num_classes = self._rng.randint(*classes)
        document = draw_document(kind, num_rows, num_classes, self._rng, self.config.two_slot_share)
        return self._encode(document.rows, document.knowable)

    def _encode(self, rows: Sequence[Row], knowable: Sequence[bool]) -> tuple[list[int], list[int]]:
        """Token ids with BOS, and 1 where a token is an answer that can be known."""
        ids: list[int] = [1]
        answers: list[int] = [0]
        for row, is_knowable in zip(rows, knowable, strict=True):
            words: Sequence[int] = [self._ids[word] for word in row.input.split()]
            ids += [*words, self._ids[ARROW], self._ids[row.output], self._ids[NEWLINE]]
            answers += [0] * (len(words) + 1) + [int(is_knowable), 0]
        return ids, answers
