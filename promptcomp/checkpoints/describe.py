"""What is in a checkpoint, an export or a run directory, and whether it is whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from promptcomp.checkpoints.checkpoint_files import read_checkpoint
from promptcomp.checkpoints.sharded_files import OPTIMIZER, WEIGHTS, empty_tensors, is_sharded, read_header, split
from promptcomp.checkpoints.trained_state import DESCRIPTION, TENSORS, checkpoints_of, read_trained
from promptcomp.config import ConfigError

Kind = Literal["whole", "sharded", "export"]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One trained tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Description:
    """What a checkpoint or an export says of itself."""

    path: str
    kind: Kind
    format: int
    method: str
    family: str
    lm: str
    step: int | None
    """Optimiser steps done; None for an export."""
    tensors: tuple[TensorInfo, ...]
    optimizer: dict[str, int] | None
    """Tensors and numbers of the optimiser's state; None where there is none."""
    bytes: int
    """Of all files."""
    files: dict[str, int] = field(default_factory=dict)
    """Sizes of the parts of a sharded checkpoint."""

    @property
    def parameters(self) -> int:
        """Trained numbers."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {**asdict(self), "parameters": self.parameters}


def places_of(path: Path) -> list[Path]:
    """The checkpoints and exports at a path: itself, or those of a run directory.

    Raises:
        ConfigError: there are none.
    """
    if path.is_file() or is_sharded(path) or (path / TENSORS).is_file():
        return [path]
    export = path / "export"
    found = [*checkpoints_of(path), *([export] if (export / TENSORS).is_file() else [])]
    if not found:
        missing = "" if path.exists() else " (does not exist)"
        raise ConfigError(f"{path}{missing}: no checkpoint there; give a run directory, an export or a checkpoint")
    return found


def describe(path: Path) -> Description:
    """What is at `path`, which is one of `places_of`; no tensor of a sharded checkpoint is read.

    Raises:
        ConfigError: it cannot be read, is incomplete, or is none of ours.
    """
    if (path / TENSORS).is_file():
        weights, info = read_trained(path)
        size = sum((path / name).stat().st_size for name in (TENSORS, DESCRIPTION))
        return _description(path, "export", info, None, {f"{WEIGHTS}{n}": t for n, t in weights.items()}, False, size)
    if path.is_dir():
        header = read_header(path)
        size = sum(each.stat().st_size for each in path.iterdir())
        has_state = "optimizer_states" in header
        found = _description(
            path, "sharded", header["promptcomp"], header["global_step"], empty_tensors(header), has_state, size
        )
        found.files.update(header["shards"])
        return found
    checkpoint = read_checkpoint(path)
    _, tensors = split(checkpoint)
    has_state, info = "optimizer_states" in checkpoint, checkpoint.get("promptcomp", {})
    return _description(path, "whole", info, checkpoint.get("global_step"), tensors, has_state, path.stat().st_size)


def _description(
    path: Path,
    kind: Kind,
    info: Mapping[str, Any],
    step: int | None,
    tensors: Mapping[str, Tensor],
    has_state: bool,
    size: int,
) -> Description:
    missing = {"format", "method", "family", "lm"} - info.keys()
    if missing:
        raise ConfigError(f"{path}: is not a checkpoint of promptcomp (it does not say its {sorted(missing)[0]})")
    weights = tuple(
        TensorInfo(name.removeprefix(WEIGHTS), tuple(t.shape), str(t.dtype).removeprefix("torch."))
        for name, t in tensors.items()
        if name.startswith(WEIGHTS)
    )
    state = [tensor for name, tensor in tensors.items() if name.startswith(OPTIMIZER)]
    optimizer = {"tensors": len(state), "numbers": sum(tensor.numel() for tensor in state)} if has_state else None
    names = (info["format"], info["method"], info["family"], info["lm"])
    return Description(str(path), kind, *names, step, weights, optimizer, size)


def damage(path: Path) -> list[str]:
    """What is wrong with the files at a path of `places_of`: unreadable, missing or cut off, numbers not finite."""
    try:
        describe(path)
        tensors = _all_tensors(path)
    except ConfigError as error:
        return [str(error)]
    return [
        f"{path}: {name} holds {bad} numbers that are not finite"
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and (bad := int((~torch.isfinite(tensor)).sum()))
    ]


def _all_tensors(path: Path) -> dict[str, Tensor]:
    if (path / TENSORS).is_file():
        return read_trained(path)[0]
    return split(read_checkpoint(path))[1]
