"""Loss terms that several methods share."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from promptcomp.language_model import at_least_float32


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Sum over the rows of KL(teacher || student) of logits [P, V], both divided by the temperature (no T^2)."""
    log_student = F.log_softmax(at_least_float32(student) / temperature, -1)
    log_teacher = F.log_softmax(at_least_float32(teacher) / temperature, -1)
    return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
