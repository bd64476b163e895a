"""A memory whose tensors are parameters, and how far an LM behind it is from the LM behind the whole context.

The distance is the KL divergence over classes: the T tokens that the full context makes likeliest, and all others as
one more (`class_divergence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from promptcomp.batch import Batch, Context, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.language_model import LanguageModel, at_least_float32
from promptcomp.lightning_modules.objective import class_divergence
from promptcomp.memory import KVCache, Memory, SoftPrompt

LIKELIEST = 64
"""Tokens of the LM's prediction that are classes of their own."""


class TeacherAnswer(NamedTuple):
    """What the LM answers to a question behind the whole context, and what it predicts at the P positions of that."""

    query: tuple[int, ...]
    labels: tuple[int, ...]
    """P tokens; where the answer has ended, the last one ends it."""
    top: Tensor
    """[P, T] the likeliest tokens."""
    log_probs: Tensor
    """[P, T + 1] of these, and of all others together; float32."""


class Agreement(NamedTuple):
    """How far a memory is from the whole context."""

    kl: float
    """Nats a position."""
    top1: float
    """Share of positions with the same likeliest token."""
    exact: float
    """Share of answers that would be the same to their end."""


class Cartridge(nn.Module):
    """k slots of one context: keys and values of every layer (those at position 0 stay as they are), or vectors.

    Position 0 is where attention goes that is meant for nothing; the paper freezes it too.

    Args:
        start: the memory to start with, one row; kept in at least float32.
        dtype: of the memory that is given to the LM.
    """

    def __init__(self, start: KVCache | SoftPrompt, dtype: torch.dtype) -> None:
        super().__init__()
        self._start, self._dtype = start.map(lambda tensor: tensor.detach().clone()), dtype
        if isinstance(start, SoftPrompt):
            trained: list[Tensor] = [start.embeds]
        else:
            trained = [tensor[:, :, 1:] for layer in start.layers for tensor in layer]
        self.slots = nn.ParameterList([nn.Parameter(at_least_float32(tensor).detach().clone()) for tensor in trained])

    def memory(self) -> KVCache | SoftPrompt:
        """The slots as they are now, with gradients."""
        start, now = self._start, [tensor.to(self._dtype) for tensor in self.slots]
        if isinstance(start, SoftPrompt):
            return SoftPrompt(now[0], start.mask)
        whole = [
            torch.cat([first[:, :, :1], rest], 2)
            for first, rest in zip((tensor for layer in start.layers for tensor in layer), now, strict=True)
        ]
        return KVCache(tuple(zip(whole[::2], whole[1::2], strict=True)), start.mask, start.next_position)


def bos_slots(lm: LanguageModel, kind: str) -> int:
    """How many of a cartridge's slots are a BOS that the LM reads first: in front of vectors it stands by itself."""
    return lm.num_bos if kind == "kv" else 0


@torch.no_grad()
def first_slots(lm: LanguageModel, ids: Sequence[int], slots: int, kind: str) -> KVCache | SoftPrompt:
    """What a cartridge of so many slots starts with: the context's first tokens, a BOS that the LM reads among them."""
    row = torch.tensor([list(ids[: slots - bos_slots(lm, kind)])], device=lm.hf.device)
    mask = torch.ones_like(row, dtype=torch.bool)
    if kind == "embeddings":
        return SoftPrompt(lm.embed(row), mask)
    memory = lm.encode(Context(row, mask, row.new_zeros(1)))
    assert isinstance(memory, KVCache)
    return memory


def divergence(lm: LanguageModel, memory: Memory | None, answers: Sequence[TeacherAnswer]) -> tuple[Tensor, Tensor]:
    """The KL divergence summed over all positions of some answers, and whether the likeliest tokens agree, bool [P]."""
    logits = lm(memory, as_batch(answers).to(lm.hf.device), "targets")
    values = logits.values[logits.predictor]
    teacher = torch.cat([answer.log_probs for answer in answers]).to(values.device)
    top = torch.cat([answer.top for answer in answers]).to(values.device, torch.long)
    return class_divergence(values, teacher, top), values.argmax(-1) == logits.label


def as_batch(answers: Sequence[TeacherAnswer]) -> Batch:
    """Questions with their answers as targets, behind one context (which is not read)."""
    queries = tuple(EncodedQuery(answer.query, (EncodedTarget(answer.labels),)) for answer in answers)
    return collate([EncodedContext((), queries)])


@torch.no_grad()
def agreement(lm: LanguageModel, memory: Memory | None, answers: Sequence[TeacherAnswer], batch_size: int) -> Agreement:
    """How far an LM behind a memory is from itself behind the whole context.

    The same token at every position of an answer is the same greedy answer, so nothing has to be generated.
    """
    total, same, exact, positions = 0.0, 0, 0, 0
    ordered = sorted(answers, key=lambda answer: len(answer.query) + len(answer.labels))  # little padding
    for start in range(0, len(ordered), batch_size):
        part = ordered[start : start + batch_size]
        kl, agrees = divergence(lm, memory, part)
        total += float(kl)
        same += int(agrees.sum())
        exact += sum(bool(each.all()) for each in agrees.split([len(answer.labels) for answer in part]))
        positions += len(agrees)
    return Agreement(total / positions, same / positions, exact / len(answers))
