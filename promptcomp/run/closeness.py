"""How close the LM behind a memory is to the LM behind the full prompt, measured where it is scored anyway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from promptcomp.batch import Batch
from promptcomp.evaluation.predictions import GoldSums
from promptcomp.language_model.parts import Logits, at_least_float32

_CHUNK_VALUES = 1 << 25
"""Log probabilities that are held at a time."""


@dataclass(slots=True)
class Closeness:
    """Sums over the gold tokens of every example, batch by batch; one object for one split.

    The positions are those that `loss` is computed at.
    """

    gold: Mapping[int, int]
    """Example -> index of the right option."""
    collected: dict[str, GoldSums] = field(default_factory=dict)
    _full: Tensor | None = None
    """Logits [E, V] of the full prompt at the gold tokens of the batch."""

    def add(self, row: str, logits: Logits, batch: Batch, *, is_full: bool) -> None:
        """Take in what a row predicts; of every batch the full prompt comes first.

        Args:
            row: its name.
            logits: of the batch, "targets".
            batch: the batch.
            is_full: this row is the full prompt.
        """
        gold = torch.tensor([self.gold[number] for number in batch.example.tolist()])
        is_gold = batch.choice == gold.to(batch.choice)
        target_of, order = logits.target_of.sort(stable=True)  # whatever rows the targets were packed in
        kept = is_gold[target_of]
        own, target_of = logits.values[logits.predictor[order[kept]]], target_of[kept]
        if is_full:
            self._full = own
        assert self._full is not None
        sums = [own.new_zeros(len(gold), dtype=torch.float64) for _ in range(2)]
        for total, values in zip(sums, closeness(own, self._full), strict=True):
            total.index_add_(0, target_of, values.double())
        numbers = batch.example[is_gold].tolist()
        pairs = zip(*(total[is_gold].tolist() for total in sums), strict=True)
        self.collected.setdefault(row, {}).update(zip(numbers, pairs, strict=True))


def closeness(own: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
    """KL(full || own) in nats [E], and whether both have the same likeliest token [E] (0 or 1), for logits [E, V]; both
    are NaN where one of them is."""
    nats, same = [], []
    step = max(1, _CHUNK_VALUES // max(1, own.shape[-1]))
    for mine, theirs in zip(own.split(step), full.split(step), strict=True):
        log_own, log_full = (at_least_float32(each).log_softmax(-1) for each in (mine, theirs))
        known = ~(log_own.isnan() | log_full.isnan()).any(-1)
        terms = log_full.exp() * (log_full - log_own)
        sums = terms.where(log_full > -torch.inf, 0.0).sum(-1).clamp(min=0)  # 0 log 0 = 0; below 0 by rounding
        nats.append(sums.where(known, torch.nan))
        same.append((mine.argmax(-1) == theirs.argmax(-1)).to(sums).where(known, torch.nan))
    return torch.cat(nats), torch.cat(same)
