"""Truncation: the context's first tokens, its last ones, or half of either."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from promptcomp.rivals.rival import TextRival

if TYPE_CHECKING:
    from torch import Tensor

    from promptcomp.batch import Context


class Truncate(TextRival):
    """As much of a context as the budget holds, wherever that ends."""

    title: ClassVar[str] = "truncated"

    name: Literal["truncate"] = "truncate"
    keeps: Literal["head", "tail", "both"] = "tail"
    """head: the first tokens; tail: the last ones, next to the query; both: the larger half first, the other last."""

    @property
    def row(self) -> str:
        """See Rival."""
        return f"truncate_{self.keeps}"

    @property
    def label(self) -> str:
        """See Rival."""
        return f"{self.title} ({self.keeps})"

    def keep(self, context: Context, budget: Tensor) -> Tensor:
        """See TextRival."""
        from_start = context.mask.long().cumsum(-1) - 1
        from_end = context.mask.sum(-1, keepdim=True) - from_start - 1
        first = {"head": budget, "tail": budget * 0, "both": (budget + 1) // 2}[self.keeps]
        return (from_start < first[:, None]) | (from_end < (budget - first)[:, None])
