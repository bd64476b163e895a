"""What stands beside a cartridge on the held-out questions: other texts in the text's place, and rivals, which need no
training, at as many slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from promptcomp.batch import Context, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.config import ConfigError
from promptcomp.distilling.cartridge import Agreement, bos_slots, first_slots
from promptcomp.language_model import LanguageModel
from promptcomp.language_model.rotating import counted
from promptcomp.memory import KVCache, Memory, SoftPrompt
from promptcomp.rivals import NotMet, Reading, Rival, Setting
from promptcomp.rivals.attention_matching import AttentionMatching
from promptcomp.rivals.evict import Evict
from promptcomp.rivals.kept_tokens import DropTokens, Truncate
from promptcomp.rivals.quantize import Quantize

_TRIED = 16
"""Tokens that are read behind the moved keys, to see that these do what they did."""
_ROUNDING = 1e-6
"""Nats a position that are none: such a text changes no prediction, and there is no distance to close."""
_SAME = 0.05
"""How far predictions may move with the keys, in KL, as a share of the way to those behind nothing. It is 0 but for
rounding, which in 16 bits is up to 0.01, where logits are apart by as much as behind keys that are turned wrongly."""


class Start(NamedTuple):
    """What the training of a cartridge starts with."""

    name: str
    """Of its row."""
    memory: KVCache | SoftPrompt
    reads: int = 0
    """How often the text was read for it."""
    instead: str | None = None
    """Why it is not attention matching, where it was to be."""


@dataclass
class Beside:
    """Measures what is compared with cartridges of one text.

    Args:
        lm: in eval mode.
        context: the whole text, one row.
        texts: other texts by their names, tokenised as it is.
        rivals: whether rivals are measured, beside the text's first and last tokens.
        measure: the agreement of a memory with the whole text on the held-out questions.
    """

    lm: LanguageModel
    context: Context
    texts: Mapping[str, Context]
    rivals: bool
    measure: Callable[[Memory | None], Agreement]
    missing: dict[str, str] = field(default_factory=dict)
    """Rows that could not be made, and why."""

    def __post_init__(self) -> None:
        self._none = self.measure(None)
        self._once: dict[str, dict[str, float] | None] = {}
        self._reading = Reading(self.lm, self.context, None)
        self._setting = Setting(lambda context: None, self.context)

    def row(self, memory: Memory | None, found: Agreement, held: float | None = None) -> dict[str, float]:
        """An agreement with the share of the distance between no context and the whole text that is gone (where there
        is one), the slots, and the bytes of keys and values (`held`: those that are allocated instead)."""
        return {
            **self._kept(found),
            "slots": 0.0 if memory is None else float(memory.num_slots.double().mean()),
            "bytes": self.lm.kv_bytes(memory) if held is None else held,
        }

    def bounds(self) -> tuple[dict[str, float], dict[str, float]]:
        """No context, and the whole text."""
        positions = float(self.context.mask.sum() + self.lm.num_bos)
        taken = {"slots": positions, "bytes": positions * self.lm.cost.kv_bytes_per_token}
        return self.row(None, self._none), {**self._kept(Agreement(0.0, 1.0, 1.0)), **taken}

    def _kept(self, found: Agreement) -> dict[str, float]:
        gap = {"gap_closed": 1.0 - found.kl / self._none.kl} if self._none.kl > _ROUNDING else {}
        return {**found._asdict(), **gap}

    def start(self, slots: int, kind: str, wanted: str) -> Start:
        """What a cartridge of so many slots starts with (`DistillOptions.kind` and `start`).

        Raises:
            ConfigError: attention matching is asked for, and this LM's cache cannot be matched.
        """
        why = None
        if kind == "kv" and wanted != "first":
            try:
                return self.matched(slots)
            except NotMet as reason:
                if wanted == "matching":
                    raise ConfigError(f"--start matching: {reason}; give --start first") from None
                why = str(reason)
        first = first_slots(self.lm, self.context.ids[0].tolist(), slots, kind)
        return Start(f"first {slots} tokens", first, instead=why)

    @torch.no_grad()
    def matched(self, slots: int) -> Start:
        """The text's attention matching with so many slots, at positions 0 .. slots - 1; it reads the text twice.

        Raises:
            NotMet: the LM's cache cannot be matched, or its positions are absolute.
        """
        rival = AttentionMatching(slots=slots - bos_slots(self.lm, "kv"))
        memory = rival.memory(self._reading, self._setting).memory
        assert isinstance(memory, KVCache)
        try:
            moved = counted(self.lm.body, memory, "attention matching")
        except ConfigError as reason:
            raise NotMet(str(reason)) from None
        ids = tuple(self.context.ids[0, :_TRIED].tolist())
        batch = collate([EncodedContext((), (EncodedQuery(ids, (EncodedTarget(ids),)),))]).to(self.lm.hf.device)
        found = (self.lm(each, batch, "targets").values.float().log_softmax(-1) for each in (memory, moved, None))
        before, after, none = found
        lost, all_of_it = ((before.exp() * (before - other)).sum() for other in (after, none))
        if lost > _SAME * all_of_it:
            raise NotMet("this LM turns its keys in a way of its own")
        return Start(rival.label, moved, 2)

    def rivals_of(self, slots: int, kind: str) -> dict[str, Rival]:
        """What is compared with a cartridge of so many slots of a kind, by the names of the rows.

        Where a BOS is the only slot, nothing has as many.
        """
        found: dict[str, Rival] = {}
        if kept := slots - bos_slots(self.lm, kind):
            found |= {
                f"first {slots} tokens": Truncate(keeps="head", slots=kept),
                f"last {slots} tokens": Truncate(keeps="tail", slots=kept),
            }
            found |= {rival.label: rival for rival in _with_slots(kept) if self.rivals}
        return found | {rival.label: rival for rival in _OF_ANY_SIZE if self.rivals}

    @torch.no_grad()
    def rows(self, rivals: Mapping[str, Rival]) -> Iterator[tuple[str, dict[str, float] | None]]:
        """Names and rows of these and of the other texts; None: `missing`."""
        for name, rival in rivals.items():
            if name not in self._once:
                self._once[name] = self._of_rival(name, rival)
            yield name, self._once[name]
        for name, context in self.texts.items():
            if name not in self._once:
                memory = self.lm.encode(context)
                self._once[name] = self.row(memory, self.measure(memory))
            yield name, self._once[name]

    def _of_rival(self, name: str, rival: Rival) -> dict[str, float] | None:
        try:
            made = rival.memory(self._reading, self._setting)
        except NotMet as reason:
            self.missing[name] = str(reason)
            return None
        held = None if made.held is None else float(made.held.sum())
        return self.row(made.memory, self.measure(made.memory), held)


_OF_ANY_SIZE: tuple[Rival, ...] = (Quantize(bits=8), Quantize(bits=4))
"""Rivals without a budget."""


def _with_slots(slots: int) -> list[Rival]:
    return [
        Truncate(keeps="both", slots=slots),
        DropTokens(slots=slots),
        *(Evict(score=score, slots=slots) for score in ("streaming", "knorm", "snapkv", "kvzip")),
        AttentionMatching(slots=slots),
    ]
