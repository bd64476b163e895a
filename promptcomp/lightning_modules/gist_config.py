"""The section of gisting."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field

from promptcomp.lightning_modules.method_config import (
    BudgetsConfig,
    ExportFormat,
    LMTraining,
    LMTrainingConfig,
    TeacherCacheConfig,
)


class GistConfig(BudgetsConfig, LMTrainingConfig, TeacherCacheConfig):
    """Gist tokens: the LM learns to put a prompt into the activations of a few tokens after it."""

    title: ClassVar[str] = "gist"
    summary: ClassVar[str] = "the LM learns to put a prompt into the activations of a few gist tokens"
    paper: ClassVar[str] = "Mu, Li, Goodman 2023, arXiv 2304.08467"
    needs: ClassVar[str] = "contexts (instructions, demonstrations or text)"
    difficulty_keys: ClassVar[tuple[str, ...]] = ("num_slots", "budgets")
    loss_keys: ClassVar[tuple[str, ...]] = (
        *("kl_weight", "kl_positions", "teacher", "temperature", "full_prompt_weight", "reconstruction_weight"),
        *("teacher_cache", "teacher_top_k"),
    )
    implementation: ClassVar[str] = "promptcomp.lightning_modules.gist:Gist"

    name: Literal["gist"] = "gist"
    num_slots: int = Field(1, gt=0)
    """Number of gist tokens after a prompt (k in the paper)."""
    shared_embedding: bool = True
    """One embedding for all gist tokens, which differ by position only, as in the paper; false: one for each."""
    gist_token: str | None = None
    """Start from the embedding of this token of the LM's tokenizer ("<GIST>" in the original checkpoints); null: from
    the mean of the token embeddings."""
    attention: Literal["causal", "bidirectional"] = "causal"
    """How a prompt is read. causal: each token sees those before it; bidirectional: prompt and gist tokens see each
    other both ways, while what follows them, and full prompts, are read one way as before. The encoder of an
    encoder-decoder always reads both ways."""
    train: LMTraining = "lm"
    """lm: all weights of the LM, as in the paper; lora: adapters; none: the gist embedding alone."""
    arrangement: Literal["joint", "split"] = "joint"
    """joint: prompt, gist tokens and query in one masked pass; split: the prompt first, then the query with its
    memory. Both give the same numbers; joint is one forward, split reads a prompt once for many queries."""
    kl_weight: float = Field(0.0, ge=0)
    """Weight of KL(teacher with the full prompt || LM with gist tokens); 0: no teacher, as in the paper."""
    kl_positions: Literal["targets", "all"] = "targets"
    """targets: only where an output token is predicted; all: after every token of query and output."""
    teacher: str = "initial"
    """initial: the LM before training (`train: lm` keeps a frozen copy); self: the LM with current weights; otherwise
    a run directory or an export of a trained full_prompt with the same LM."""
    full_prompt_weight: float = Field(0.0, ge=0)
    """Weight of the cross-entropy with the full prompt, so that the LM keeps reading uncompressed prompts."""
    reconstruction_weight: float = Field(0.0, ge=0)
    """Weight of the cross-entropy of the prompt's own tokens, reconstructed from the gist tokens alone after the
    end-of-sequence token. Answers may only require to distinguish the training prompts; this requires their words."""

    @property
    def slots_behind(self) -> int:
        """The gist tokens."""
        return self.num_slots

    @property
    def teacher_changes(self) -> bool:
        """See TeacherCacheConfig."""
        return self.teacher == "self" and self.train != "none"

    @property
    def export_formats(self) -> tuple[ExportFormat, ...]:
        """The embedding alone may go into a copy of the LM as well."""
        return (*super().export_formats, "hf") if self.train == "none" else super().export_formats

    def window_problem(self, window: int, longest: int | None = None) -> str | None:
        """A reconstructed prompt takes its length in the LM's window twice."""
        if self.num_slots + 3 > window:
            return (
                f"method.num_slots = {self.num_slots} leaves no room for a prompt and a query in the LM's window of "
                f"{window}; use at most {window - 3}"
            )
        most = (window - self.num_slots - 2) // 2  # 2: BOS and the request
        if not self.reconstruction_weight or longest is None or longest <= most:
            return None
        return (
            f"method.reconstruction_weight: a context of {longest} tokens, reconstructed after {self.num_slots} gist "
            f"token(s), exceeds the LM's window of {window}; set data.max_context_tokens={most} or less, or the weight "
            "to 0"
        )

    @property
    def trained_places(self) -> tuple[Path, ...]:
        """With the teacher's, where it is a run."""
        is_run = self.kl_weight and self.teacher not in ("initial", "self")
        return (*super().trained_places, *([Path(self.teacher)] if is_run else []))

    def without_training(self) -> Self:
        """See MethodConfig."""
        update = {"kl_weight": 0.0, "teacher": "initial", "teacher_cache": False}
        return super().without_training().model_copy(update=update)
