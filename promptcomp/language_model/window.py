"""How many positions an LM can read, and the refusal of what is longer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PretrainedConfig

from promptcomp.config import ConfigError


def window_of(config: PretrainedConfig) -> int:
    """Longest sequence: the size of the position table (or of what rotary positions were trained for)."""
    return int(config.max_position_embeddings)


@dataclass(frozen=True, slots=True)
class Window:
    """Position ids that an LM may be given; None: any. Values are read from the device only where they may matter."""

    size: int | None

    def check_context(self, mask: Tensor) -> None:
        """Refuse a context [G, C] that is too long by itself.

        Raises:
            ConfigError: says how long it is.
        """
        if self.size is not None and mask.shape[1] > self.size and (longest := int(mask.sum(-1).max())) > self.size:
            raise ConfigError(
                f"a context of {longest} tokens does not fit the LM's window of {self.size}; "
                "lower data.max_context_tokens or data.num_demonstrations"
            )

    def check_room(self, position: Tensor, slots: int) -> None:
        """Refuse position ids [R, S] behind `slots` columns of a prompt when one lies beyond the window."""
        if self.size is not None and slots + position.shape[1] > self.size:
            self.check_positions(position.amax(-1))

    def check_positions(self, last: Tensor) -> None:
        """Refuse rows whose last position id [R] lies beyond the window.

        Raises:
            ConfigError: says how many positions there are and would have to be.
        """
        if self.size is not None and (longest := int(last.max()) + 1) > self.size:
            raise ConfigError(
                f"the prompt with a query and its answer needs {longest} positions, more than the LM's window of "
                f"{self.size}; shorten the prompt (method.num_slots, data.max_context_tokens) or the query"
            )
