"""What an LM attends to: the length of its window, and attention masks in the form that its layers take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PretrainedConfig

from promptcomp.config import ConfigError
from promptcomp.language_model.lm_config import SIZES_OF_TABLES
from promptcomp.memory import KVCache

HIDDEN = -3e4
"""Added to the score of what a token must not see: its weight becomes exactly 0. Finite even in float16 (also when
autocast narrows it) with a position bias on top, as a padding row of nothing but -inf would be NaN."""

LayerMask = Tensor | BlockMask
FULL, SLIDING = "full_attention", "sliding_attention"


class AttentionPattern:
    """How the layers of a decoder-only LM attend to earlier tokens.

    transformers makes sliding masks from column numbers, which padding, packed rows and gist memories put elsewhere, so
    here the distance is taken from position ids.
    """

    def __init__(self, config: PretrainedConfig, implementation: str | None) -> None:
        """
        Args:
            config: The architecture.
            implementation: "sdpa", "eager" or "flex_attention".

        Raises:
            ConfigError: some layers look back in a way that is not supported.
        """
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        found = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or []
        # GPT-Neo has words of its own
        kinds = [FULL if kind == "global" else kind for kind in found] or [SLIDING if window else FULL]
        self.kinds = tuple(dict.fromkeys(kinds))
        self.window: int | None = window if SLIDING in self.kinds else None
        self.implementation = implementation
        if unknown := set(self.kinds) - {FULL, SLIDING}:
            raise ConfigError(
                f"models of type {config.model_type!r} have layers of kind {', '.join(sorted(unknown))}, which cannot "
                f"read packed rows; supported: {FULL}, {SLIDING}"
            )

    def mask(
        self, sees: Tensor, row_position: Tensor, column_position: Tensor, dtype: torch.dtype, *, blocks: bool = True
    ) -> LayerMask | Mapping[str, LayerMask]:
        """What the model takes as `attention_mask`.

        Args:
            sees: Who may see whom, bool [B, rows, columns].
            row_position: Position ids [B, rows].
            column_position: Position ids [B, columns].
            dtype: Type of the attention scores.
            blocks: Allow block masks where the implementation is flex_attention (one is made for each new shape).
        """
        as_blocks = blocks and self.implementation == "flex_attention"
        made = {kind: self._visible(kind, sees, row_position, column_position) for kind in self.kinds}
        masks = {kind: block_mask(seen) if as_blocks else additive(seen, dtype) for kind, seen in made.items()}
        return masks if len(masks) > 1 else masks[self.kinds[0]]

    def padded(
        self, real: Tensor, position: Tensor, dtype: torch.dtype, *, both_ways: bool = False
    ) -> LayerMask | Mapping[str, LayerMask]:
        """What the model takes as `attention_mask` for ordinary rows that are padded on the left; `both_ways`: tokens
        see those behind them as well.

        Models make masks of `real` [B, S] themselves, and the best kernels need none. Eager attention, however, takes
        its softmax in float32, where the lowest number of float64 is -inf and a row of padding becomes NaN.
        """
        if both_ways:
            return self.mask(real[:, None, :].expand(-1, real.shape[1], -1), position, position, dtype)
        if self.implementation != "eager":
            return real.long()
        causal = position.new_ones(real.shape[1], real.shape[1], dtype=torch.bool).tril()
        return self.mask(causal & real[:, None, :], position, position, dtype)

    def _visible(self, kind: str, sees: Tensor, row_position: Tensor, column_position: Tensor) -> Tensor:
        if kind == FULL or self.window is None:
            return sees
        return sees & (row_position[:, :, None] - column_position[:, None, :] < self.window)


def additive(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as numbers to add to attention scores: 0 or HIDDEN, [R, 1, rows, columns]."""
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
    return mask.masked_fill_(~sees, HIDDEN).unsqueeze(1)


def block_mask(sees: Tensor) -> BlockMask:
    """The mask [R, rows, columns] as FlexAttention takes it: blocks that no one sees are skipped."""
    rows, queries, keys = sees.shape

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees[row, query, key]

    return create_block_mask(visible, rows, None, queries, keys, device=str(sees.device))


def slot_positions(memory: KVCache) -> Tensor:
    """Position ids [B, K] of the slots of a cache: they end just before the next position."""
    slots = memory.mask.shape[1]
    return memory.next_position[:, None] - slots + torch.arange(slots, device=memory.mask.device)


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
        tables = (size for name in SIZES_OF_TABLES if isinstance(size := getattr(config, name, None), int) and size > 0)
        limits = [cls(size) for size in [*tables][:1]]
        if (switch := _longrope_switch(config)) is not None:
            reason = f" (beyond it the LongRoPE of {kind!r} changes the scores of shorter rows as well)"
            limits.append(cls(switch, reason))
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

    def check_room(self, position: Tensor, slots: int | None) -> None:
        """Refuse position ids [R, S] behind `slots` columns of a prompt when one lies beyond the window; None: its
        positions go beyond its columns, as those of kept keys and values do."""
        if self.size is not None and (slots is None or slots + position.shape[1] > self.size):
            self.check_positions(position.amax(-1))

    def check_positions(self, last: Tensor, more: int = 0) -> None:
        """Refuse rows whose last position id [R], and so many more behind it, lie beyond the window.

        Raises:
            ConfigError: says how many positions there are and would have to be.
        """
        if self.size is not None and (longest := int(last.max()) + 1 + more) > self.size:
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
