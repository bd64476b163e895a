"""A sharded checkpoint: a folder into which every process writes the part of the tensors that it holds.

    checkpoint.pt                        all but the tensors (loops, scheduler, callbacks); the files' sizes
    shard-00001-of-00002.safetensors     the parts of the first process, and where in the whole tensors they lie

Tensors are named `weights/<parameter>` and `optimizer/<parameter>/<moment>`. The offsets stand in the files' headers as
torch.distributed.checkpoint's safetensors format has them (DCP_SHARDING_INFO), so its HuggingFaceStorageReader reads
the folder too. What a process reads is planned by torch: only what it will hold, without a process group, whatever the
number of processes that have written. torch's default format is not used, because its index is a pickle.
"""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import ChunkStorageMetadata, DefaultLoadPlanner, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.metadata import TensorProperties

from promptcomp.checkpoints.named_state import local_part, region_of
from promptcomp.config import ConfigError
from promptcomp.documents import parse_json
from promptcomp.files import follow_umask

HEADER = "checkpoint.pt"
WEIGHTS = "weights/"
OPTIMIZER = "optimizer/"
_OFFSETS = "DCP_SHARDING_INFO"


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def is_sharded(path: Path) -> bool:
    """Whether this is a folder with a finished sharded checkpoint."""
    return (path / HEADER).is_file()


def split(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint without its large tensors, and these by their names in the files."""
    header = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
    tensors = {f"{WEIGHTS}{name}": value for name, value in checkpoint["state_dict"].items()}
    if "optimizer_states" in checkpoint:
        header["optimizer_states"] = []
        for state in checkpoint["optimizer_states"]:
            small: dict[str, dict[str, Any]] = {}
            for name, each in state["state"].items():
                large = {key for key, value in each.items() if isinstance(value, Tensor) and value.dim()}
                tensors.update({f"{OPTIMIZER}{name}/{key}": each[key] for key in sorted(large)})
                small[name] = {key: value for key, value in each.items() if key not in large}
            header["optimizer_states"].append({"state": small, "param_groups": state["param_groups"]})
    header["tensors"] = {name: {"shape": list(t.shape), "dtype": str(t.dtype)} for name, t in tensors.items()}
    return header, tensors


def join(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The reverse of `split`."""
    checkpoint = {key: value for key, value in header.items() if key not in ("tensors", "shards")}
    checkpoint["state_dict"] = {}
    for key, value in tensors.items():
        if key.startswith(WEIGHTS):
            checkpoint["state_dict"][key.removeprefix(WEIGHTS)] = value
        else:
            name, _, moment = key.removeprefix(OPTIMIZER).rpartition("/")
            owner = next(state for state in checkpoint["optimizer_states"] if name in state["state"])
            owner["state"][name][moment] = value
    return checkpoint


def write_shard(folder: Path, tensors: Mapping[str, Tensor], rank: int, world_size: int) -> tuple[str, int]:
    """Write this process's parts. Returns the file's name and its size in bytes.

    Raises:
        OSError: the disk is full or not writable.
    """
    parts, offsets = {}, {}
    for name, tensor in tensors.items():
        part, where = local_part(tensor), region_of(tensor)
        whole = math.prod(tensor.shape) == part.numel()
        if part.numel() and (rank == 0 or not whole):  # what every process holds is written once
            parts[name] = part.cpu().contiguous()
            offsets[name] = {"saved_offsets": [each.start for each in where]}
    path = folder / f"shard-{rank + 1:05}-of-{world_size:05}.safetensors"
    note = {"format": "pt", _OFFSETS: json.dumps(offsets)}
    try:
        save_file(parts, path, metadata=note)
        follow_umask(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except SafetensorError as error:  # its message holds the system's, without the number
        raise _os_error(error, path) from None
    return path.name, path.stat().st_size


def _os_error(error: SafetensorError, path: Path) -> OSError:
    words = str(error)
    number = words.partition("os error ")[2].partition(")")[0]
    if number.isdigit():
        return OSError(int(number), os.strerror(int(number)), str(path))
    return OSError(None, words, str(path))


def write_header(folder: Path, header: Mapping[str, Any], shards: Mapping[str, int]) -> None:
    """Write what makes the folder a checkpoint.

    Raises:
        OSError: the disk is full or not writable.
        RuntimeError: the same, from torch's writer.
    """
    with (folder / HEADER).open("wb") as file:
        torch.save({**header, "shards": dict(shards)}, file)
        file.flush()
        os.fsync(file.fileno())


def read_header(folder: Path) -> dict[str, Any]:
    """Everything but the tensors.

    Raises:
        ConfigError: it is no sharded checkpoint of ours, cannot be read, or a part is missing or cut off.
    """
    if not is_sharded(folder):
        raise ConfigError(f"{folder}: is not a sharded checkpoint of promptcomp (it holds no {HEADER})")
    try:
        header = torch.load(folder / HEADER, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{folder / HEADER}: cannot be read as a checkpoint ({first_line(error)})") from None
    if not isinstance(header, dict) or not {"tensors", "shards", "promptcomp"} <= header.keys():
        raise ConfigError(f"{folder}: is not a sharded checkpoint of promptcomp")
    for name, size in header["shards"].items():
        path = folder / name
        if not path.is_file():
            raise ConfigError(f"{folder}: incomplete, {name} is missing; copy the whole folder")
        if path.stat().st_size != size:
            raise ConfigError(f"{path}: has {path.stat().st_size} bytes instead of {size}; copy the folder again")
    return header


def empty_tensors(header: Mapping[str, Any], device: str = "meta") -> dict[str, Tensor]:
    """The tensors of a header, not filled, by their names in the files; on the meta device they take no memory."""
    return {
        name: torch.empty(each["shape"], dtype=getattr(torch, each["dtype"].removeprefix("torch.")), device=device)
        for name, each in header["tensors"].items()
    }


def read_into(folder: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors (or the parts of sharded ones that this process holds) from a folder; not a collective.

    Args:
        folder: A sharded checkpoint.
        header: Its `read_header`.
        tensors: By their names in the files, each of the whole tensor's shape; overwritten.

    Raises:
        ConfigError: a file cannot be read, or the parts do not make up whole tensors.
    """
    wanted = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
    parts: dict[str, dict[torch.Size, Any]] = {name: {} for name in wanted}
    with ExitStack() as files:
        try:
            for name in header["shards"]:
                file = files.enter_context(safe_open(folder / name, framework="pt"))
                offsets = parse_json((file.metadata() or {}).get(_OFFSETS, "{}"))
                for key in parts.keys() & file.keys():
                    parts[key][torch.Size(offsets[key]["saved_offsets"])] = file.get_slice(key)
            stored = {name: _stored(tensor, parts[name]) for name, tensor in wanted.items()}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{folder}: cannot be read ({first_line(error)})") from None
        for name, each in stored.items():
            if sum(chunk.sizes.numel() for chunk in each.chunks) != each.size.numel():
                raise ConfigError(f"{folder}: incomplete, parts of {name} are missing")
        planner = DefaultLoadPlanner()
        planner.set_up_planner(wanted, Metadata(dict(stored)), is_coordinator=True)
        for item in planner.create_local_plan().items:
            ranges = zip(item.storage_offsets, item.lengths, strict=True)
            part = parts[item.storage_index.fqn][item.storage_index.offset or torch.Size()]
            piece = part[tuple(slice(start, start + length) for start, length in ranges) or ...]
            planner.resolve_tensor(item).detach().copy_(piece)


def _stored(tensor: Tensor, parts: Mapping[torch.Size, Any]) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(start, torch.Size(part.get_shape())) for start, part in parts.items()]
    return TensorStorageMetadata(TensorProperties(tensor.dtype), tensor.shape, chunks)


def read_whole(folder: Path, *, weights_only: bool = False) -> dict[str, Any]:
    """A sharded checkpoint as one that was never sharded, on the CPU; `weights_only`: without optimiser states.

    Raises:
        ConfigError: it is none of ours, cannot be read or is incomplete.
    """
    header = read_header(folder)
    if weights_only:
        header.pop("optimizer_states", None)
        header["tensors"] = {name: each for name, each in header["tensors"].items() if name.startswith(WEIGHTS)}
    tensors = empty_tensors(header, "cpu")
    read_into(folder, header, tensors)
    return join(header, tensors)
