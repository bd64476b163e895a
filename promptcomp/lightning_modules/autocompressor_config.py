"""The section of AutoCompressors."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from promptcomp.lightning_modules.method_config import BudgetsConfig, LMTraining, LMTrainingConfig


class AutocompressorConfig(BudgetsConfig, LMTrainingConfig):  # type: ignore[misc]  # what pydantic adds to both
    """AutoCompressors: the LM reads a context in segments and sums each of them up in vectors for all that follows."""

    title: ClassVar[str] = "AutoCompressor"
    summary: ClassVar[str] = "the LM reads a context segment by segment and sums each up in vectors for what follows"
    paper: ClassVar[str] = "Chevalier et al. 2023, arXiv 2305.14788"
    families: ClassVar[tuple[str, ...]] = ("decoder",)
    reads_in_segments: ClassVar[bool] = True
    needs: ClassVar[str] = "contexts (text, demonstrations or instructions)"
    difficulty_keys: ClassVar[tuple[str, ...]] = ("num_slots", "budgets")
    loss_keys: ClassVar[tuple[str, ...]] = ("context_weight",)
    implementation: ClassVar[str] = "promptcomp.lightning_modules.autocompressor:Autocompressor"

    name: Literal["autocompressor"] = "autocompressor"
    num_slots: int = Field(16, gt=0)
    """Summary vectors of a context, those of all its segments together."""
    segments: int = Field(2, gt=0)
    """Segments that a context is cut into; each gets num_slots / segments vectors."""
    random_segments: bool = True
    """In training the lengths of the segments are drawn for each step, the longest at most twice the shortest; false:
    equal ones, as after training."""
    backprop_segments: int = Field(2, gt=0)
    """A gradient flows back through at most so many segments."""
    context_weight: float = Field(1.0, ge=0)
    """Weight of the cross-entropy of the context's own tokens, each behind the summaries of the segments before."""
    train: LMTraining = "lm"
    """lm: all weights of the LM, as in the paper's OPT models; lora: adapters, as with Llama; none: the summary tokens'
    embeddings alone."""

    @model_validator(mode="after")
    def _segments_get_the_same(self) -> AutocompressorConfig:
        for slots in (self.num_slots, *self.budgets):
            if slots % self.segments:
                nearest = self.segments * max(1, round(slots / self.segments))
                raise ValueError(
                    f"{slots} slots (method.num_slots, method.budgets) cannot be divided among {self.segments} "
                    f"segments; use {nearest}, or other method.segments"
                )
        return self

    def window_problem(self, window: int, longest: int | None = None) -> str | None:
        """A segment stands in the window with BOS, the summaries before it and its own."""
        share = (2 if self.random_segments else 1) / (self.segments + self.random_segments)
        most = math.floor((window - self.num_slots - 2) / share)  # 2: BOS, and a token by which segments may differ
        if longest is None or longest <= most:
            return None
        return (
            f"method.segments = {self.segments}: a segment of a context of {longest} tokens and {self.num_slots} "
            f"vectors exceed the LM's window of {window}; set data.max_context_tokens={max(most, 1)} or less, or use "
            "more segments"
        )
