"""Controls: the bounds of every result (full prompt, no prompt) and soft prompts without a compressor.

Full prompt and no prompt serve untrained, as the bounds of a frozen LM, and as the trained twins of a method that
trains the LM (`method.train=lm` or `lora`; the controls of Mu et al. 2023, arXiv 2304.08467).
Prompt tuning: Lester, Al-Rfou, Constant 2021, https://arxiv.org/abs/2104.08691; per task or one prompt for all tasks,
as MEND's baselines have it. A task that was not trained on has only its initial prompt in the per-task form.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from promptcomp.batch import Batch, Context
from promptcomp.config import ConfigError
from promptcomp.language_model import embedding_scale, token_table
from promptcomp.language_model.parts import Prefix
from promptcomp.lightning_modules.base import (
    CompressionModule,
    Counts,
    ExportFormat,
    LMTrainingConfig,
    LossTerm,
    MethodConfig,
)
from promptcomp.memory import Memory, SoftPrompt


class FullPromptConfig(LMTrainingConfig):
    """Positive control: the LM reads the whole context, as it is or after training with the same data as a method."""

    name: Literal["full_prompt"] = "full_prompt"


class NoPromptConfig(LMTrainingConfig):
    """Negative control: the LM reads the query alone, as it is or after training with the same data as a method."""

    name: Literal["no_prompt"] = "no_prompt"


class PromptTuningConfig(MethodConfig):
    """Learned vectors in place of the context, not depending on it."""

    name: Literal["prompt_tuning"] = "prompt_tuning"
    num_slots: int = Field(100, gt=0)
    """Vectors of a prompt."""
    share: Literal["per_task", "shared"] = "per_task"
    """per_task: a prompt for each task; shared: one for all."""
    slot_init: Literal["random", "vocabulary"] = "vocabulary"
    """vocabulary: embeddings of random tokens; random: N(0, 0.02), times the factor that an LM may
    multiply its token embeddings by."""


class FullPrompt(CompressionModule):
    """See FullPromptConfig."""

    @property
    def trainable(self) -> bool:
        """Only where the configuration says so."""
        return self.lm_training != "none"

    def compress(self, context: Context) -> Memory | None:
        """The context itself."""
        return self.lm.encode(context)

    def num_memory_slots(self, context_tokens: int) -> int:
        """Every token of it."""
        return context_tokens

    def counts(self, batch: Batch) -> Counts:
        """Scored tokens."""
        return {"ce": self.lm.scored_tokens(batch).sum()}

    def losses(self, batch: Batch) -> list[LossTerm]:
        """Cross-entropy of the targets, a token mean."""
        logits = self.lm(self._read(batch.context), batch, "targets")
        return [LossTerm("ce", -logits.log_probs().sum(), logits.label.shape[0])]

    def _read(self, context: Context) -> Memory | Prefix | None:
        return self.lm.whole_prompt(context)


class NoPrompt(FullPrompt):
    """See NoPromptConfig."""

    def compress(self, context: Context) -> None:
        """Nothing."""
        return

    def _read(self, context: Context) -> None:
        return

    def num_memory_slots(self, context_tokens: int) -> int:
        """None."""
        return 0


class PromptTuning(CompressionModule):
    """See PromptTuningConfig."""

    method: PromptTuningConfig

    def build(self) -> None:
        """The prompts [tasks or 1, K, D]."""
        table, scale = token_table(self.lm.hf).weight.detach(), embedding_scale(token_table(self.lm.hf))
        shared = self.method.share == "shared"
        if not shared and not self.task_names:
            raise ConfigError("method.share = 'per_task': the data names no tasks; use method.share=shared")
        shape = (1 if shared else len(self.task_names), self.method.num_slots)
        if self.method.slot_init == "vocabulary":
            prompts = table[torch.randint(0, table.shape[0], shape)] * scale
        else:
            prompts = torch.randn(*shape, table.shape[1], dtype=table.dtype, device=table.device) * (0.02 * scale)
        self.prompts = nn.Parameter(prompts)

    def compress(self, context: Context) -> SoftPrompt:
        """The prompt of each context's task, whatever the context says."""
        row = torch.zeros_like(context.task) if self.method.share == "shared" else context.task
        if (last := int(row.max())) >= self.prompts.shape[0]:
            known = self.prompts.shape[0]
            raise ConfigError(f"task {last} has no prompt, only the {known} tasks of training have; use share=shared")
        embeds = self.prompts[row]
        return SoftPrompt(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device))

    @property
    def export_formats(self) -> tuple[ExportFormat, ...]:
        """peft knows soft prompts."""
        return ("peft", "tensors")

    def num_memory_slots(self, context_tokens: int) -> int:
        """The prompt's length, whatever the context's."""
        return self.method.num_slots

    def counts(self, batch: Batch) -> Counts:
        """Scored tokens."""
        return {"ce": self.lm.scored_tokens(batch).sum()}

    def losses(self, batch: Batch) -> list[LossTerm]:
        """Cross-entropy of the targets, a token mean."""
        logits = self.lm(self.compress(batch.context), batch, "targets")
        return [LossTerm("ce", -logits.log_probs().sum(), logits.label.shape[0])]
