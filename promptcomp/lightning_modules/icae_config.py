"""The section of ICAE and, with keys and values as slots, of 500xCompressor."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from promptcomp.lightning_modules.encoder_config import EncoderMethodConfig


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

    @model_validator(mode="after")
    def _keys_and_values_are_the_lms(self) -> IcaeConfig:
        if self.slots == "kv" and self.encoder is not None:
            raise ValueError(
                "method.slots=kv: keys and values of another encoder mean nothing to the LM; leave out "
                "method.encoder, or use method.slots=embeddings"
            )
        return self
