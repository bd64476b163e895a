"""The base of methods whose loss compares the LM with a teacher that reads the full context."""

from __future__ import annotations

import torch
from torch import Tensor

from promptcomp.batch import Batch
from promptcomp.language_model import Logits
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.lightning_modules.method_config import TeacherCacheConfig
from promptcomp.lightning_modules.objective import LossTerm, class_divergence, kl_divergence
from promptcomp.lightning_modules.teacher_cache import TeacherCache


class TaughtModule(CompressionModule):
    """A method with a term KL(teacher || LM); its `build` ends with `keep_teacher`."""

    method: TeacherCacheConfig
    _kept: TeacherCache | None = None

    def keep_teacher(self) -> None:
        """Look for what the teacher, which is there, has predicted earlier, where the section asks for it."""
        if self.method.teacher_cache and not self.skeleton:
            lm = self.lm if self.teacher is None else self.teacher  # without adapters: they come later
            self._kept = TeacherCache(lm, self.method.teacher_top_k, self.method.temperature, self._where)

    @torch.no_grad()
    def teach(self, batch: Batch) -> Tensor:
        """Logits [P, V] of the teacher, here the LM itself, behind the full contexts."""
        return self.lm(self.lm.encode(batch.teacher_context), batch, self._where).values

    def kl_term(self, student: Logits, batch: Batch, weight: float) -> LossTerm:
        """KL(teacher || LM) at all positions of the student's logits, over classes where predictions are kept."""
        temperature = self.method.temperature
        if self._kept is None:
            total = kl_divergence(student.values, self.teach(batch), temperature)
        else:
            top, log_probs = self._kept.predictions(batch, self.teach)
            total = class_divergence(student.values / temperature, log_probs, top)
        return LossTerm("kl", total, student.values.shape[0], weight)

    def term_counts(self, batch: Batch, reconstructs: bool, compares: bool) -> dict[str, Tensor | int]:
        """Scored tokens of answers and of contexts (where these are reconstructed), and positions that are compared."""
        found: dict[str, Tensor | int] = {"ce": self.lm.scored_tokens(batch).sum()}
        if reconstructs:
            found["reconstruction"] = self.lm.scored_tokens(batch.of_contexts(self.lm.end_id)).sum()
        if compares:
            found["kl"] = self.lm.num_logits(batch, self._where)
        return found
