"""Distances between distributions over tokens, as sums over rows; at least float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from promptcomp.language_model import at_least_float32


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Sum over the rows of KL(teacher || student) of logits [P, V], both divided by the temperature (no T^2)."""
    log_student = F.log_softmax(at_least_float32(student) / temperature, -1)
    log_teacher = F.log_softmax(at_least_float32(teacher) / temperature, -1)
    return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)


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
    both = _present(label_row, rows) & _present(rationale_row, rows)
    return -(p * q.log_softmax(-1))[both].sum()


def _present(row: Tensor, rows: int) -> Tensor:
    return torch.zeros(rows, dtype=torch.bool, device=row.device).index_fill(0, row, True)


def _largest(logits: Tensor, row: Tensor, rows: int) -> Tensor:
    probs = at_least_float32(logits).softmax(-1)
    index = row[:, None].expand_as(probs)
    return probs.new_zeros(rows, probs.shape[1]).scatter_reduce(0, index, probs, "amax")
