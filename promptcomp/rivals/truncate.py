"""Truncation: the context's first tokens, its last ones, or half of either."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from promptcomp.rivals.rival import Reading, TextRival

if TYPE_CHECKING:
    from torch import Tensor


class Truncate(TextRival):
    """As much of a context as the budget holds, wherever that ends."""

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
