"""The rows of rivals on a split: their memories, and what these take."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from promptcomp.batch import Batch, collate
from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import ContextDataModule
from promptcomp.datamodules.sampler import EvalPart
from promptcomp.evaluation import memory_cost as cost
from promptcomp.evaluation.results import RivalResult
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.memory import Memory
from promptcomp.rivals import NotMet, Reading, Rival, Setting
from promptcomp.rivals.rival import Made

OTHERS = 8
"""Contexts of a split whose memories stand in for those of others (the control `shuffled`)."""


Behind = tuple[Memory | None, Batch]
"""A memory, and the batch that is answered behind it: a memory for each context, or of query-aware rivals for each
query."""


@dataclass(slots=True)
class Rivals:
    """Makes the memories of rivals, and sums up what they take."""

    asked: tuple[Rival, ...]
    setting: Setting
    sums: dict[str, dict[str, float]] = field(default_factory=dict)
    """Row -> memories, and over all of them what a RivalResult says of slots and bytes."""
    missing: dict[str, str] = field(default_factory=dict)
    """Row -> why there is none."""

    def memories(self, reading: Reading, batch: Batch, new: Tensor | None) -> dict[str, Behind]:
        """Row -> the memory of a batch's contexts, of those that can be made.

        What they take is added up of the contexts `new` [n] alone, which no earlier batch had, or of all queries where
        memories see these; None: of nothing.
        """
        made: dict[str, Behind] = {}
        for rival in self.asked:
            if rival.row in self.missing:
                continue
            read, behind = reading, batch
            own = torch.arange(len(batch.context_of), device=batch.context_of.device)
            if rival.sees_queries:
                read = reading.of_queries(batch)
                behind = replace(batch, context=read.tokens, teacher_context=read.tokens, context_of=own)
            try:
                found = rival.memory(read, self.setting)
            except (NotMet, ConfigError) as reason:  # one row is missing, not the evaluation
                self.missing[rival.row] = str(reason)
                continue
            if new is not None and len(counted := own if rival.sees_queries else new):
                self._add(rival, read, found, counted)
            made[rival.row] = found.memory, behind
        return made

    def _add(self, rival: Rival, reading: Reading, made: Made, rows: Tensor) -> None:
        lm, count = reading.lm, len(rows)
        memory = None if made.memory is None else made.memory.rows(rows)
        bos = count * lm.num_bos if rival.keeps_bos and memory is not None else 0
        sums = self.sums.setdefault(rival.row, defaultdict(float))
        sums["memories"] += count
        sums["slots"] += 0 if memory is None else int(memory.num_slots.sum()) - bos
        held = None if made.held is None else int(made.held[rows].sum())
        sums["kv_bytes"] += lm.kv_bytes(memory) * count if held is None else held
        sums["stored_bytes"] += cost.memory_bytes(memory) * count if held is None else held
        for name, budget in zip(("asked_slots", "asked_bytes"), rival.asked(reading), strict=True):
            if budget is not None:
                sums[name] += float(budget[rows].sum())

    def results(self) -> dict[str, RivalResult]:
        """Row -> what is known of it but its scores."""
        found = {}
        for rival in self.asked:
            sums = self.sums.get(rival.row, {})
            missing = "" if sums.get("slots") else "nothing of any context fits the budget"
            means = {name: value / sums["memories"] for name, value in sums.items() if name != "memories"}
            found[rival.row] = RivalResult(
                title=rival.label,
                query_aware=rival.sees_queries,
                is_control=rival.is_control,
                missing=self.missing.get(rival.row, missing),
                **means,
            )
        return found


def rivals_on(
    split: str, asked: tuple[Rival, ...], module: CompressionModule, datamodule: ContextDataModule
) -> Rivals | None:
    """The rivals that are asked for, on one split; None where none are.

    Raises:
        ConfigError: a split whose contexts are all the same has no other context for `shuffled`.
    """
    if not asked:
        return None
    contexts = datamodule.eval_contexts(split)
    step = max(1, len(contexts) // (2 * OTHERS))
    rows = [contexts.encode(EvalPart(number, 0, 1)) for number in range(0, len(contexts), step)]
    others = list({row.ids: row for row in rows}.values())[:OTHERS]
    if len(others) < 2 and any(rival.row == "shuffled" for rival in asked):
        raise ConfigError(f"evaluation.rivals: shuffled needs two different contexts, and split {split!r} has one")
    return Rivals(asked, Setting(module.compress, collate(others).to(module.device).context))
