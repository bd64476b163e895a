"""Pretraining of an encoder-decoder student on text of the world of prices, without the hidden prices.

A document asks one of the two tasks of the world with prices in place of the goods:

    explain: i buy a 4 and a 3 , what is the price ?  =>  4 + 3 = 7

So the student learns how questions are put, and to add; no document names a good, and what the world's goods cost is
never told.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from promptcomp.batch import pad
from promptcomp.toy.lessons import Lessons, all_right, answer_loss
from promptcomp.toy.rationale_world import (
    MAX_PRICE,
    ToyRationaleSource,
    answer,
    cost_text,
    toy_rationale_tokenizer,
)
from promptcomp.toy.recipe import RationaleCurriculum, StageConfig
from promptcomp.toy.toy_sections import ToyRationaleConfig

_Document = tuple[str, str]
"""What the encoder reads, and the target."""
_TASKS = ("predict:", "explain:")


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

    def _right(self, model: PreTrainedModel, documents: Sequence[_Document]) -> float:
        """Share of documents whose target is right in every token given the ones before."""
        right = 0.0
        for start in range(0, len(documents), self._batch_size):
            right += float(all_right(*self._logits(model, documents[start : start + self._batch_size])).sum())
        return right / len(documents)

    def _draw(self, task: str, rng: random.Random) -> _Document:
        """What the encoder reads, and the target."""
        costs = (rng.randint(1, MAX_PRICE), rng.randint(1, MAX_PRICE))
        rationale, label = answer("cost", costs)
        return f"{task} {cost_text([str(cost) for cost in costs], rng)}", label if task == "predict:" else rationale

    def _logits(self, model: PreTrainedModel, documents: Sequence[_Document]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, T, V], the decoder's ids [B, T], padded on the right, and which are a target's [B, T]."""
        words = [(context.split(), f"<pad> {target} <eos>".split()) for context, target in documents]
        read, mask = pad([[self._ids[word] for word in context] for context, _ in words], 0, "right")
        ids, real = pad([[self._ids[word] for word in target] for _, target in words], 0, "right")
        real[:, 0] = False  # the start token
        output = model(input_ids=read, attention_mask=mask.long(), decoder_input_ids=ids, use_cache=False)
        return output.logits, ids, real
