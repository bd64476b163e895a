"""What the pretraining loop asks of its data: losses and measurements along a curriculum of stages."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from promptcomp.toy.recipe import StageConfig

AnyStage = TypeVar("AnyStage", bound=StageConfig)


class Lessons(ABC, Generic[AnyStage]):
    """A source of losses with its own schedule; deterministic in its seed."""

    tokenizer: PreTrainedTokenizerFast
    """Saved with the model."""

    def __init__(self, stages: Sequence[AnyStage], batch_size: int, seed: str) -> None:
        self._stages = stages
        self._batch_size = batch_size
        self._rng = random.Random(seed)
        self._number = 0
        self._step_in_stage = 0

    @cached_property
    def _ids(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    @property
    def stage(self) -> AnyStage:
        """The current stage, or the last one when all are over."""
        return self._stages[min(self._number, len(self._stages) - 1)]

    @property
    def total_steps(self) -> int:
        """Steps if no stage is left early."""
        return sum(stage.steps for stage in self._stages)

    @property
    def finished(self) -> bool:
        """Whether the last stage is over."""
        return self._number >= len(self._stages)

    @property
    def lr_scale(self) -> float:
        """Learning rate of the next step relative to the configured one."""
        start, end = self.stage.lr_scale
        return start + (end - start) * self._step_in_stage / self.stage.steps

    def next_stage(self) -> None:
        """Go on to the next stage."""
        self._number += 1
        self._step_in_stage = 0

    def loss(self, model: PreTrainedModel) -> Tensor:
        """Loss on a new batch (scalar with a graph); moves the schedule on by a step."""
        loss = self.batch_loss(model)
        self._step_in_stage += 1
        if self._step_in_stage >= self.stage.steps:
            self.next_stage()
        return loss

    @abstractmethod
    def batch_loss(self, model: PreTrainedModel) -> Tensor:
        """Loss on a new batch of the current stage."""

    @abstractmethod
    def skills(self, model: PreTrainedModel) -> dict[str, float]:
        """What the model, in eval mode, can do now (may end the current stage)."""

    def report(self, model: PreTrainedModel) -> dict[str, Any]:
        """What the finished model, in eval mode, can do, for `recipe.json`; by default its skills."""
        return dict(self.skills(model))


def answer_loss(logits: Tensor, ids: Tensor, answers: Tensor, pad_id: int, other_weight: float) -> Tensor:
    """Mean next-token loss over the answers + `other_weight` times that over all other tokens, a scalar.

    Args:
        logits: [B, T, V].
        ids: Tokens [B, T], padded on the right with `pad_id`.
        answers: Which of them are answers that can be known, bool [B, T].
        pad_id: See `ids`.
        other_weight: See above.
    """
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    known = answers[:, 1:]
    other = (ids[:, 1:] != pad_id) & ~known
    if not other.any():  # a decoder that writes answers alone
        return losses[known].mean()
    return losses[known].mean() + other_weight * losses[other].mean()


def all_right(logits: Tensor, ids: Tensor, answers: Tensor) -> Tensor:
    """Rows [B] whose answer is right in every token, given the tokens before it; arguments as of `answer_loss`.

    It is the same as greedy decoding being right.
    """
    return ((logits[:, :-1].argmax(-1) == ids[:, 1:]) | ~answers[:, 1:]).all(1)
