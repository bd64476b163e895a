"""What the pretraining loop asks of its data."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Lessons(Protocol):
    """A source of losses with a schedule of its own; deterministic in its seed."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that is saved with the model."""
        ...

    @property
    def total_steps(self) -> int:
        """Steps at most."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the schedule is over."""
        ...

    @property
    def stage_name(self) -> str:
        """Name of the current part of the schedule."""
        ...

    @property
    def lr_scale(self) -> float:
        """Learning rate of the next step relative to the configured one."""
        ...

    def loss(self, model: PreTrainedModel) -> Tensor:
        """Loss on a new batch (scalar with a graph); moves the schedule on by a step."""
        ...

    def skills(self, model: PreTrainedModel) -> dict[str, float]:
        """What the model can do now (may end the current part of the schedule)."""
        ...

    def report(self, model: PreTrainedModel) -> dict[str, Any]:
        """What the finished model can do, for `recipe.json`."""
        ...
