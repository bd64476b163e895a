"""Memory: the result of compressing a context.

Three forms cover every method; `None` stands for no prompt at all. Rows may have different numbers of real slots, so
each form carries a mask. `rows` gives each query its context's memory (a view where nothing has to be copied).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from promptcomp.config import ConfigError
from promptcomp.documents import parse_json
from promptcomp.files import check_file, replacing, unwritable

FORMAT = 1
"""Version of the files that save_memory writes."""
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_THREADS = 4
_SHAPES = {"mask": 2, "next_position": 1, "embeds": 3}


class _Slots:
    """Rows of slots, of which `mask` [B, K] says which are real."""

    __slots__ = ()
    mask: Tensor

    @property
    def num_slots(self) -> Tensor:
        """Real slots of each row [B]."""
        return self.mask.sum(-1)

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same memory with another tensor for each of its own."""
        return type(self)(*(_mapped(getattr(self, each.name), change) for each in fields(self)))  # type: ignore[arg-type]

    def rows(self, index: Tensor) -> Self:
        """The memory of the rows `index` [N]."""
        return self.map(lambda tensor: tensor[index])


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return tuple(_mapped(each, change) for each in value) if isinstance(value, tuple) else change(value)


@dataclass(frozen=True, slots=True)
class SoftPrompt(_Slots):
    """Vectors put in front of the query's token embeddings. `embeds` [B, K, D], `mask` [B, K] bool."""

    embeds: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class KVCache(_Slots):
    """Keys and values of a decoder-only LM at the slots: per layer [B, H, K, Dh] each; `mask` [B, K] bool.

    `next_position` [B] is the position id of the token that follows (for a gist it is not the number of slots).
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor
    next_position: Tensor


@dataclass(frozen=True, slots=True)
class EncoderStates(_Slots):
    """States of an encoder-decoder LM's encoder at the slots; `mask` [B, K] bool.

    `layers` holds the input of every encoder block and, last, the encoder's output: [B, K, D] each. A decoder that
    reads the slots alone needs only `layers[-1]`.
    """

    layers: tuple[Tensor, ...]
    mask: Tensor


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

    The file appears whole or not at all. Its header has two entries: "promptcomp" (JSON text) and "sha256" (over that
    text and the tensors, see `file_hash`).

    Raises:
        ConfigError: the file cannot be written there.
    """
    text = json.dumps({"format": FORMAT, "kind": type(memory).__name__, "metadata": dict(metadata)})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in memory_tensors(memory).items()}
    try:
        with replacing(path) as partial:
            save_file(tensors, partial, metadata={"promptcomp": text, "sha256": file_hash(text, tensors)})
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error) from None


def load_memory(path: Path, device: str = "cpu") -> tuple[Memory, dict[str, Any]]:
    """Read what save_memory wrote: the memory and its metadata.

    Raises:
        ConfigError: the file is missing, damaged, edited, newer than this program, or no memory at all.
    """
    try:
        check_file(path, "memory file")
        with safe_open(path, "pt") as file:
            entries = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        header = parse_json(entries.get("promptcomp", "{}"))
    except ConfigError:
        raise
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"{path}: {_unreadable(path, error)}") from None
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise ConfigError(f"{path}: not a memory file of promptcomp; 'promptcomp compress' makes one")
    if header["format"] > FORMAT:
        raise ConfigError(f"{path}: has format {header['format']}, this promptcomp reads up to {FORMAT}; update it")
    if entries.get("sha256") != file_hash(entries["promptcomp"], tensors):
        raise ConfigError(f"{path}: the content does not match its hash, it was edited or damaged; compress again")
    try:
        memory = _assemble(header["kind"], tensors)
        metadata = dict(header["metadata"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: the memory file does not follow format {FORMAT} ({error})") from None
    return memory_to(memory, device), metadata


def memory_to(memory: Memory, device: torch.device | str) -> Memory:
    """The same memory on another device."""
    return memory.map(lambda tensor: tensor.to(device))


def file_hash(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over the header's text and, sorted by name, every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(tensor_label(name, tensors[name]))
        digest.update(tensor_bytes(tensors[name]))
    return digest.hexdigest()


def weights_hash(model: nn.Module) -> str:
    """Hash over the parameters of a model; tied parameters count once."""
    return tensors_hash(model.named_parameters())


def tensors_hash(named: Iterable[tuple[str, Tensor]]) -> str:
    """Hash over tensors, sorted by name.

    It is the SHA-256 of the parameters' own SHA-256 digests (over label and bytes), so that several can be computed
    at once and no weight is copied on a CPU.
    """

    def digest(named: tuple[str, Tensor]) -> bytes:
        found = hashlib.sha256(tensor_label(*named))
        found.update(tensor_bytes(named[1]))
        return found.digest()

    with ThreadPoolExecutor(_THREADS) as pool:  # hashlib lets other threads run while it works on large buffers
        return hashlib.sha256(b"".join(pool.map(digest, sorted(named)))).hexdigest()


def tensor_label(name: str, tensor: Tensor) -> bytes:
    """What a hash says of a tensor before its bytes: a line such as `mask bool [1, 4]` between two line feeds."""
    return f"\n{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, not copied where it is a contiguous one of the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _unreadable(path: Path, error: Exception) -> str:
    """Why a file is no readable memory, in words."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        # only now: the length that a good file starts with may look like a pickle's first bytes
        if file.read(4).startswith(_PICKLES):
            return "cannot be read as a memory file: it looks like a pickle; promptcomp opens safetensors only"
    return f"cannot be read as a memory file: truncated, or no safetensors file ({error})"


def _assemble(kind: str, tensors: Mapping[str, Tensor]) -> Memory:
    """The memory of these tensors, where none is missing (KeyError) or too many and their shapes go together."""
    mask = tensors["mask"]
    memory: Memory
    if kind == "SoftPrompt":
        memory = SoftPrompt(tensors["embeds"], mask)
    elif kind == "EncoderStates":
        count = sum(name.startswith("layers.") for name in tensors)
        memory = EncoderStates(tuple(tensors[f"layers.{i}"] for i in range(count)), mask)
    elif kind == "KVCache":
        count = sum(name.endswith(".keys") for name in tensors)
        layers = tuple((tensors[f"layers.{i}.keys"], tensors[f"layers.{i}.values"]) for i in range(count))
        memory = KVCache(layers, mask, tensors["next_position"])
    else:
        raise ValueError(f"unknown kind of memory {kind!r}; known: SoftPrompt, KVCache, EncoderStates")
    if extra := tensors.keys() - memory_tensors(memory).keys():
        raise ValueError(f"unknown tensors: {', '.join(sorted(extra))}")
    if mask.dim() != 2 or mask.dtype != torch.bool:
        raise ValueError("mask must be a bool tensor [rows, slots]")
    slots_at = 2 if isinstance(memory, KVCache) else 1
    for name, tensor in tensors.items():
        wanted = _SHAPES.get(name, slots_at + 2)
        fits = tensor.dim() == wanted and len(tensor) == len(mask)
        if not fits or (wanted > 2 and tensor.shape[slots_at] != mask.shape[1]):
            raise ValueError(f"{name} has shape {list(tensor.shape)}, which does not fit a mask {list(mask.shape)}")
    return memory
