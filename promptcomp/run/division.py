"""What of a run may change when it is continued: how its work is divided, not what it computes."""

from __future__ import annotations

from collections.abc import Iterable

from promptcomp.config import ConfigError

DIVISION = (
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "accumulate",
    "threads",
    "activation_checkpointing",
    "offload_optimizer",
    "compile",
    "timeout_seconds",
    "checkpoints",
    "checkpoint_every",
)
"""Keys of the section `trainer`."""


def check_overrides(overrides: Iterable[str]) -> None:
    """
    Raises:
        ConfigError: one of them would change what is computed.
    """
    for item in overrides:
        section, _, key = item.partition("=")[0].partition(".")
        if section != "trainer" or key not in DIVISION:
            allowed = ", ".join(f"trainer.{each}" for each in DIVISION)
            raise ConfigError(
                f"{item!r}: --resume continues a run as it was configured; only how its work is divided may change "
                f"({allowed})"
            )
