"""The base of methods whose loss compares the LM with a teacher that reads the full context."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from promptcomp.batch import Batch
from promptcomp.language_model import Logits
from promptcomp.language_model.parts import Prefix
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.lightning_modules.method_config import TeacherCacheConfig
from promptcomp.lightning_modules.objective import LossTerm, class_divergence, cross_entropy, kl_divergence
from promptcomp.lightning_modules.teacher_cache import TeacherCache
from promptcomp.memory import Memory


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
        if self._kept is None or (self.training and self._blend is not None):  # mixed words are not in its keys
            total = kl_divergence(student.values, self.teach(batch), temperature)
        else:
            top, log_probs = self._kept.predictions(batch, self.teach)
            total = class_divergence(student.values / temperature, log_probs, top)
        return LossTerm("kl", total, student.values.shape[0], weight)

    @property
    def compared(self) -> Literal["nothing", "targets", "all"]:
        """With the teacher, where the section says."""
        return self.method.kl_positions if self.method.compares else "nothing"  # type: ignore[attr-defined]

    def counts(self, batch: Batch) -> dict[str, Tensor | int]:
        """Scored tokens of answers and of contexts, and positions that are compared."""
        found: dict[str, Tensor | int] = {}
        if "ce" in self.method.term_weights:
            found["ce"] = self.lm.scored_tokens(batch).sum()
        if "reconstruction" in self.method.term_weights:
            found["reconstruction"] = self.lm.scored_tokens(batch.of_contexts(self.lm.end_id)).sum()
        if self.method.compares:
            found["kl"] = self.lm.num_logits(batch, self._where)
        return found

    def losses(self, batch: Batch) -> list[LossTerm]:
        """CE of the answers, what a method adds, CE of the contexts' own tokens, KL to the teacher."""
        weights, memory = self.method.term_weights, self.read_for_training(batch.context)
        student = self.lm(memory, batch, self._where)
        terms = [cross_entropy("ce", student)] if "ce" in weights else []
        terms += self.own_terms(batch)
        if "reconstruction" in weights:
            again = self.lm(self.before_cue(memory), batch.of_contexts(self.lm.end_id), "targets")
            terms.append(cross_entropy("reconstruction", again, weights["reconstruction"]))
        if "kl" in weights:
            terms.append(self.kl_term(student, batch, weights["kl"]))
        return terms

    def own_terms(self, batch: Batch) -> list[LossTerm]:
        """Further terms of a method."""
        return []

    def before_cue(self, memory: Memory | Prefix | None) -> Memory | Prefix | None:
        """What a context is reconstructed behind."""
        return memory
