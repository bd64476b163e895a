"""A part of a context's tokens: its first or last ones, or those that an LM does not expect.

The latter is Selective Context (Li et al. 2023, arXiv 2310.06201). The paper drops phrases; here it is single tokens,
of the same LM that reads what is left. At random: the control that a choice of tokens has to beat.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, ClassVar, Literal

from promptcomp.rivals.rival import Reading, TextRival, best

if TYPE_CHECKING:
    from torch import Tensor


class Truncate(TextRival):
    """As much of one end of a context, or of both, as the budget holds."""

    title: ClassVar[str] = "truncated"

    name: Literal["truncate"] = "truncate"
    keeps: Literal["head", "tail", "both"] = "tail"
    """head: the first tokens; tail: the last ones, next to the query; both: the larger half first, the other last."""

    @property
    def _kind(self) -> str:
        return self.keeps

    def keep(self, reading: Reading, budget: Tensor) -> Tensor:
        """See TextRival."""
        mask = reading.tokens.mask
        from_start = mask.long().cumsum(-1) - 1
        from_end = mask.sum(-1, keepdim=True) - from_start - 1
        first = {"head": budget, "tail": budget * 0, "both": (budget + 1) // 2}[self.keeps]
        return (from_start < first[:, None]) | (from_end < (budget - first)[:, None])


class DropTokens(TextRival):
    """Single tokens within the budget, in their order."""

    title: ClassVar[str] = "dropped tokens"
    paper: ClassVar[str] = "Li et al. 2023, arXiv 2310.06201"

    name: Literal["drop_tokens"] = "drop_tokens"
    keeps: Literal["surprising", "random"] = "surprising"
    """surprising: the tokens that the LM expects least after those before them; random: drawn from `seed` and the
    context's tokens alone."""
    seed: int = 0
    """Seed of the random choice."""

    @property
    def _kind(self) -> str:
        return self.keeps

    def keep(self, reading: Reading, budget: Tensor) -> Tensor:
        """See TextRival."""
        import torch

        mask = reading.tokens.mask
        if self.keeps == "surprising":
            return best(reading.surprisal, mask, budget)
        scores = torch.zeros(mask.shape, device=mask.device)
        for row, ids in enumerate(reading.tokens.ids):
            own = ids[mask[row]].tolist()
            drawn = random.Random(f"{self.seed} {own}")
            scores[row][mask[row]] = scores.new_tensor([drawn.random() for _ in own])
        return best(scores, mask, budget)
