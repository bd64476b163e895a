"""The embedded world as in-context-learning data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from promptcomp.datamodules.icl_config import ICLConfig
from promptcomp.datamodules.rendering import SeparatorName
from promptcomp.datamodules.toy import ToyConfig


class ToyICLData(ICLConfig):
    """The embedded world of in-context classification tasks (no files needed)."""

    name: Literal["toy_icl"] = "toy_icl"
    world: ToyConfig = ToyConfig()
    """The generator's own options."""
    num_demonstrations: int = Field(default=24, ge=0)
    separator: SeparatorName = "arrow"
    balance: Literal["examples", "tasks"] = "tasks"
    max_example_tokens: int = Field(default=32, ge=4)
    length_window: int = Field(default=1, ge=1)
    """1: the tasks are so alike in length that sorting them saves nothing."""

    @model_validator(mode="after")
    def _enough_demonstrations(self) -> ToyICLData:
        if self.num_demonstrations > self.world.num_demonstrations:
            raise ValueError(
                f"num_demonstrations {self.num_demonstrations} is more than a task of the world has: raise "
                f"world.num_demonstrations (now {self.world.num_demonstrations}) as well"
            )
        if self.balance != "tasks":
            raise ValueError("balance must be 'tasks': the tasks of the embedded world are generated and never listed")
        return self
