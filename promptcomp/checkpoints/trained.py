"""The trained parts of a method as files: what a checkpoint says of itself, reading, checking and exporting."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptcomp.checkpoints.checkpoint_files import FORMAT, existing, first_line, read_checkpoint
from promptcomp.checkpoints.sharded_files import WEIGHTS, ShardReader, is_sharded
from promptcomp.config import Config, ConfigError
from promptcomp.documents import read_json
from promptcomp.files import replacing, write_atomic

TENSORS = "trained.safetensors"
DESCRIPTION = "promptcomp.json"


class Origin(Config):
    """Which method on which LM trained tensors belong to."""

    format: int = 1
    method: str
    family: str
    lm: str
    num_slots: int | None = None
    """Where the shapes of the tensors do not tell it."""


def check_format(info: Mapping[str, Any], source: str) -> None:
    """Make sure that this version can read it.

    Raises:
        ConfigError: it has no format number, or a newer one.
    """
    found = info.get("format")
    if not isinstance(found, int) or found < 1:
        raise ConfigError(f"{source}: not written by this version of promptcomp (format {found!r})")
    if found > FORMAT:
        raise ConfigError(
            f"{source}: written by a newer promptcomp (format {found}; this one reads up to {FORMAT}); "
            "update promptcomp"
        )


def check_trained(
    tensors: Mapping[str, Tensor],
    info: Mapping[str, Any],
    expected: Mapping[str, torch.Size],
    origin: Origin,
    source: str,
) -> None:
    """Check that `tensors`, described by `info`, are exactly what the module `origin` trains.

    Raises:
        ConfigError: names the first difference: format, method, family, missing or unknown tensors, shapes.
    """
    check_format(info, source)
    for key, ours in (("method", origin.method), ("family", origin.family)):
        if info.get(key) != ours:
            raise ConfigError(f"{source}: made with {key} {info.get(key)!r}, but this run uses {key} {ours!r}")
    slots = info.get("num_slots")
    if None not in (slots, origin.num_slots) and slots != origin.num_slots:
        raise ConfigError(f"{source}: made with method.num_slots = {slots}, but this run uses {origin.num_slots}")
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        found = f"{len(missing)} tensors missing ({', '.join(missing[:3])})" if missing else ""
        extra = f"{len(unknown)} tensors too many ({', '.join(unknown[:3])})" if unknown else ""
        raise ConfigError(
            f"{source}: does not fit this configuration: {'; '.join(part for part in (found, extra) if part)}"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            was, now = tuple(tensors[name].shape), tuple(shape)
            raise ConfigError(f"{source}: {name} has shape {was}, but this configuration needs {now} (slots, sizes?)")


def read_trained(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trained tensors and their description from an export folder, a checkpoint file or a run directory.

    Raises:
        ConfigError: there is nothing of the kind, or it cannot be read.
    """
    for folder in (path, path / "export"):
        if (folder / TENSORS).is_file():
            return _read_export(folder)
    file = path if path.is_file() or is_sharded(path) else _checkpoint_of(path)
    return read_weights(file)


def read_lora(path: Path) -> dict[str, Any]:
    """The configuration of the adapters in an export folder or a run directory.

    Raises:
        ConfigError: there is none.
    """
    for folder in (path, path / "export"):
        if (folder / DESCRIPTION).is_file():
            try:
                found = dict(read_json(folder / DESCRIPTION, "description of an export")["method"]["lora"])
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigError(f"{folder}: the export cannot be read ({first_line(error)})") from None
            return found
    raise ConfigError(f"{path}: the sizes of its adapters are not known; give a finished run or an export")


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The trained tensors of a checkpoint and what it says of itself; the optimiser's state is left unread.

    Raises:
        ConfigError: it cannot be read, is incomplete, or is none of ours.
    """
    if not path.is_dir():
        checkpoint = read_checkpoint(path)
        return checkpoint["state_dict"], checkpoint.get("promptcomp", {})
    with ShardReader(path) as reader:
        check_format(reader.header["promptcomp"], str(path))
        names = [name for name in reader.header["tensors"] if name.startswith(WEIGHTS)]
        return {name.removeprefix(WEIGHTS): reader.read(name) for name in names}, reader.header["promptcomp"]


def write_export(folder: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and description; a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with replacing(folder / TENSORS) as partial:
        save_file(whole, partial)
    write_atomic(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def _read_export(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        description = read_json(folder / DESCRIPTION, "description of an export")
        info = Origin.model_validate(description["origin"]).model_dump()
        return load_file(folder / TENSORS), info
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(f"{folder}: the export cannot be read ({first_line(error)})") from None


def _checkpoint_of(run: Path) -> Path:
    """The best checkpoint of a run directory, else the last, else the newest."""
    folder = run / "checkpoints"
    for name in ("best.ckpt", "last.ckpt"):
        if found := existing(folder / name):
            return found
    others = sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    if not others:
        raise ConfigError(
            f"{path_hint(run)}: no trained weights there; give a run directory, an export or a .ckpt file"
        )
    return others[-1]


def path_hint(path: Path) -> str:
    """The path, marked when it does not exist at all."""
    return str(path) if path.exists() else f"{path} (does not exist)"
