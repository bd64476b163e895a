"""The loss of one optimiser step: sums over all micro-batches and ranks, divided by counts over all of them.

A mean over the tokens of a step must not depend on how its examples are divided among devices and micro-batches. So the
counts of the whole step are added up (over this rank's micro-batches, then over the ranks) before its first backward
pass, and every micro-batch's sums are divided by them. Distances between distributions over tokens are therefore sums
over rows; they are taken in at least float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from promptcomp.language_model import Logits, at_least_float32


@dataclass(frozen=True, slots=True)
class LossTerm:
    """One part of the objective as a sum and a count, so that ranks of different size average correctly."""

    name: str
    total: Tensor
    """Sum over `count` items on this rank."""
    count: Tensor | int
    weight: float = 1.0


Counts = Mapping[str, Tensor | int]
"""Items behind each term of a micro-batch, by the term's name; the same names on every rank and micro-batch of a step,
0 where a micro-batch has no such items."""


def cross_entropy(name: str, logits: Logits, weight: float = 1.0) -> LossTerm:
    """The negative log likelihood of all scored tokens."""
    return LossTerm(name, -logits.log_probs().sum(), logits.label.shape[0], weight)


class StepObjective:
    """Sums and counts of one optimiser step.

    Args:
        counts: those of this rank's micro-batches.
        tokens: real tokens of each of them.
        world_size: ranks; with more than one, making the object is a collective.
        micro_batches: of a step, on every rank.
        device: of the sums.
    """

    def __init__(
        self,
        counts: Sequence[Counts],
        tokens: Sequence[Tensor],
        world_size: int,
        micro_batches: int,
        device: torch.device,
    ) -> None:
        self._names = list(counts[0])
        rows = [[*(each[name] for name in self._names), read] for each, read in zip(counts, tokens, strict=True)]
        numbers = [torch.stack([torch.as_tensor(n, device=device).long() for n in row]) for row in rows]
        whole = torch.stack(numbers).sum(0)
        if world_size > 1:
            torch.distributed.all_reduce(whole)
        self.tokens = whole[-1]
        """Real tokens of the step over all ranks, a scalar."""
        self._counts = dict(zip(self._names, whole[:-1].unbind(), strict=True))
        self._sums = torch.zeros(len(self._names) + 1, dtype=torch.float64 if device.type != "mps" else None)
        self._sums = self._sums.to(device)
        self._world_size, self._micro_batches = world_size, micro_batches

    def add(self, terms: Sequence[LossTerm]) -> Tensor:
        """What this micro-batch adds to the loss, times the ranks and micro-batches over which gradients are averaged.

        The factor is there because DDP and FSDP divide gradients by the ranks and Lightning by the micro-batches.
        """
        parts, averaged = [], self._world_size * self._micro_batches
        for term in terms:
            part = term.weight * term.total * (averaged / self._counts[term.name].to(term.total.dtype).clamp(min=1.0))
            parts.append(part)
            self._sums[self._names.index(term.name)] += term.total.detach()
        loss = torch.stack(parts).sum()
        self._sums[-1] += loss.detach() / averaged
        return loss

    def finish(self) -> dict[str, Tensor]:
        """The loss of the whole step ("loss") and the mean of each term; a collective with several ranks."""
        if self._world_size > 1:
            torch.distributed.all_reduce(self._sums)
        values = {"loss": self._sums[-1]}
        for name, total in zip(self._names, self._sums[:-1].unbind(), strict=True):
            values[name] = total / self._counts[name].clamp(min=1)
        return values

    def describe(self, values: Mapping[str, Tensor]) -> str:
        """The terms for a message."""
        return ", ".join(f"{name} {float(values[name]):g} over {int(self._counts[name])}" for name in self._names)


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Sum over the rows of KL(teacher || student) of logits [P, V], both divided by the temperature (no T^2)."""
    log_student = F.log_softmax(at_least_float32(student) / temperature, -1)
    log_teacher = F.log_softmax(at_least_float32(teacher) / temperature, -1)
    return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)


def class_log_probs(logits: Tensor, top: Tensor) -> Tensor:
    """Log probabilities [P, T + 1] of the tokens `top` [P, T], and of all others together, from logits [P, V]."""
    logits = at_least_float32(logits)
    others = logits.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, top), others], -1) - logits.logsumexp(-1, keepdim=True)


def class_divergence(student: Tensor, teacher: Tensor, top: Tensor) -> Tensor:
    """Sum over P positions of KL(teacher || student) over the classes, from a student's logits [P, V].

    A lower bound of the divergence over the vocabulary, and equal to it with one token less than that has.

    Args:
        student: logits.
        teacher: log probabilities [P, T + 1] of the classes.
        top: their tokens [P, T].
    """
    return F.kl_div(class_log_probs(student, top), teacher, reduction="sum", log_target=True)


def jensen_shannon(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
    """Sum over the rows of the generalised Jensen-Shannon divergence of logits [P, V].

    beta KL(p_T || M) + (1 - beta) KL(p_S || M) with M = beta p_T + (1 - beta) p_S, as in GKD (Agarwal et al., ICLR
    2024, https://arxiv.org/abs/2306.13649, equation 1). `beta` lies between 0 and 1.
    """
    log_student = F.log_softmax(at_least_float32(student) / temperature, -1)
    log_teacher = F.log_softmax(at_least_float32(teacher) / temperature, -1)
    mixed = torch.stack([log_teacher + math.log(beta), log_student + math.log1p(-beta)])
    log_middle = torch.logsumexp(mixed, 0)
    to_teacher = F.kl_div(log_middle, log_teacher, reduction="sum", log_target=True)
    to_student = F.kl_div(log_middle, log_student, reduction="sum", log_target=True)
    return beta * to_teacher + (1 - beta) * to_student


def mutual_information(label: Tensor, label_row: Tensor, rationale: Tensor, rationale_row: Tensor, rows: int) -> Tensor:
    """Sum over the examples of the cross-entropy that ties the rationale task to the label task.

    Chen et al., Findings of ACL 2024, https://arxiv.org/abs/2403.03348, in the form of their code: P and Q are the
    maxima over an example's target positions of softmax(logits) of the label and of the rationale task, P without a
    gradient; the term is -sum_v P_v log softmax(Q)_v. Q is a probability used as a score and P does not sum to one,
    both as there; positions of padding do not enter here.

    Args:
        label: Logits [E, V] that predict the label tokens; `label_row` [E] is the example of each.
        rationale: Logits [F, V] that predict the rationale tokens; `rationale_row` [F] likewise.
        rows: Number of examples; those without a label or a rationale do not count.
    """
    p = _largest(label.detach(), label_row, rows)
    q = _largest(rationale, rationale_row, rows)
    present = [torch.zeros(rows, dtype=torch.bool, device=p.device) for _ in range(2)]
    both = present[0].index_fill_(0, label_row, True) & present[1].index_fill_(0, rationale_row, True)
    return -(p * q.log_softmax(-1))[both].sum()


def _largest(logits: Tensor, row: Tensor, rows: int) -> Tensor:
    probs = at_least_float32(logits).softmax(-1)
    index = row[:, None].expand_as(probs)
    return probs.new_zeros(rows, probs.shape[1]).scatter_reduce(0, index, probs, "amax")
