"""Mean pooling of the context's embeddings [B, C, D] into k slots [B, k, D], with a trained linear map."""

import torch
from mean_pool_config import MeanPoolConfig
from torch import nn

from promptcomp.batch import Context
from promptcomp.language_model import token_table
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.memory import SoftPrompt


class MeanPool(CompressionModule):
    """See MeanPoolConfig."""

    method: MeanPoolConfig

    def build(self) -> None:
        weight = token_table(self.lm.hf).weight
        self.linear = nn.Linear(weight.shape[1], weight.shape[1], dtype=weight.dtype, device=weight.device)
        nn.init.eye_(self.linear.weight)

    def compress(self, context: Context) -> SoftPrompt:
        place, length = context.mask.cumsum(-1) - 1, context.mask.sum(-1, keepdim=True).clamp(min=1)
        slot = (place.clamp(min=0) * self.method.num_slots) // length
        share = nn.functional.one_hot(slot, self.method.num_slots) * context.mask[..., None]  # [B, C, k]
        embeds = token_table(self.lm.hf)(context.ids)
        mean = share.to(embeds).mT @ embeds / share.sum(1)[..., None].clamp(min=1)
        return SoftPrompt(self.linear(mean), torch.ones(mean.shape[:2], dtype=torch.bool, device=mean.device))

    def num_memory_slots(self, context_tokens: int) -> int:
        return self.method.num_slots
