"""A sharded checkpoint as one file."""

from __future__ import annotations

from pathlib import Path

from promptcomp.checkpoints.checkpoint_files import existing, read_checkpoint, write_whole
from promptcomp.checkpoints.sharded_files import is_sharded
from promptcomp.config import ConfigError
from promptcomp.files import locked
from promptcomp.run.run_directory import RunDirectory


def consolidate(path: Path, output: Path | None) -> Path:
    """Join the parts of a checkpoint; returns the file.

    Args:
        path: A sharded checkpoint, or a run directory, whose last checkpoint is meant.
        output: The file to write; None: in the place of the folder.

    Raises:
        ConfigError: there is no sharded checkpoint, a part is missing or cut off, the run is being trained, or `output`
            exists.
    """
    run = RunDirectory(path)
    is_run = run.config.is_file()
    folder = existing(run.last) if is_run else path
    if folder is None or not folder.exists():
        raise ConfigError(f"{path}: no checkpoint there; give a run directory or a folder checkpoints/last.ckpt")
    if folder.is_file():
        raise ConfigError(f"{folder}: is one file already")
    if not is_sharded(folder):
        raise ConfigError(f"{folder}: is not a sharded checkpoint of promptcomp; give a run directory or its last.ckpt")
    if output is not None:
        if output.exists():
            raise ConfigError(f"{output} exists; name another file with --output")
        write_whole(read_checkpoint(folder), output)
        return output
    config = run.config if is_run else folder.parent.parent / "config.yaml"
    target = run.last if is_run else folder
    if not config.is_file():
        write_whole(read_checkpoint(folder), target)
        return target
    with locked(config):  # not under a training
        write_whole(read_checkpoint(folder), target)
    return target
