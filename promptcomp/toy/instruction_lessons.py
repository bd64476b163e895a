"""Pretraining on the toy instruction world: first copying, then instructions in all phrasings.

A document is "instruction : words => answer <eos>", read by a decoder-only LM. All phrasings occur, those that a
compressor's training holds out as well; pairs of selection and transform are training pairs only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from promptcomp.batch import pad
from promptcomp.datamodules.tasks import InstructionRow
from promptcomp.toy.instruction_world import (
    ToyInstructionSource,
    draw_instruction,
    draw_words,
    instruction_tokenizer,
    pairs_of,
    perform,
)
from promptcomp.toy.lessons import Lessons, answer_loss
from promptcomp.toy.recipe import InstructionCurriculum, InstructionStage
from promptcomp.toy.toy_sections import ToyInstructionsConfig
from promptcomp.toy.words import ANSWER, GROUP_OF, SEPARATOR, Wording


class InstructionLessons(Lessons[InstructionStage]):
    """Batches of the curriculum for a decoder-only LM."""

    def __init__(self, config: InstructionCurriculum, batch_size: int, seed: int) -> None:
        super().__init__(config.stages)
        self.config = config
        self.tokenizer = instruction_tokenizer()
        self._batch_size = batch_size
        self._rng = random.Random(f"instruction curriculum/{seed}")
        self._ids = self.tokenizer.get_vocab()

    def batch_loss(self, model: PreTrainedModel) -> Tensor:
        """Loss on a new batch (scalar): answers + `other_token_weight` times all other tokens."""
        stage = self.stage
        if self._rng.random() < stage.repetition:
            ids, answers = self._repetition()
        else:
            ids, answers = self._encode([self._draw(stage.max_words) for _ in range(self._batch_size)])
        logits = model(input_ids=ids, use_cache=False).logits  # [B, T, V]; right padding needs no mask
        return answer_loss(logits, ids, answers, 0, self.config.other_token_weight)

    def skills(self, model: PreTrainedModel) -> dict[str, float]:
        """Exact match on rows of dev, by part."""
        config = ToyInstructionsConfig(num_dev_rows=self.config.skill_rows)
        return self.exact_match(model, ToyInstructionSource(config).rows("dev"))

    def report(self, model: PreTrainedModel) -> dict[str, Any]:
        """Exact match on every split, by part, with the full prompt; rows of their own seed, not the evaluated ones."""
        count = self.config.report_rows
        source = ToyInstructionSource(ToyInstructionsConfig(seed=-1, num_dev_rows=count, num_test_rows=count))
        cells = {split: self.exact_match(model, source.rows(split)) for split in source.splits if split != "train"}
        rounded = {split: {name: round(value, 4) for name, value in parts.items()} for split, parts in cells.items()}
        return {"rows_per_split": count, "exact_match": rounded}

    def exact_match(self, model: PreTrainedModel, rows: Sequence[InstructionRow]) -> dict[str, float]:
        """Share of rows whose answer is right in every token, by part (the row's `source`).

        Counted with the right tokens in front of every token, which is the same as greedy decoding being right.
        """
        right: dict[str, list[float]] = {}
        for start in range(0, len(rows), self._batch_size):
            part = rows[start : start + self._batch_size]
            ids, answers = self._encode(part)
            best = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
            correct = ((best == ids[:, 1:]) | ~answers[:, 1:]).all(1)
            for row, value in zip(part, correct.tolist(), strict=True):
                right.setdefault(row.source, []).append(value)
        return {name: sum(values) / len(values) for name, values in right.items()}

    def _draw(self, max_words: int) -> InstructionRow:
        rng = self._rng
        pair = rng.choice(pairs_of("train"))
        wording: Wording = rng.choice(("reworded", "reworded", "reworded_dev", "ordinary"))
        if rng.random() >= self.config.reworded_share:
            wording = "ordinary"
        words = draw_words(pair[0], rng, 3, max_words)
        return InstructionRow(draw_instruction(pair, wording, rng), " ".join(words), " ".join(perform(pair, words)))

    def _encode(self, rows: Sequence[InstructionRow]) -> tuple[Tensor, Tensor]:
        """Token ids [B, T], padded on the right, and where they are an answer or its end [B, T]."""
        ids, answers = [], []
        for row in rows:
            question = f"<bos> {row.instruction} {SEPARATOR} {row.input} {ANSWER}".split()
            answer = f"{row.output} <eos>".split()
            ids.append([self._ids[word] for word in question + answer])
            answers.append([0] * len(question) + [1] * len(answer))
        return pad(ids, 0, "right")[0], pad(answers, 0, "right")[0].bool()

    def _repetition(self) -> tuple[Tensor, Tensor]:
        """Segments of 4-10 random words repeated to 32 tokens; known from the second copy on."""
        period = self._rng.randint(4, 10)
        ids, words = [], list(GROUP_OF)
        for _ in range(self._batch_size):
            segment = [self._ids[self._rng.choice(words)] for _ in range(period)]
            ids.append([self._ids["<bos>"], *(segment * (32 // period + 1))[:32]])
        answers = [[0] * (1 + period) + [1] * (32 - period)] * self._batch_size
        return torch.tensor(ids), torch.tensor(answers).bool()
