"""Checkpoints on disk: one whole file, or a folder into which every process has written its part.

Whatever is written is complete before it takes the place of the one before, so that a kill or a full disk at any moment
leaves a usable checkpoint; `existing` finds it.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from promptcomp.checkpoints.sharded_files import first_line, is_sharded, read_header, read_whole
from promptcomp.config import ConfigError
from promptcomp.files import check_regular, locked

FORMAT = 2
"""Of the checkpoints that are written. 1: the optimiser's state by number; 2: by name."""


def existing(path: Path) -> Path | None:
    """The checkpoint at `path`, or the one before if the program was killed while it exchanged them; None: neither."""
    return next((each for each in (path, _before(path)) if each.is_file() or is_sharded(each)), None)


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
    try:
        check_regular(path, "checkpoint")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except ConfigError:
        raise
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path}: cannot be read as a checkpoint ({first_line(error)})") from None
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
        with temporary.open("xb") as file:
            torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    except RuntimeError as error:
        raise disk_error(error, path) from None
    finally:
        remove(temporary)


def consolidate(path: Path, output: Path | None) -> Path:
    """Join the parts of a checkpoint; returns the file.

    Args:
        path: A sharded checkpoint, or a run directory, whose last checkpoint is meant.
        output: The file to write; None: in the place of the folder.

    Raises:
        ConfigError: there is no sharded checkpoint, a part is missing or cut off, the run is being trained, or `output`
            exists.
    """
    is_run = (path / "config.yaml").is_file()
    target = path / "checkpoints" / "last.ckpt" if is_run else path
    folder = existing(target)
    if folder is None and not target.exists():
        raise ConfigError(f"{path}: no checkpoint there; give a run directory or a folder checkpoints/last.ckpt")
    if folder is None:
        raise ConfigError(f"{target}: is not a sharded checkpoint of promptcomp; give a run directory or its last.ckpt")
    if folder.is_file():
        raise ConfigError(f"{folder}: is one file already")
    if output is not None:
        if output.exists():
            raise ConfigError(f"{output} exists; name another file with --output")
        write_whole(read_whole(folder), output)
        return output
    config = target.parent.parent / "config.yaml"
    with locked(config) if config.is_file() else nullcontext():  # not under a training
        write_whole(read_whole(folder), target)
    return target


def disk_error(error: RuntimeError, path: Path) -> Exception:
    """The full disk that torch's zip writer hides behind an error of its own, or the error itself."""
    cause = error.__context__
    return OSError(cause.errno, cause.strerror, str(path)) if isinstance(cause, OSError) else error


def replace(new: Path, path: Path) -> None:
    """Put a complete file or folder in the place of a file or folder; `existing(path)` is one of the two throughout."""
    before = _before(path)
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
    _flush(path.parent)
    remove(before)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _before(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _flush(folder: Path) -> None:
    """Make the names in a folder last; some file systems have no such thing."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)
