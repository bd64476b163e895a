"""MetaICL: fine-tuning the LM to learn in context (Min et al., NAACL 2022, https://arxiv.org/abs/2110.15943).

The LM reads k demonstrations of a task and a query, and the cross-entropy of the answer trains all of its weights.
The paper averages over the tokens of each answer first and then over answers (`loss_average: sequence`).
"""

from __future__ import annotations

from typing import Literal

import torch

from promptcomp.batch import Batch, Context
from promptcomp.lightning_modules.adapters import LMTraining
from promptcomp.lightning_modules.base import CompressionModule, Counts, LossTerm, MethodConfig
from promptcomp.memory import Memory


class MetaICLConfig(MethodConfig):
    """MetaICL: the LM itself is fine-tuned on full demonstrations; nothing is compressed."""

    name: Literal["metaicl"] = "metaicl"
    loss_average: Literal["sequence", "token"] = "sequence"
    """sequence: each answer counts the same (MetaICL); token: each answer token does (MEND's baseline)."""


class MetaICL(CompressionModule):
    """See the module docstring."""

    method: MetaICLConfig

    @property
    def lm_training(self) -> LMTraining:
        """All weights."""
        return "lm"

    def compress(self, context: Context) -> Memory | None:
        """The context itself, read by the weights of the moment."""
        return self.lm.encode(context)

    def num_memory_slots(self, context_tokens: int) -> int:
        """Every token of the context."""
        return context_tokens

    def counts(self, batch: Batch) -> Counts:
        """Answers or their tokens."""
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
