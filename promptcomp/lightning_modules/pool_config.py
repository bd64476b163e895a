"""The section of mean pooling."""

from __future__ import annotations

from typing import ClassVar, Literal

from promptcomp.lightning_modules.encoder_config import EncoderMethodConfig


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
