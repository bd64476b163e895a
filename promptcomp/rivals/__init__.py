"""Rivals: what a learned memory is compared with at the same budget, beside no prompt and the full prompt.

A rival is a section of `evaluation.rivals` that makes a memory of a context without any training. No file needs torch
to be imported.
"""

from promptcomp.rivals.attention_matching import AttentionMatching
from promptcomp.rivals.control_memories import RandomSlots, Shuffled
from promptcomp.rivals.evict import Evict
from promptcomp.rivals.kept_tokens import DropTokens, FewerDemonstrations, LLMLingua2, Truncate
from promptcomp.rivals.quantize import Quantize
from promptcomp.rivals.rival import NotMet, Reading, Rival, Setting

__all__ = ["RIVALS", "NotMet", "Reading", "Rival", "Setting"]

RIVALS: tuple[type[Rival], ...] = (
    Truncate,
    FewerDemonstrations,
    DropTokens,
    LLMLingua2,
    Evict,
    AttentionMatching,
    Quantize,
    Shuffled,
    RandomSlots,
)
