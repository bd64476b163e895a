"""Running accuracy of option scoring, right under DDP."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import MeanMetric


class OptionAccuracy(MeanMetric):
    """Share of examples whose best-scored option is the gold one; NaN before the first update.

    All options of an example must come in one update, and no two of them are one label (datamodules refuse such rows).
    Ties go to the first option; a score that is not a number never wins. Counts are summed over ranks, so the value
    does not depend on the world size.
    """

    def update(  # type: ignore[override]
        self, scores: Tensor, example: Tensor, choice: Tensor, gold: Tensor
    ) -> None:
        """Add the targets of a batch.

        Args:
            scores: score of each target, for example its mean log probability [M].
            example: number of the example that each target belongs to [M].
            choice: which option of its example each target is [M].
            gold: the gold option of each target's example [M].
        """
        chosen, right = best_choice(scores, example, choice, gold)
        super().update((chosen == right).float())


def best_choice(scores: Tensor, example: Tensor, choice: Tensor, gold: Tensor) -> tuple[Tensor, Tensor]:
    """Best-scored and gold option of each example, in the order of the examples' numbers: two [E] tensors.

    The best option is -1 when no option of an example has a finite score.
    """
    numbers, row = example.unique(return_inverse=True)  # [E], [M]
    values = scores.float().masked_fill(~scores.isfinite(), -torch.inf)
    best = values.new_full((len(numbers),), -torch.inf).scatter_reduce(0, row, values, "amax")
    never = torch.iinfo(torch.long).max
    wins = (values == best[row]) & values.isfinite()
    candidates = choice.masked_fill(~wins, never)
    chosen = torch.full_like(numbers, never).scatter_reduce(0, row, candidates, "amin")
    right = torch.zeros_like(numbers).scatter(0, row, gold)
    return chosen.masked_fill(chosen == never, -1), right
