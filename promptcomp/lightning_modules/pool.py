"""Mean pooling: means of an encoder's states over equal spans as soft prompts for a frozen LM.

Feldman and Artzi 2025, https://arxiv.org/abs/2510.20797, find it ahead of learned compression tokens in question
answering, and Deng et al. 2025, https://arxiv.org/abs/2504.08934, ahead of gist tokens on long contexts.

An encoder reads the context x_1 ... x_n; h_i is its final state at x_i. With k = num_slots and m = min(k, n), slot
j = 1 ... m is W mean{h_i : floor((i - 1) m / n) = j - 1} + b: spans of floor(n/m) or ceil(n/m) tokens, in order. The
slots stand in front of the query's embeddings. A context shorter than k keeps a slot for each of its tokens.

Deviations: the papers fix the tokens of a span (4, 8, 16, ...), here the number of slots is fixed, so that methods are
compared at equal positions; the LM that answers is frozen (the papers train it as well); W starts as a multiple of the
identity where the widths are equal, as a frozen LM cannot get used to vectors of another length.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from promptcomp.batch import Context
from promptcomp.checkpoints.trained_state import Origin
from promptcomp.lightning_modules.encoder_config import PoolConfig
from promptcomp.lightning_modules.encoder_module import EncoderModule
from promptcomp.memory import SoftPrompt


class Pool(EncoderModule):
    """See the module docstring."""

    method: PoolConfig

    def origin(self) -> Origin:
        """With the number of slots, which no trained tensor shows."""
        return super().origin().model_copy(update={"num_slots": self.method.num_slots})

    def compress(self, context: Context) -> SoftPrompt:
        """The projected means of each context's spans."""
        states = self.encoder.states(self.prefix(context))[:, self.encoder.num_bos :]
        member, mask = spans(context.mask, self.num_slots)
        means = member.to(states.dtype) @ states / member.sum(-1, keepdim=True).clamp(min=1)
        return SoftPrompt(self.projection(means), mask)

    def num_memory_slots(self, context_tokens: int) -> int:
        """k, or as many as there are tokens."""
        return min(self.num_slots, context_tokens)


def spans(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which slot each token of left-padded contexts [G, C] belongs to: 0 or 1 [G, K, C], and the slots' mask [G, K].

    There are `count` spans, or as many as the longest context has tokens; the last slots of a row are its real ones.
    """
    length = mask.sum(-1, keepdim=True)
    count = min(count, mask.shape[1])
    slots = length.clamp(max=count)
    place = mask.long().cumsum(-1) - 1
    slot = count - slots + (place * slots).div(length.clamp(min=1), rounding_mode="floor")
    member = F.one_hot(slot.clamp(min=0, max=max(count - 1, 0)), max(count, 1))[..., :count].mT * mask[:, None]
    return member, torch.arange(count, device=mask.device) >= count - slots
