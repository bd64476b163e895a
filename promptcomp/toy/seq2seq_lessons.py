"""Encoder-decoder pretraining on the toy world: the encoder reads demonstrations, the decoder answers.

Layout `query_in_decoder`: the encoder reads "x1 => y1 \\n x2 => y2 \\n ..." and the decoder `<pad> x =>`, after which
it predicts `y \\n <eos>`. Several queries share an encoder pass: they stand in one decoder row and a block mask keeps
each to itself, so a row gives what separate rows would give (T5's position biases depend on distances alone).

Layout `query_in_encoder`: the encoder reads the demonstrations and `x =>`, and the decoder says `y` after `<pad>`. The
decoder finds nothing to look up before the encoder has matched query and demonstrations, and nothing asks the encoder
to. So its own states are asked as well, through the output layer: what comes after the arrow of each query, of which
there may be several.

Curriculum as for the decoder-only LM. `repetition` is a random segment of distinct words in the encoder of which the
decoder continues pieces: every word but a piece's first is known; or, in the encoder, single words of it that stand for
those that follow them. In `lookup` the answer is asked one token early as well, after the word itself, where a model
that can copy already looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from promptcomp.batch import pad
from promptcomp.datamodules.tasks import Row, Task
from promptcomp.language_model.parts import logits_of
from promptcomp.toy.icl_lessons import ToyLessons, draw_document, key_of
from promptcomp.toy.recipe import DocumentKind, ToySeq2SeqCurriculum
from promptcomp.toy.words import ARROW, CATEGORIES, LABELS, NEWLINE

_IGNORE = -100  # the target of a place where nothing is asked, as cross_entropy has it
_COPY_PIECES, _COPY_LENGTH = 4, 9


@dataclass(slots=True)
class _Asked:
    """One decoder row: pieces, each with what it should say. `known`, `other`: targets or -100."""

    ids: list[int] = field(default_factory=list)
    piece: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    other: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], known: Sequence[int] = (), other: Sequence[int] = ()) -> None:
        number = self.piece[-1] + 1 if self.piece else 0
        self.ids += ids
        self.piece += [number] * len(ids)
        self.known += known
        self.other += other


@dataclass(slots=True)
class _Read:
    """What the encoder reads with its queries."""

    ids: list[int]
    known: list[int]
    """What each place stands for, or -100."""
    answer: int = _IGNORE
    """What the decoder should say, or -100."""


class ToySeq2SeqLessons(ToyLessons):
    """Batches of the curriculum for an encoder-decoder LM."""

    config: ToySeq2SeqCurriculum

    def __init__(self, config: ToySeq2SeqCurriculum, batch_size: int, seed: int) -> None:
        super().__init__(config, batch_size, seed)
        self._num_queries = config.num_queries
        self._pad, self._eos = self._ids["<pad>"], self._ids["<eos>"]
        words = (*LABELS, *(word for words in CATEGORIES.values() for word in words))
        self._copy_ids = sorted({self._ids[word] for word in words})

    def batch_loss(self, model: PreTrainedModel) -> Tensor:
        """Loss on a new batch (scalar): answers that can be known + `other_token_weight` x the tokens after them; or,
        where the encoder reads the queries, answers of the decoder + answers of the encoder's states."""
        if self.config.layout == "query_in_encoder":
            return self._loss_of_read(model)
        contexts, asked = zip(*self.draw_batch(), strict=True)
        logits = self._logits(model, contexts, asked).transpose(1, 2)  # [B, V, T]
        known, _ = pad([row.known for row in asked], _IGNORE, "right")
        other, _ = pad([row.other for row in asked], _IGNORE, "right")
        loss = F.cross_entropy(logits, known)
        if (other != _IGNORE).any():
            loss = loss + self.config.other_token_weight * F.cross_entropy(logits, other)
        return loss

    def _loss_of_read(self, model: PreTrainedModel) -> Tensor:
        count = self._rng.choice((1, self._num_queries))
        batch: list[_Read] = self.draw_batch(partial(self._draw_read, count=count))
        logits, states = self._logits_of_read(model, [row.ids for row in batch])
        known, _ = pad([row.known for row in batch], _IGNORE, "right")
        loss = F.cross_entropy(logits_of(model, states[known != _IGNORE]), known[known != _IGNORE])
        answers = torch.tensor([row.answer for row in batch])
        return loss + F.cross_entropy(logits, answers) if (answers != _IGNORE).any() else loss

    def _logits_of_read(self, model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """First logits [B, V] of the decoder, and the encoder's states [B, S, D]."""
        ids, mask = pad(rows, self._pad, "right")
        start = torch.full((len(rows), 1), self._pad)
        found = model(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=start, use_cache=False)
        return found.logits[:, 0], found.encoder_last_hidden_state

    def _logits(self, model: PreTrainedModel, contexts: Sequence[Sequence[int]], asked: Sequence[_Asked]) -> Tensor:
        """Logits [B, T, V] of decoder rows whose pieces do not see each other; an empty context is read as <eos>."""
        ids, mask = pad([context or [self._eos] for context in contexts], self._pad, "right")
        decoder_ids, _ = pad([row.ids for row in asked], self._pad, "right")
        piece, _ = pad([row.piece for row in asked], -1, "right")
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

    def accuracy_by_demonstrations(self, model: PreTrainedModel, tasks: Sequence[Task]) -> dict[int, float]:
        """Share of right answers by the number of demonstrations, the first ones of the task, in the encoder."""
        return {
            shown: self.accuracy(model, [(task.demonstrations[:shown], task.queries[0]) for task in tasks])
            for shown in (0, 4, 8, 16, 24)
        }

    def accuracy(self, model: PreTrainedModel, questions: Sequence[tuple[Sequence[Row], Row]]) -> float:
        """Share of right answers among the options; a question is (demonstrations, query)."""
        correct = 0
        for start in range(0, len(questions), self._batch_size):
            part = questions[start : start + self._batch_size]
            queries = [self._question(row) for _, row in part]
            shown = [self._row_ids(rows) for rows, _ in part]
            if self.config.layout == "query_in_encoder":
                read = [rows + question[1:] for rows, question in zip(shown, queries, strict=True)]
                logits = self._logits_of_read(model, read)[0]
            else:
                asked = [_Asked() for _ in part]
                for row, question in zip(asked, queries, strict=True):
                    row.add(question)
                ends = torch.tensor([len(question) - 1 for question in queries])
                logits = self._logits(model, shown, asked)[torch.arange(len(part)), ends]
            for found, (_, query) in zip(logits, part, strict=True):
                options = [self._ids[label] for label in query.options]
                correct += query.options[int(found[options].argmax())] == query.output
        return correct / len(questions)

    def _draw(self, kind: DocumentKind, num_rows: int, classes: tuple[int, int]) -> tuple[list[int], _Asked]:
        """Token ids for the encoder, and what the decoder is asked."""
        if kind == "repetition":
            return self._draw_copy()
        shown, queries = self._draw_rows(kind, num_rows, classes)
        asked = _Asked()
        for row, can_be_known in queries:
            question = self._question(row)
            label, newline = self._ids[row.output], self._ids[NEWLINE]
            answer = label if can_be_known else _IGNORE
            silent = [_IGNORE] * (len(question) - 1)
            known = [*silent, answer, _IGNORE, _IGNORE]
            if kind == "lookup":
                known[len(question) - 2] = answer
            asked.add([*question, label, newline], known, [*silent, _IGNORE, newline, self._eos])
        return self._row_ids(shown), asked

    def _draw_rows(
        self, kind: DocumentKind, num_rows: int, classes: tuple[int, int]
    ) -> tuple[Sequence[Row], list[tuple[Row, bool]]]:
        """The rows to show, and the ones to ask about with whether their answers can be known."""
        num_classes = self._rng.randint(*classes)
        count = num_rows + self._num_queries
        rows = draw_document(kind, count, num_classes, self._rng, self.config.two_slot_share).rows
        seen = {key_of(kind, row) for row in rows[:num_rows]}
        return rows[:num_rows], [(row, kind == "natural" or key_of(kind, row) in seen) for row in rows[num_rows:]]

    def _draw_read(self, kind: DocumentKind, num_rows: int, classes: tuple[int, int], count: int) -> _Read:
        """Token ids for an encoder that reads `count` queries; the decoder is asked if there is one."""
        if kind == "repetition":
            words = self._rng.sample(self._copy_ids, self._rng.randint(24, 40))
            places = self._rng.sample(range(len(words) - 1), self._num_queries)
            known = [_IGNORE] * len(words) + [words[place + 1] for place in places]
            return _Read([*words, *(words[place] for place in places)], known)
        shown, queries = self._draw_rows(kind, num_rows, classes)
        asked = [row for row, can_be_known in queries if can_be_known][:count]
        ids = self._row_ids(shown)
        known = [_IGNORE] * len(ids)
        for row in asked:
            question, answer = self._question(row)[1:], self._ids[row.output]
            ids += question
            known += [*[_IGNORE] * (len(question) - 2), answer if kind == "lookup" else _IGNORE, answer]
        return _Read(ids, known, known[-1] if len(asked) == 1 else _IGNORE)

    def _draw_copy(self) -> tuple[list[int], _Asked]:
        context = self._rng.sample(self._copy_ids, self._rng.randint(24, 40))
        asked = _Asked()
        for _ in range(_COPY_PIECES):
            start = self._rng.randrange(len(context) - _COPY_LENGTH + 1)
            piece = context[start : start + _COPY_LENGTH]
            asked.add([self._pad, *piece[:-1]], [_IGNORE, *piece[1:]], [_IGNORE] * _COPY_LENGTH)
        return context, asked

    def _question(self, row: Row) -> list[int]:
        """Decoder ids up to the arrow, with T5's start token (the padding token) in front."""
        return [self._pad, *(self._ids[word] for word in row.input.split()), self._ids[ARROW]]
