"""The section of MEND."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field

from promptcomp.language_model.lm_config import LanguageModelConfig
from promptcomp.lightning_modules.method_config import BudgetsConfig, ExportFormat, TeacherCacheConfig


class MendConfig(BudgetsConfig, TeacherCacheConfig):  # type: ignore[misc]  # what pydantic adds to both
    """MEND: a distiller LM turns demonstrations into vectors for a frozen LM."""

    title: ClassVar[str] = "MEND"
    summary: ClassVar[str] = "a distiller LM turns demonstrations into vectors for a frozen LM"
    paper: ClassVar[str] = "Li et al. 2024, arXiv 2403.06914"
    needs: ClassVar[str] = "contexts (demonstrations, instructions or text)"
    difficulty_keys: ClassVar[tuple[str, ...]] = ("num_slots", "budgets")
    loss_keys: ClassVar[tuple[str, ...]] = (
        *("stage", "kl_weight", "kl_positions", "temperature", "teacher_cache", "teacher_top_k"),
    )
    implementation: ClassVar[str] = "promptcomp.lightning_modules.mend:Mend"

    name: Literal["mend"] = "mend"
    stage: Literal["pretrain", "finetune"] = "finetune"
    """pretrain: KL only (stage 1, plain text); finetune: CE + kl_weight * KL (stage 2, tasks)."""
    init_from: str | None = None
    """A stage-1 run directory, export or checkpoint that training starts from."""
    num_slots: int = Field(100, gt=0)
    """Number of vectors for a chunk of demonstrations (l in the paper)."""
    slot_init: Literal["random", "vocabulary"] = "random"
    """random: N(0, the distiller's initializer_range), as token embeddings start; vocabulary: some token embeddings."""
    distiller: LanguageModelConfig | None = None
    """The distiller's starting point, any LM with the same tokenizer; null: a copy of the LM."""
    slots_in: Literal["encoder", "decoder"] = "encoder"
    """Which half of an encoder-decoder distiller reads the slots. encoder: its encoder, after the demonstrations;
    decoder: its decoder, which looks at the encoded demonstrations."""
    frozen_encoder: bool = False
    """With `slots_in: decoder`: train the distiller's decoder alone, which takes half the time of a step."""
    frozen_embeddings: bool = False
    """Train the distiller without its token embeddings: words that no training task had stay where they were among the
    others, so that what is learned of these holds for them, too."""
    slots: Literal["inputs", "states"] = "inputs"
    """What the vectors are to the LM. inputs: in front of the query's embeddings, as in the paper; states: what an
    encoder-decoder's decoder attends to, in the place of the encoder's output (layout query_in_decoder only)."""
    projection: Literal["auto", "none", "linear", "tanh"] = "auto"
    """From the distiller's width to the LM's. auto: tanh where they differ, otherwise none; none: the states as they
    are; linear: a linear layer; tanh: a linear layer and tanh behind it."""
    projection_init: Literal["default", "identity"] = "default"
    """How the projection starts. default: as torch draws a linear layer; identity (linear only): with the hidden states
    themselves at the scale of the LM's token embeddings."""
    max_chunk_tokens: int | None = Field(None, gt=0)
    """Distil longer contexts in chunks of this many tokens; null: as many as the distiller's window holds."""
    kl_weight: float = Field(1.0, ge=0)
    """Weight of the KL divergence from the teacher with the full context (lambda of stage 2); 0: no teacher."""
    kl_positions: Literal["all", "targets"] = "all"
    """all: after every token of query and answer, as in the paper; targets: only where an answer token is predicted."""

    @property
    def term_weights(self) -> dict[str, float]:
        """Stage 1 has the KL alone."""
        return {"kl": 1.0} if self.stage == "pretrain" else super().term_weights

    @property
    def export_formats(self) -> tuple[ExportFormat, ...]:
        """The distiller is a separate model."""
        return ("hf", "tensors")

    def window_problem(self, window: int, longest: int | None = None) -> str | None:
        """The distiller reads demonstrations and slots."""
        read = window if self.distiller is None else self.distiller.window_on_disk()
        return self.no_room(read) if read is not None and self.num_slots >= read else None

    def no_room(self, window: int) -> str:
        """What is said where the slots fill the distiller's window."""
        return (
            f"method.num_slots = {self.num_slots} leaves no room for demonstrations in the distiller's window of "
            f"{window}; use fewer slots"
        )

    def without_training(self) -> Self:
        """See MethodConfig."""
        return self.model_copy(update={"init_from": None, "teacher_cache": False})
