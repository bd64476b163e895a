"""Encoder-decoder pretraining on the toy world: the encoder reads demonstrations, the decoder asks and answers.

Layout `query_in_decoder`: the encoder reads "x1 => y1 \\n x2 => y2 \\n ..." and the decoder `<pad> x =>`, after which
it predicts `y \\n <eos>`. Several queries share an encoder pass: they stand in one decoder row and a block mask keeps
each to itself, so a row gives what separate rows would give (T5's position biases depend on distances alone).

Curriculum as for the decoder-only LM. `repetition` is a random segment of distinct words in the encoder of which the
decoder continues pieces: every word but a piece's first is known. In `lookup` the answer is asked one token early as
well, after the word itself, where a model that can copy already looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from promptcomp.batch import pad
from promptcomp.datamodules.tasks import Row
from promptcomp.toy.curriculum import DocumentKind, draw_document
from promptcomp.toy.icl_world import ToySource
from promptcomp.toy.toy_lessons import Stage, StagedCurriculum, ToyLessons
from promptcomp.toy.toy_sections import ToyConfig
from promptcomp.toy.words import ARROW, CATEGORIES, LABELS, NEWLINE

_IGNORE = -100
_COPY_PIECES, _COPY_LENGTH = 4, 9


class ToySeq2SeqCurriculum(StagedCurriculum):
    """Pretraining of an encoder-decoder LM on the toy world; a stage's `rows` are rows in the encoder."""

    name: Literal["toy_icl_seq2seq"] = "toy_icl_seq2seq"
    num_queries: int = Field(default=8, ge=1)
    """Queries asked about each encoder pass."""


@dataclass(slots=True)
class _Asked:
    """One decoder row: pieces, each with what it should say. `known`, `other`: targets or -100."""

    ids: list[int] = field(default_factory=list)
    piece: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    other: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], known: Sequence[int], other: Sequence[int]) -> None:
        number = self.piece[-1] + 1 if self.piece else 0
        self.ids += ids
        self.piece += [number] * len(ids)
        self.known += known
        self.other += other


class ToySeq2SeqLessons(ToyLessons):
    """Batches of the curriculum for an encoder-decoder LM."""

    def __init__(self, config: ToySeq2SeqCurriculum, batch_size: int, seed: int) -> None:
        super().__init__(config, batch_size, seed)
        self._num_queries = config.num_queries
        self._pad, self._eos = self._ids["<pad>"], self._ids["<eos>"]
        words = (*LABELS, *(word for words in CATEGORIES.values() for word in words))
        self._copy_ids = sorted({self._ids[word] for word in words})

    def loss(self, model: PreTrainedModel) -> Tensor:
        """Loss on a new batch (scalar): answers that can be known + `other_token_weight` x the tokens after them."""
        contexts, asked = self._batch_of(self.stage)
        logits = self._logits(model, contexts, asked).transpose(1, 2)  # [B, V, T]
        known, _ = pad([_shifted(row.known) for row in asked], 0, "right")
        other, _ = pad([_shifted(row.other) for row in asked], 0, "right")
        self.count_step()
        loss = F.cross_entropy(logits, known - 1, ignore_index=-1)
        if (other > 0).any():
            loss = loss + self.config.other_token_weight * F.cross_entropy(logits, other - 1, ignore_index=-1)
        return loss

    def _logits(self, model: PreTrainedModel, contexts: Sequence[Sequence[int]], asked: Sequence[_Asked]) -> Tensor:
        """Logits [B, T, V] of decoder rows whose pieces do not see each other; an empty context is read as <eos>."""
        ids, mask = pad([context or [self._eos] for context in contexts], self._pad, "right")
        decoder_ids, real = pad([row.ids for row in asked], self._pad, "right")
        piece, _ = pad([row.piece for row in asked], 0, "right")
        piece = piece.masked_fill(~real, -1)
        length = decoder_ids.shape[1]
        sees = (piece[:, :, None] == piece[:, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
        block_mask = torch.zeros(len(asked), 1, length, length)
        block_mask = block_mask.masked_fill(~sees[:, None], torch.finfo(torch.float32).min)
        logits: Tensor = model(
            input_ids=ids,
            attention_mask=mask.long(),
            decoder_input_ids=decoder_ids,
            decoder_attention_mask=block_mask,
            use_cache=False,
        ).logits
        return logits

    def last_row_accuracy(self, model: PreTrainedModel, documents: Sequence[Sequence[Row]]) -> float:
        """Share of right answers among the options when the last row is asked and the others are in the encoder."""
        return self.accuracy(model, [(document[:-1], document[-1]) for document in documents])

    @torch.no_grad()
    def accuracy(self, model: PreTrainedModel, questions: Sequence[tuple[Sequence[Row], Row]]) -> float:
        """Share of right answers among the options; a question is (demonstrations, query)."""
        model.eval()
        correct = 0
        for start in range(0, len(questions), self._batch_size):
            part = questions[start : start + self._batch_size]
            asked = [_Asked() for _ in part]
            for row, (_, query) in zip(asked, part, strict=True):
                ids = self._question(query)
                row.add(ids, [], [])
            logits = self._logits(model, [self._context(shown) for shown, _ in part], asked)
            for i, (_, query) in enumerate(part):
                options = [self._ids[label] for label in query.options]
                answer = int(logits[i, len(asked[i].ids) - 1, options].argmax())
                correct += query.options[answer] == query.output
        model.train()
        return correct / len(questions)

    def report(self, model: PreTrainedModel) -> dict[str, Any]:
        """Accuracy on classification tasks by split, number of classes and number of demonstrations.

        Every task gives one query, so a cell's standard error is that of `documents` independent answers. With fewer
        than 24 demonstrations the encoder reads the first ones of the task.
        """
        count, share = self.config.report_documents, self.config.two_slot_share
        cells: dict[str, Any] = {}
        for split in ("train", "dev", "test", "test_hard"):
            for classes in (2, 3, 4):
                config = ToyConfig(
                    min_classes=classes,
                    max_classes=classes,
                    train_max_classes=classes,
                    num_dev_tasks=count,
                    num_test_tasks=count,
                    num_queries=1,
                    two_slot_share=share,
                )
                tasks = ToySource(config).tasks(split)[:count]
                accuracy = {
                    shown: self.accuracy(model, [(task.demonstrations[:shown], task.queries[0]) for task in tasks])
                    for shown in (0, 4, 8, 16, 24)
                }
                error = math.sqrt(accuracy[24] * (1 - accuracy[24]) / count)
                cells[f"{split}/{classes}"] = {
                    "documents": count,
                    "accuracy_by_demonstrations": {str(n): round(value, 4) for n, value in accuracy.items()},
                    "standard_error_at_24": round(error, 4),
                }
        return cells

    def _batch_of(self, stage: Stage) -> tuple[list[list[int]], list[_Asked]]:
        kinds, weights = list(stage.mix), list(stage.mix.values())
        num_rows = self._rng.randint(*stage.rows)
        drawn = self._rng.choices(kinds, weights, k=1 if stage.one_kind_per_batch else self._batch_size)
        pairs = [self._draw_pair(drawn[i % len(drawn)], num_rows, stage.classes) for i in range(self._batch_size)]
        return [context for context, _ in pairs], [asked for _, asked in pairs]

    def _draw_pair(self, kind: DocumentKind, num_rows: int, classes: tuple[int, int]) -> tuple[list[int], _Asked]:
        if kind == "repetition":
            return self._draw_copy()
        num_classes = self._rng.randint(*classes)
        count = num_rows + self._num_queries
        rows = draw_document(kind, count, num_classes, self._rng, self.config.two_slot_share).rows
        shown = rows[:num_rows]
        seen = {row.input if kind == "lookup" else row.output for row in shown}
        asked = _Asked()
        for row in rows[num_rows:]:
            knowable = kind == "natural" or (row.input if kind == "lookup" else row.output) in seen
            question = self._question(row)
            label, newline = self._ids[row.output], self._ids[NEWLINE]
            silent = [_IGNORE] * (len(question) - 1)
            known = [*silent, label if knowable else _IGNORE, _IGNORE, _IGNORE]
            if kind == "lookup":
                known[len(question) - 2] = known[len(question) - 1]
            asked.add([*question, label, newline], known, [*silent, _IGNORE, newline, self._eos])
        return self._context(shown), asked

    def _draw_copy(self) -> tuple[list[int], _Asked]:
        context = self._rng.sample(self._copy_ids, self._rng.randint(24, 40))
        asked = _Asked()
        for _ in range(_COPY_PIECES):
            start = self._rng.randrange(len(context) - _COPY_LENGTH + 1)
            piece = context[start : start + _COPY_LENGTH]
            asked.add([self._pad, *piece[:-1]], [_IGNORE, *piece[1:]], [_IGNORE] * _COPY_LENGTH)
        return context, asked

    def _context(self, rows: Sequence[Row]) -> list[int]:
        """Token ids of demonstrations."""
        ids: list[int] = []
        for row in rows:
            ids += [*self._words(row.input), self._ids[ARROW], self._ids[row.output], self._ids[NEWLINE]]
        return ids

    def _question(self, row: Row) -> list[int]:
        """Decoder ids up to the arrow, with T5's start token (the padding token) in front."""
        return [self._pad, *self._words(row.input), self._ids[ARROW]]

    def _words(self, text: str) -> list[int]:
        return [self._ids[word] for word in text.split()]


def _shifted(targets: Sequence[int]) -> list[int]:
    """Targets + 1 with 0 for none, so that padding with 0 means none."""
    return [0 if target == _IGNORE else target + 1 for target in targets]
