"""Keys turned back along their rotary positions, so that plain transformers, which counts a cache's slots, reads it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from promptcomp.config import ConfigError
from promptcomp.memory import KVCache


def counted(body: nn.Module, memory: KVCache, source: str) -> KVCache:
    """The real slots of a memory of one row at positions that end at their number: `next_position` is K.

    A rotary LM sees distances alone, so nothing changes for it when the keys and what follows move by the same number
    of positions.

    Args:
        body: The LM without its head.
        memory: On the LM's device.
        source: Whose memory it is, for the message.

    Raises:
        ConfigError: the keys stand elsewhere and the LM's positions are absolute, or are made in an unknown way.
    """
    layers = tuple((keys[:, :, memory.mask[0]], values[:, :, memory.mask[0]]) for keys, values in memory.layers)
    slots = layers[0][0].shape[2]
    steps = int(memory.next_position[0]) - slots
    if steps:
        apply: Callable[..., tuple[Tensor, Tensor]] | None
        apply = getattr(sys.modules[type(body).__module__], "apply_rotary_pos_emb", None)
        rotary: Any = getattr(body, "rotary_emb", None)
        if apply is None or rotary is None:
            raise ConfigError(
                f"{source}: its {slots} slots end at position {int(memory.next_position[0]) - 1}, and this LM's "
                f"positions are not rotary, so the slots cannot be moved to the first {slots}, where other programs "
                "expect them; `promptcomp generate` reads it"
            )
        kinds = getattr(body.config, "layer_types", None)
        takes_kind = "layer_type" in inspect.signature(rotary.forward).parameters
        turned = []
        for number, (keys, values) in enumerate(layers):
            back = torch.full((1, slots), -steps, device=keys.device)
            try:
                cos, sin = rotary(keys, back, *((kinds[number],) if takes_kind and kinds else ()))
                length = (cos.square() + sin.square()).sqrt()  # some architectures scale what they turn
                now, rest = keys.split([cos.shape[-1], keys.shape[-1] - cos.shape[-1]], -1)  # the first parts may turn
                moved = torch.cat([apply(now, now, cos / length, sin / length)[1], rest], -1)
            except (RuntimeError, TypeError) as error:
                raise ConfigError(
                    f"{source}: this LM turns its keys in a way of its own ({type(error).__name__}), so the {slots} "
                    f"slots cannot be moved to the first {slots} positions, where other programs expect them; "
                    "`promptcomp generate` reads it"
                ) from None
            turned.append((moved, values))
        layers = tuple(turned)
    end = torch.full_like(memory.next_position, slots)
    return KVCache(layers, memory.mask[:, memory.mask[0]], end)
