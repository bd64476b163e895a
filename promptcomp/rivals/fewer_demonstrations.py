"""Fewer demonstrations: as many whole ones as the budget holds.

Chen et al. 2025, https://arxiv.org/abs/2510.16092, find that at the same budget fewer shots are hard to beat by prompt
compression. Demonstrations stay as they are written, in the order of the context; which ones stay does not depend on
the query.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, ClassVar, Literal

from promptcomp.rivals.rival import TextRival

if TYPE_CHECKING:
    from torch import Tensor

    from promptcomp.batch import Context


class FewerDemonstrations(TextRival):
    """Whole demonstrations within the budget: each that still fits, in the order that `choose` says."""

    title: ClassVar[str] = "fewer demonstrations"
    paper: ClassVar[str] = "Chen et al. 2025, arXiv 2510.16092"
    needs_demonstrations: ClassVar[bool] = True

    name: Literal["fewer_demonstrations"] = "fewer_demonstrations"
    choose: Literal["random", "first", "last"] = "random"
    """Which ones are tried first. random: an order drawn from `seed` and the context's tokens alone."""
    seed: int = 0
    """Seed of the random order."""

    @property
    def row(self) -> str:
        """See Rival."""
        return f"fewer_demonstrations_{self.choose}"

    @property
    def label(self) -> str:
        """See Rival."""
        return f"{self.title} ({self.choose})"

    def keep(self, context: Context, budget: Tensor) -> Tensor:
        """See TextRival."""
        import torch

        assert context.part is not None
        kept = torch.zeros_like(context.mask)
        for row, room in enumerate(budget.tolist()):
            part = context.part[row]
            lengths = part[context.mask[row]].bincount().tolist()
            for number in self._order(len(lengths), context.ids[row][context.mask[row]].tolist()):
                if 0 < lengths[number] <= room:
                    room -= lengths[number]
                    kept[row] |= part == number
        return kept

    def _order(self, count: int, ids: list[int]) -> list[int]:
        numbers = list(range(count))
        if self.choose == "random":
            random.Random(f"{self.seed} {ids}").shuffle(numbers)
        return numbers[::-1] if self.choose == "last" else numbers
