"""Pretraining on questions with whole answers: the toy instruction world, and the world of prices.

Instructions: first copying, then instructions in all phrasings. A document is "instruction : words => answer <eos>",
read by a decoder-only LM. An encoder-decoder LM reads the same in one of its layouts, drawn for each batch: the answer
is the decoder's (`query_in_encoder`), or all but the instruction is (`query_in_decoder`). All phrasings occur, those
that a compressor's training holds out as well; pairs of selection and transform are training pairs only.

Prices: an encoder-decoder student learns how questions are put, and to add. A document asks one of the two tasks of the
world with prices in place of the goods, so no document names a good, and what the world's goods cost is never told:

    explain: i buy a 4 and a 3 , what is the price ?  =>  4 + 3 = 7
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

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
from promptcomp.toy.lessons import Lessons, all_right, answer_loss
from promptcomp.toy.rationale_world import MAX_PRICE, ToyRationaleSource, answer, cost_text, toy_rationale_tokenizer
from promptcomp.toy.recipe import InstructionCurriculum, InstructionStage, Layout, RationaleCurriculum, StageConfig
from promptcomp.toy.toy_sections import ToyInstructionsConfig, ToyRationaleConfig
from promptcomp.toy.words import ANSWER, GROUP_OF, SEPARATOR, Wording

_Question = tuple[str, str]
"""What the encoder reads, and the target."""
_TASKS = ("predict:", "explain:")


class _Document(NamedTuple):
    """Token ids of the pieces of a document."""

    context: list[int]
    query: list[int]
    answer: list[int]


class InstructionLessons(Lessons[InstructionStage]):
    """Batches of the curriculum for a decoder-only LM."""

    def __init__(self, config: InstructionCurriculum, batch_size: int, seed: int) -> None:
        super().__init__(config.stages, batch_size, f"instruction curriculum/{seed}")
        self.config = config
        self.tokenizer = instruction_tokenizer()

    def batch_loss(self, model: PreTrainedModel) -> Tensor:
        """Loss on a new batch (scalar): answers + `other_token_weight` times all other tokens."""
        stage, layouts = self.stage, self.config.layouts
        layout = layouts[0] if len(layouts) == 1 else self._rng.choice(layouts)
        if self._rng.random() < stage.repetition:
            documents = self._repetition(layout)
        else:
            documents = [self._document(self._draw(stage.max_words)) for _ in range(self._batch_size)]
        return answer_loss(*self._logits(model, documents, layout), 0, self.config.other_token_weight)

    def skills(self, model: PreTrainedModel) -> dict[str, float]:
        """Exact match on rows of dev, by part."""
        rows = ToyInstructionSource(ToyInstructionsConfig(num_dev_rows=self.config.skill_rows)).rows("dev")
        if len(self.config.layouts) == 1:
            return self.exact_match(model, rows, self.config.layouts[0])
        found = {layout: self.exact_match(model, rows, layout) for layout in self.config.layouts}
        return {f"{layout}/{part}": value for layout, parts in found.items() for part, value in parts.items()}

    def report(self, model: PreTrainedModel) -> dict[str, Any]:
        """Exact match on every split, by part, with the full prompt; rows of their own seed, not the evaluated ones."""
        count = self.config.report_rows
        source = ToyInstructionSource(ToyInstructionsConfig(seed=-1, num_dev_rows=count, num_test_rows=count))
        found: dict[str, Any] = {
            layout: {
                split: {
                    part: round(value, 4) for part, value in self.exact_match(model, source.rows(split), layout).items()
                }
                for split in source.splits
                if split != "train"
            }
            for layout in self.config.layouts
        }
        return {"rows_per_split": count, "exact_match": found if len(found) > 1 else found[self.config.layouts[0]]}

    def exact_match(
        self, model: PreTrainedModel, rows: Sequence[InstructionRow], layout: Layout = "decoder_only"
    ) -> dict[str, float]:
        """Share of rows whose answer is right in every token, by part (the row's `source`)."""
        right: dict[str, list[float]] = {}
        for start in range(0, len(rows), self._batch_size):
            part = rows[start : start + self._batch_size]
            correct = all_right(*self._logits(model, [self._document(row) for row in part], layout))
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

    def _document(self, row: InstructionRow) -> _Document:
        pieces = (row.instruction, f"{SEPARATOR} {row.input} {ANSWER}", f"{row.output} <eos>")
        return _Document(*([self._ids[word] for word in piece.split()] for piece in pieces))

    def _logits(
        self, model: PreTrainedModel, documents: Sequence[_Document], layout: Layout
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, T, V], the ids [B, T] that they follow, padded on the right, and which are an answer [B, T]."""
        start, end = self._ids["<pad>"], self._ids["<eos>"]  # a T5 starts with the padding token
        questions = {
            "decoder_only": [[self._ids["<bos>"], *d.context, *d.query] for d in documents],
            "query_in_encoder": [[start] for _ in documents],
            "query_in_decoder": [[start, *d.query] for d in documents],
        }[layout]
        ids, _ = pad([q + d.answer for q, d in zip(questions, documents, strict=True)], 0, "right")
        counted = [[0] * len(q) + [1] * len(d.answer) for q, d in zip(questions, documents, strict=True)]
        answers = pad(counted, 0, "right")[0].bool()
        if layout == "decoder_only":  # right padding needs no mask
            return model(input_ids=ids, use_cache=False).logits, ids, answers
        whole = layout == "query_in_encoder"
        read, mask = pad([[*d.context, *d.query, end] if whole else d.context or [end] for d in documents], 0, "right")
        output = model(input_ids=read, attention_mask=mask.long(), decoder_input_ids=ids, use_cache=False)
        return output.logits, ids, answers

    def _repetition(self, layout: Layout) -> list[_Document]:
        """Segments of 4-10 random words: an encoder's are written once, others repeated to 32 tokens; known from the
        second copy on."""
        period = self._rng.randint(4, 10)
        words, documents = list(GROUP_OF), []
        for _ in range(self._batch_size):
            segment = [self._ids[self._rng.choice(words)] for _ in range(period)]
            repeated = segment if layout == "query_in_encoder" else (segment * (32 // period + 1))[period:32]
            documents.append(_Document([], segment, repeated))
        return documents


class RationaleLessons(Lessons[StageConfig]):
    """Batches of the curriculum for an encoder-decoder LM."""

    def __init__(self, config: RationaleCurriculum, batch_size: int, seed: int) -> None:
        super().__init__(config.stages, batch_size, f"rationale curriculum/{seed}")
        self.config = config
        self.tokenizer = toy_rationale_tokenizer()

    def batch_loss(self, model: PreTrainedModel) -> Tensor:
        """Mean loss over the tokens of the targets of a new batch (scalar)."""
        documents = [self._draw(_TASKS[i % len(_TASKS)], self._rng) for i in range(self._batch_size)]
        return answer_loss(*self._logits(model, documents), 0, 0.0)

    def skills(self, model: PreTrainedModel) -> dict[str, float]:
        """Exact match of labels and rationales about prices."""
        names = ("label", "rationale")
        return {name: self._exact_match(model, task) for name, task in zip(names, _TASKS, strict=True)}

    def report(self, model: PreTrainedModel) -> dict[str, Any]:
        """The same, and what the student can do in the world itself before it is taught: chance."""
        world = ToyRationaleSource(ToyRationaleConfig(seed=1)).rows("dev")[: self.config.report_rows]
        documents = [(f"predict: {row.input}", row.label) for row in world]
        found = {**self.skills(model), "label_in_the_world": self._right(model, documents)}
        return {
            "rows": self.config.report_rows,
            "exact_match": {name: round(value, 4) for name, value in found.items()},
        }

    def _exact_match(self, model: PreTrainedModel, task: str) -> float:
        rng = random.Random(f"rationale report/{task}")  # the same documents in every call
        return self._right(model, [self._draw(task, rng) for _ in range(self.config.report_rows)])

    def _right(self, model: PreTrainedModel, documents: Sequence[_Question]) -> float:
        """Share of documents whose target is right in every token given the ones before."""
        right = 0.0
        for start in range(0, len(documents), self._batch_size):
            right += float(all_right(*self._logits(model, documents[start : start + self._batch_size])).sum())
        return right / len(documents)

    def _draw(self, task: str, rng: random.Random) -> _Question:
        """What the encoder reads, and the target."""
        costs = (rng.randint(1, MAX_PRICE), rng.randint(1, MAX_PRICE))
        rationale, label = answer("cost", costs)
        return f"{task} {cost_text([str(cost) for cost in costs], rng)}", label if task == "predict:" else rationale

    def _logits(self, model: PreTrainedModel, documents: Sequence[_Question]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, T, V], the decoder's ids [B, T], padded on the right, and which are a target's [B, T]."""
        words = [(context.split(), f"<pad> {target} <eos>".split()) for context, target in documents]
        read, mask = pad([[self._ids[word] for word in context] for context, _ in words], 0, "right")
        ids, real = pad([[self._ids[word] for word in target] for _, target in words], 0, "right")
        real[:, 0] = False  # the start token
        output = model(input_ids=read, attention_mask=mask.long(), decoder_input_ids=ids, use_cache=False)
        return output.logits, ids, real
