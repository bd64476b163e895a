"""The sections of methods whose encoder reads the context for an LM that stays as it is: mean pooling, ICAE."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from promptcomp.language_model.lm_config import LanguageModelConfig
from promptcomp.lightning_modules.method_config import BudgetsConfig, LoraConfig, TeacherCacheConfig


class EncoderMethodConfig(BudgetsConfig, TeacherCacheConfig):  # type: ignore[misc]  # what pydantic adds to both
    """Base of the sections of `pool` and `icae`."""

    needs: ClassVar[str] = "contexts (demonstrations, instructions or text)"
    difficulty_keys: ClassVar[tuple[str, ...]] = ("num_slots", "budgets")
    loss_keys: ClassVar[tuple[str, ...]] = (
        *("reconstruction_weight", "kl_weight", "kl_positions", "temperature", "teacher_cache", "teacher_top_k"),
    )

    num_slots: int = Field(16, gt=0)
    """Slots that a context becomes."""
    encoder: LanguageModelConfig | None = None
    """What reads the context, any LM with the same tokenizer; null: the LM itself, whose weights are shared and not
    held a second time."""
    train_encoder: Literal["lora", "none"] = "lora"
    """lora: adapters beside the encoder's matrices, which the LM that answers does not have; none: as it is."""
    lora: LoraConfig = LoraConfig()
    """The adapters of `train_encoder: lora`."""
    attention: Literal["causal", "bidirectional"] = "causal"
    """How a context is read. causal: each token sees those before it; bidirectional: it also sees what follows it. The
    encoder of an encoder-decoder always reads both ways."""
    projection: Literal["linear", "none"] = "linear"
    """From the encoder's states to the LM's input vectors. linear: a linear layer, which starts with the states
    themselves, at the length of token embeddings, where the widths are equal; none: the states as they are."""
    reconstruction_weight: float = Field(0.0, ge=0)
    """Weight of the cross-entropy of the context's own tokens, reconstructed from the slots alone after the
    end-of-sequence token (autoencoding)."""
    kl_weight: float = Field(0.0, ge=0)
    """Weight of KL(LM with the full context || LM with the slots); 0: no teacher."""
    kl_positions: Literal["targets", "all"] = "targets"
    """targets: only where an answer token is predicted; all: after every token of query and answer."""
    init_from: str | None = None
    """A run directory, export or checkpoint of the same method whose trained parts training starts from."""

    @property
    def slots_read(self) -> int:
        """Positions that the encoder reads behind a context."""
        return 0

    def window_problem(self, window: int, longest: int | None = None) -> str | None:
        """A context stands in the encoder's window with the slots, and one that is reconstructed in the LM's behind
        them, BOS and a cue."""
        encoder = window if self.encoder is None else self.encoder.window_on_disk()
        windows = [] if encoder is None else [(encoder, self.slots_read, "LM" if self.encoder is None else "encoder")]
        windows += [(window, self.num_slots + 1, "LM")] if self.reconstruction_weight else []
        if longest is None or not windows:
            return None
        size, behind, whose = min(windows, key=lambda each: each[0] - each[1])
        most = size - behind - 1
        if longest <= most:
            return None
        return (
            f"method.num_slots = {self.num_slots}: a context of {longest} tokens and {behind} more positions exceed "
            f"the {whose}'s window of {size}; set data.max_context_tokens={max(most, 1)} or less, or use fewer slots"
        )

    def without_training(self) -> Self:
        """See MethodConfig."""
        return self.model_copy(update={"init_from": None, "kl_weight": 0.0, "teacher_cache": False})


class PoolConfig(EncoderMethodConfig):
    """Mean pooling: an encoder reads the context; the means of its states over equal spans are vectors for the LM."""

    title: ClassVar[str] = "mean pooling"
    summary: ClassVar[str] = "means of an encoder's states over equal spans become vectors for a frozen LM"
    paper: ClassVar[str] = "Feldman, Artzi 2025, arXiv 2510.20797"
    implementation: ClassVar[str] = "promptcomp.lightning_modules.pool:Pool"

    name: Literal["pool"] = "pool"

    @property
    def trains(self) -> bool:
        """A frozen encoder without a projection has nothing to train."""
        return self.train_encoder != "none" or self.projection != "none"


class IcaeConfig(EncoderMethodConfig):
    """ICAE: the LM with adapters reads the context and memory tokens; the LM without them answers behind these."""

    title: ClassVar[str] = "ICAE"
    summary: ClassVar[str] = "the LM with adapters writes a context into memory tokens for the LM without them"
    paper: ClassVar[str] = "Ge et al. 2024, arXiv 2307.06945; kv: Li, Su, Collier 2025, arXiv 2408.03094"
    families: ClassVar[tuple[str, ...]] = ("decoder",)
    implementation: ClassVar[str] = "promptcomp.lightning_modules.icae:Icae"

    name: Literal["icae"] = "icae"
    slots: Literal["embeddings", "kv"] = "embeddings"
    """embeddings: the final states at the memory tokens, put in front of the query (ICAE); kv: their keys and values in
    every layer (500xCompressor)."""

    @property
    def slots_read(self) -> int:
        """The memory tokens."""
        return self.num_slots

    @property
    def slots_behind(self) -> int:
        """As vectors they stand in place of the context."""
        return self.num_slots if self.slots == "kv" else 0

    @model_validator(mode="after")
    def _keys_and_values_are_the_lms(self) -> IcaeConfig:
        if self.slots == "kv" and self.encoder is not None:
            raise ValueError(
                "method.slots=kv: keys and values of another encoder mean nothing to the LM; leave out "
                "method.encoder, or use method.slots=embeddings"
            )
        return self
