"""Checkpoints on disk: one whole file, or a folder into which every process has written its part.

Whatever is written is complete before it takes the place of the one before, so that a kill or a full disk at any moment
leaves a usable checkpoint; `existing` finds it.

The folder, a sharded checkpoint:

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
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import ChunkStorageMetadata, DefaultLoadPlanner, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.metadata import TensorProperties

from promptcomp.checkpoints.named_state import local_part, region_of
from promptcomp.checkpoints.places import HEADER, before_of, is_sharded, to_join
from promptcomp.config import ConfigError
from promptcomp.documents import parse_json
from promptcomp.errors import errno_of, first_line
from promptcomp.files import check_regular, flush, follow_umask, locked

FORMAT = 2
"""Of the checkpoints that are written. 1: the optimiser's state by number; 2: by name."""
WEIGHTS = "weights/"
OPTIMIZER = "optimizer/"
_OFFSETS = "DCP_SHARDING_INFO"


def read_checkpoint(path: Path, *, weights_only: bool = False) -> dict[str, Any]:
    """A checkpoint that training wrote, whole and on the CPU; tensors of a file are read when they are used.

    Args:
        path: A file or a folder.
        weights_only: Whether optimiser states in a folder are left unread.

    Raises:
        ConfigError: it cannot be read, is incomplete, or is none of ours.
    """
    if path.is_dir():
        return read_whole(path, weights_only=weights_only)
    checkpoint = load_plain(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ConfigError(f"{path}: is not a checkpoint of promptcomp")
    return checkpoint


def step_of(path: Path) -> int:
    """Optimiser steps done before this checkpoint was written.

    Raises:
        ConfigError: it cannot be read.
    """
    header = read_header(path) if path.is_dir() else read_checkpoint(path)
    return int(header["global_step"])


def write_whole(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write one file: beside the checkpoint before, flushed, then put in its place.

    Raises:
        OSError: the disk is full or not writable; the checkpoint before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    remove(temporary)
    try:
        save_flushed(dict(checkpoint), temporary)
        replace(temporary, path)
    finally:
        remove(temporary)


def consolidate(path: Path, output: Path | None) -> Path:
    """Join the parts of a checkpoint; returns the file.

    Args:
        path: A sharded checkpoint, or a run directory, whose last checkpoint is meant.
        output: The file to write; None: in the place of the folder.

    Raises:
        ConfigError: see `to_join`, or a part is missing or cut off, or the run is being trained.
    """
    target, folder = to_join(path, output)
    config = target.parent.parent / "config.yaml"
    with locked(config) if output is None and config.is_file() else nullcontext():  # not under a training
        write_whole(read_whole(folder), output or target)
    return output or target


def replace(new: Path, path: Path) -> None:
    """Put a complete file or folder in the place of a file or folder; `existing(path)` is one of the two throughout."""
    before = before_of(path)
    if path.is_symlink():  # it is none of ours, and nothing is written through it
        path.unlink()
    if path.exists():
        if path.is_file() and new.is_file():
            os.replace(new, path)
        else:  # a folder cannot be overwritten in one step
            remove(before)
            os.rename(path, before)
            os.rename(new, path)
    else:
        os.rename(new, path)
    flush(path.parent)
    remove(before)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
        flush(path)
    except SafetensorError as error:  # its message holds the system's
        number = errno_of(error)
        raise OSError(number, str(error) if number is None else os.strerror(number), str(path)) from None
    return path.name, path.stat().st_size


def write_header(folder: Path, header: Mapping[str, Any], shards: Mapping[str, int]) -> None:
    """Write what makes the folder a checkpoint.

    Raises:
        OSError: the disk is full or not writable.
    """
    save_flushed({**header, "shards": dict(shards)}, folder / HEADER)


def save_flushed(content: dict[str, Any], path: Path) -> None:
    """Write a new file by torch.save and flush it to the disk.

    Raises:
        OSError: the disk is full or not writable.
    """
    try:
        with path.open("xb") as file:
            torch.save(content, file)
        flush(path)
    except RuntimeError as error:  # torch's zip writer hides a full disk behind an error of its own
        cause = error.__context__
        raise OSError(cause.errno, cause.strerror, str(path)) if isinstance(cause, OSError) else error from None


def load_plain(path: Path) -> Any:
    """What torch.save has written, on the CPU and without pickles; tensors are read when they are used.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        check_regular(path, "checkpoint")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except ConfigError:
        raise
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path}: cannot be read as a checkpoint ({first_line(error)})") from None


def read_header(folder: Path) -> dict[str, Any]:
    """Everything but the tensors.

    Raises:
        ConfigError: it is no sharded checkpoint of ours, cannot be read, or a part is missing or cut off.
    """
    if not is_sharded(folder):
        raise ConfigError(f"{folder}: is not a sharded checkpoint of promptcomp (it holds no {HEADER})")
    header = load_plain(folder / HEADER)
    if not isinstance(header, dict) or not {"tensors", "shards", "promptcomp"} <= header.keys():
        raise ConfigError(f"{folder}: is not a sharded checkpoint of promptcomp")
    for name, size in header["shards"].items():
        path = folder / name
        if not path.is_file():
            raise ConfigError(f"{folder}: incomplete, {name} is missing; copy the complete folder")
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
            stored = {}
            for name, tensor in wanted.items():
                found = parts[name].items()
                chunks = [ChunkStorageMetadata(start, torch.Size(part.get_shape())) for start, part in found]
                stored[name] = TensorStorageMetadata(TensorProperties(tensor.dtype), tensor.shape, chunks)
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
