"""The section of mean pooling."""

from typing import ClassVar, Literal

from promptcomp.lightning_modules.method_config import MethodConfig


class MeanPoolConfig(MethodConfig):
    """Mean pooling: stretches of the context become their mean embedding, changed by a trained linear map."""

    title: ClassVar[str] = "mean pooling"
    summary: ClassVar[str] = "stretches of the context become their mean embedding, linearly mapped"
    difficulty_keys: ClassVar[tuple[str, ...]] = ("num_slots",)
    implementation: ClassVar[str] = "mean_pool:MeanPool"

    name: Literal["mean_pool"] = "mean_pool"
    num_slots: int = 4
    """Stretches that a context is divided into, each a vector."""
