"""How many positions an LM can read, and the refusal of what is longer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PretrainedConfig

from promptcomp.config import ConfigError

_SIZES = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")


def window_of(config: PretrainedConfig) -> int | None:
    """Longest sequence: the size of the position table (or of what rotary positions were trained for); None: any."""
    return Window.of(config).size


@dataclass(frozen=True, slots=True)
class Window:
    """Position ids that an LM may be given; None: any. Values are read from the device only where they may matter."""

    size: int | None
    reason: str = ""
    """Why it ends there, for messages, if there is more to say than the size of a table."""

    @classmethod
    def of(cls, config: PretrainedConfig) -> Window:
        """As the architecture says.

        LongRoPE changes all rotations of a batch, of short rows too, as soon as one row is longer than what the model
        was first trained for, so that the score of a row would depend on its neighbours; Doge drops tokens, and which
        ones depends on the order of equal ones in memory. Their windows end where that begins.
        """
        kind = config.model_type
        table = next(
            (size for name in _SIZES if isinstance(size := getattr(config, name, None), int) and size > 0), None
        )
        limits = [] if table is None else [cls(table)]
        if (switch := _longrope_switch(config)) is not None:
            limits.append(
                cls(switch, f" (beyond it the LongRoPE of {kind!r} changes the scores of shorter rows as well)")
            )
        if (kept := getattr(config, "keep_window_size", None)) is not None:
            limits.append(cls(kept, f" (beyond it {kind!r} drops tokens)"))
        return min(limits, key=lambda limit: limit.size or 0, default=cls(None))

    def check_context(self, mask: Tensor) -> None:
        """Refuse a context [G, C] that is too long by itself.

        Raises:
            ConfigError: says how long it is.
        """
        if self.size is not None and mask.shape[1] > self.size and (longest := int(mask.sum(-1).max())) > self.size:
            raise ConfigError(
                f"a context of {longest} tokens does not fit the LM's window of {self.size}{self.reason}; "
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
                f"{self.size}{self.reason}; shorten the prompt (method.num_slots, data.max_context_tokens) or the query"
            )


def _longrope_switch(config: PretrainedConfig) -> int | None:
    """The length at which rotary positions change, if they do."""
    settings = getattr(config, "rope_parameters", None) or {}
    by_layer = [each for each in settings.values() if isinstance(each, dict)] or [settings]
    switches = [each for each in by_layer if each.get("rope_type") == "longrope"]
    first = [each.get("original_max_position_embeddings") or config.max_position_embeddings for each in switches]
    return min(first, default=None)
