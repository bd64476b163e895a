"""Memory: what a compressor makes of a context.

Three forms cover every method; `None` stands for no prompt at all. Rows may have different numbers of real slots, so
each form carries a mask. `rows` gives each query its context's memory (a view where nothing has to be copied).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from promptcomp.config import ConfigError

FORMAT = 1
"""Version of the files that save_memory writes."""


@dataclass(frozen=True, slots=True)
class SoftPrompt:
    """Vectors put in front of the query's token embeddings. `embeds` [B, K, D], `mask` [B, K] bool."""

    embeds: Tensor
    mask: Tensor

    def rows(self, index: Tensor) -> Self:
        """The memory of the rows `index` [N]."""
        return type(self)(self.embeds[index], self.mask[index])

    @property
    def num_slots(self) -> Tensor:
        """Real slots of each row [B]."""
        return self.mask.sum(-1)


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of a decoder-only LM at the slots: per layer [B, H, K, Dh] each; `mask` [B, K] bool.

    `next_position` [B] is the position id of the token that follows (for a gist it is not the number of slots).
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor
    next_position: Tensor

    def rows(self, index: Tensor) -> Self:
        """The memory of the rows `index` [N]."""
        layers = tuple((keys[index], values[index]) for keys, values in self.layers)
        return type(self)(layers, self.mask[index], self.next_position[index])

    @property
    def num_slots(self) -> Tensor:
        """Real slots of each row [B]."""
        return self.mask.sum(-1)


@dataclass(frozen=True, slots=True)
class EncoderStates:
    """States of an encoder-decoder LM's encoder at the slots; `mask` [B, K] bool.

    `layers` holds the input of every encoder block and, last, the encoder's output: [B, K, D] each. A decoder that
    reads the slots alone needs only `layers[-1]`.
    """

    layers: tuple[Tensor, ...]
    mask: Tensor

    def rows(self, index: Tensor) -> Self:
        """The memory of the rows `index` [N]."""
        return type(self)(tuple(layer[index] for layer in self.layers), self.mask[index])

    @property
    def num_slots(self) -> Tensor:
        """Real slots of each row [B]."""
        return self.mask.sum(-1)


Memory = SoftPrompt | KVCache | EncoderStates


def memory_tensors(memory: Memory) -> dict[str, Tensor]:
    """The tensors of a memory by the names they have in a file."""
    tensors = {"mask": memory.mask}
    if isinstance(memory, SoftPrompt):
        return {**tensors, "embeds": memory.embeds}
    if isinstance(memory, EncoderStates):
        return {**tensors, **{f"layers.{i}": layer for i, layer in enumerate(memory.layers)}}
    for i, (keys, values) in enumerate(memory.layers):
        tensors[f"layers.{i}.keys"], tensors[f"layers.{i}.values"] = keys, values
    return {**tensors, "next_position": memory.next_position}


def save_memory(path: Path, memory: Memory, metadata: Mapping[str, Any]) -> None:
    """Write a memory as one safetensors file with `metadata` (anything JSON can hold) in its header.

    The file appears whole or not at all.
    """
    header = {"promptcomp": json.dumps({"format": FORMAT, "kind": type(memory).__name__, "metadata": dict(metadata)})}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in memory_tensors(memory).items()}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata=header)
    os.replace(partial, path)


def load_memory(path: Path, device: str = "cpu") -> tuple[Memory, dict[str, Any]]:
    """Read what save_memory wrote: the memory and its metadata.

    Raises:
        ConfigError: the file is missing, damaged, or no memory of this format.
    """
    try:
        with safe_open(path, "pt", device=device) as file:
            header = json.loads((file.metadata() or {}).get("promptcomp", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a memory file ({error})") from None
    if header.get("format") != FORMAT:
        raise ConfigError(f"{path}: not a memory file of format {FORMAT} (found {header.get('format')!r})")
    try:
        return _assemble(header["kind"], tensors), header["metadata"]
    except KeyError as error:
        raise ConfigError(f"{path}: the memory file lacks {error}") from None


def _assemble(kind: str, tensors: Mapping[str, Tensor]) -> Memory:
    mask = tensors["mask"]
    if kind == "SoftPrompt":
        return SoftPrompt(tensors["embeds"], mask)
    if kind == "EncoderStates":
        count = sum(name.startswith("layers.") for name in tensors)
        return EncoderStates(tuple(tensors[f"layers.{i}"] for i in range(count)), mask)
    if kind == "KVCache":
        count = sum(name.endswith(".keys") for name in tensors)
        layers = tuple((tensors[f"layers.{i}.keys"], tensors[f"layers.{i}.values"]) for i in range(count))
        return KVCache(layers, mask, tensors["next_position"])
    raise ConfigError(f"unknown kind of memory {kind!r}; known: SoftPrompt, KVCache, EncoderStates")
