"""Controls: the bounds of every result (full prompt, no prompt) and soft prompts without a compressor.

Full prompt and no prompt serve untrained, as the bounds of a frozen LM, and as the matched controls of a method that
trains the LM (`method.train=lm` or `lora`; the controls of Mu et al. 2023, arXiv 2304.08467).
Prompt tuning: Lester, Al-Rfou, Constant 2021, https://arxiv.org/abs/2104.08691; per task or one prompt for all tasks,
as MEND's baselines have it. A task that was not trained on has only its initial prompt in the per-task form.
MetaICL: Min et al., NAACL 2022, https://arxiv.org/abs/2110.15943. The LM reads k demonstrations of a task and a query,
and the cross-entropy of the answer trains all of its weights. The paper averages over the tokens of each answer first
and then over answers (`loss_average: sequence`).
"""

from __future__ import annotations

import torch
from torch import nn

from promptcomp.batch import Batch, Context
from promptcomp.checkpoints.trained_state import Origin
from promptcomp.config import ConfigError
from promptcomp.language_model import token_table
from promptcomp.language_model.parts import initial_vectors
from promptcomp.lightning_modules.base import CompressionModule, Counts, LossTerm, WholeContext
from promptcomp.lightning_modules.controls_config import MetaICLConfig, PromptTuningConfig
from promptcomp.memory import SoftPrompt


class FullPrompt(WholeContext):
    """See FullPromptConfig."""


class NoPrompt(CompressionModule):
    """See NoPromptConfig."""

    def compress(self, context: Context) -> None:
        """No trainable parts."""
        return

    def num_memory_slots(self, context_tokens: int) -> int:
        """No slots."""
        return 0


class PromptTuning(CompressionModule):
    """See PromptTuningConfig."""

    method: PromptTuningConfig

    def build(self) -> None:
        """The prompts [tasks or 1, K, D]."""
        shared = self.method.share == "shared"
        if not shared and not self.task_names:
            raise ConfigError("method.share = 'per_task': the data names no tasks; use method.share=shared")
        shape = (1 if shared else len(self.task_names), self.method.num_slots)
        self.prompts = nn.Parameter(initial_vectors(token_table(self.lm.hf), shape, self.method.slot_init, 0.02))

    def origin(self) -> Origin:
        """With the tasks of the prompts, whose order no tensor shows."""
        tasks = self.task_names if self.method.share == "per_task" else None
        return super().origin().model_copy(update={"tasks": tasks})

    def compress(self, context: Context) -> SoftPrompt:
        """The prompt of each context's task, whatever the context says."""
        row = torch.zeros_like(context.task) if self.method.share == "shared" else context.task
        if (last := int(row.max())) >= self.prompts.shape[0]:
            known = self.prompts.shape[0]
            raise ConfigError(f"task {last} has no prompt, only the {known} tasks of training have; use share=shared")
        embeds = self.prompts[row]
        return SoftPrompt(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device))

    def num_memory_slots(self, context_tokens: int) -> int:
        """The prompt's length, whatever the context's."""
        return self.method.num_slots


class MetaICL(WholeContext):
    """See MetaICLConfig."""

    method: MetaICLConfig

    def counts(self, batch: Batch) -> Counts:
        """Number of answers or of answer tokens."""
        scored = self.lm.scored_tokens(batch)
        return {"ce": scored.sum() if self.method.loss_average == "token" else (scored > 0).sum()}

    def losses(self, batch: Batch) -> list[LossTerm]:
        """Cross-entropy of the answers."""
        logits = self.lm(self.compress(batch.context), batch, "targets")
        nll = -logits.log_probs()
        if self.method.loss_average == "token":
            return [LossTerm("ce", nll.sum(), nll.shape[0])]
        count = torch.bincount(logits.target_of, minlength=batch.target_ids.shape[0])
        return [LossTerm("ce", (nll / count[logits.target_of]).sum(), (count > 0).sum())]
