"""The embedded instruction world as instruction data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from promptcomp.datamodules.instruction_config import InstructionConfig
from promptcomp.datamodules.templates import CustomTemplate, TemplateName
from promptcomp.datamodules.toy_instructions import ToyInstructionsConfig


class ToyInstructionsData(InstructionConfig):
    """The embedded world of list-editing instructions (no files needed)."""

    name: Literal["toy_instructions"] = "toy_instructions"
    world: ToyInstructionsConfig = ToyInstructionsConfig()
    """The generator's own options."""
    template: TemplateName | CustomTemplate = CustomTemplate(query=": {input} =>", empty_query=": =>")
    """As the embedded base model has it: "instruction : input => output"."""
    max_context_tokens: int = Field(default=48, ge=1)
    max_query_tokens: int = Field(default=16, ge=1)
    max_target_tokens: int = Field(default=24, ge=1)
    metric: Literal["exact_match", "rougeL", "loss"] = "exact_match"
    length_window: int = Field(default=1, ge=1)
    """1: the rows are so alike in length that sorting them saves nothing."""
