"""What is in a checkpoint, an export or a run directory, and whether it is complete."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch

from promptcomp.checkpoints.checkpoint_files import (
    OPTIMIZER,
    WEIGHTS,
    empty_tensors,
    is_sharded,
    read_checkpoint,
    read_header,
    split,
)
from promptcomp.checkpoints.trained_state import DESCRIPTION, TENSORS, checkpoints_of, read_trained
from promptcomp.config import ConfigError, Measured

Kind = Literal["whole", "sharded", "export"]


class TensorInfo(Measured):
    """One trained tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Description(Measured):
    """The description that a checkpoint or an export holds."""

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
    files: dict[str, int]
    """Sizes of the parts of a sharded checkpoint."""
    parameters: int
    """Trained numbers."""


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
    kind: Kind = "export" if (path / TENSORS).is_file() else "sharded" if path.is_dir() else "whole"
    header: dict[str, Any]
    files: Iterable[Path] = (path,)
    if kind == "export":
        trained, info = read_trained(path)
        header, tensors = {"promptcomp": info}, {f"{WEIGHTS}{name}": tensor for name, tensor in trained.items()}
        files = (path / TENSORS, path / DESCRIPTION)
    elif kind == "sharded":
        header, files = read_header(path), path.iterdir()
        tensors = empty_tensors(header)
    else:
        header, tensors = split(read_checkpoint(path))
    info = header.get("promptcomp", {})
    if missing := {"format", "method", "family", "lm"} - info.keys():
        raise ConfigError(f"{path}: is not a checkpoint of promptcomp (it does not give its {min(missing)})")
    state = [tensor.numel() for name, tensor in tensors.items() if name.startswith(OPTIMIZER)]
    trained = {name.removeprefix(WEIGHTS): t for name, t in tensors.items() if name.startswith(WEIGHTS)}
    return Description(
        path=str(path),
        kind=kind,
        format=info["format"],
        method=info["method"],
        family=info["family"],
        lm=info["lm"],
        step=header.get("global_step"),
        tensors=tuple(
            TensorInfo(name=name, shape=tuple(each.shape), dtype=str(each.dtype).removeprefix("torch."))
            for name, each in trained.items()
        ),
        parameters=sum(each.numel() for each in trained.values()),
        optimizer={"tensors": len(state), "numbers": sum(state)} if "optimizer_states" in header else None,
        bytes=sum(file.stat().st_size for file in files),
        files=dict(header.get("shards", {})),
    )


def damage(path: Path) -> list[str]:
    """What is wrong with the files at a path of `places_of`: unreadable, missing or cut off, numbers not finite."""
    try:
        describe(path)
        tensors = read_trained(path)[0] if (path / TENSORS).is_file() else split(read_checkpoint(path))[1]
    except ConfigError as error:
        return [str(error)]
    return [
        f"{path}: {name} holds {bad} numbers that are not finite"
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and (bad := int((~torch.isfinite(tensor)).sum()))
    ]
