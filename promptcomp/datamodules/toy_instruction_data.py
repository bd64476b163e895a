"""The embedded instruction world as instruction data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from promptcomp.datamodules.instruction_options import InstructionConfig
from promptcomp.datamodules.templates import CustomTemplate, TemplateName
from promptcomp.datamodules.toy_instruction_words import ANSWER, SEPARATOR
from promptcomp.datamodules.toy_instructions import ToyInstructionsConfig

_TEMPLATE = CustomTemplate(query=f"{SEPARATOR} {{input}} {ANSWER}", empty_query=f"{SEPARATOR} {ANSWER}")


class ToyInstructionsData(InstructionConfig):
    """The embedded instruction world (no files needed)."""

    name: Literal["toy_instructions"] = "toy_instructions"
    world: ToyInstructionsConfig = ToyInstructionsConfig()
    """The generator's own options."""
    template: TemplateName | CustomTemplate = _TEMPLATE
    """How the base LM has read its instructions: "instruction : words => answer"."""
    max_context_tokens: int = Field(default=48, ge=1)
    max_query_tokens: int = Field(default=16, ge=1)
    max_target_tokens: int = Field(default=16, ge=1)
    length_window: int = Field(default=1, ge=1)
    """1: the rows are so alike in length that sorting them saves little."""
