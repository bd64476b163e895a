"""What methods are described by: their sections of the configuration, and their passes for estimates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

from transformers import PreTrainedModel

from promptcomp.config import Config
from promptcomp.lightning_modules.adapters import LMTraining, LoraConfig

ExportFormat = Literal["hf", "peft", "tensors"]
"""A Hugging Face model, adapters or prompts for peft, the trained tensors by name."""


class MethodConfig(Config):
    """Base of the methods' sections; each adds a literal `name`."""

    def without_training(self) -> Self:
        """The method as it serves once its trained parts are loaded: without a teacher or weights to start from."""
        return self


class LMTrainingConfig(MethodConfig):
    """Base of the sections of methods that may train the LM itself."""

    train: LMTraining = "none"
    """lm: all weights of the LM; lora: low-rank adapters beside them; none: the LM stays as it is."""
    lora: LoraConfig = LoraConfig()
    """The adapters of `train: lora`."""
    init_from: str | None = None
    """A run directory, export or checkpoint of the same method whose trained parts training starts from."""

    def without_training(self) -> Self:
        """See MethodConfig."""
        return self.model_copy(update={"init_from": None})


@dataclass(frozen=True, slots=True)
class Pass:
    """One model reading tokens in a training step, for estimates before a run; numbers are for one context."""

    model: PreTrainedModel
    tokens: float
    """Tokens read."""
    length: float
    """Tokens of one sequence (attention grows with it)."""
    gradient: bool
    """Whether a gradient flows through it, so that its activations are kept."""
    trained: bool
    """Whether its weights get a gradient."""
    says_context: bool = False
    """Its targets are the contexts, each behind a query of one token, instead of the examples."""
    caches_context: bool = False
    """A decoder reads the context first and keeps its keys and values until the answers are worked out."""


class ExampleGold(Protocol):
    """What the running accuracy needs to know of an example."""

    @property
    def number(self) -> int: ...
    @property
    def gold(self) -> int: ...
    @property
    def options(self) -> Sequence[str]: ...
