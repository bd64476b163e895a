"""Where checkpoints are; nothing is opened, and no torch is needed."""

from __future__ import annotations

from pathlib import Path

from promptcomp.errors import ConfigError

HEADER = "checkpoint.pt"
"""In the folder of a sharded checkpoint; it is written last."""
TENSORS = "trained.safetensors"
"""In the folder of an export."""
PROMPT = "prompt.safetensors"
"""In the folder of an exported prompt."""


def existing(path: Path) -> Path | None:
    """The checkpoint at `path`, or the one before if the program was killed while it exchanged them; None: neither."""
    return next((each for each in (path, before_of(path)) if each.is_file() or is_sharded(each)), None)


def before_of(path: Path) -> Path:
    """Where the checkpoint before is while it is exchanged."""
    return path.with_name(f".{path.name}.old")


def is_sharded(path: Path) -> bool:
    """Whether this is a folder with a finished sharded checkpoint."""
    return (path / HEADER).is_file()


def places_of(path: Path) -> list[Path]:
    """The checkpoints and exports at a path: itself, or those of a run directory: the best, the last, then others, the
    newest first, and its export.

    Raises:
        ConfigError: there are none.
    """
    if path.is_file() or is_sharded(path) or (path / TENSORS).is_file():
        return [path]
    export, folder, named = path / "export", path / "checkpoints", ("best.ckpt", "last.ckpt")
    others = [file for file in folder.glob("*.ckpt") if file.name not in named]
    others.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    found = [*(file for name in named if (file := existing(folder / name))), *others]
    found += [export] if (export / TENSORS).is_file() else []
    if not found:
        missing = "" if path.exists() else " (does not exist)"
        raise ConfigError(f"{path}{missing}: no trained weights there; give a run directory, an export or a .ckpt")
    return found


def trained_at(path: Path) -> Path:
    """What trained tensors are read from: the export at a path or in a run directory, otherwise the best checkpoint.

    Raises:
        ConfigError: nothing of the kind is there.
    """
    found = places_of(path)
    return next((each for each in found if (each / TENSORS).is_file()), found[0])


def tensors_at(path: Path) -> Path:
    """The file of `trained_at`, without what stands beside it in an export; a sharded checkpoint is a folder.

    Raises:
        ConfigError: nothing of the kind is there.
    """
    found = trained_at(path)
    return file if (file := found / TENSORS).is_file() else found


def to_join(path: Path, output: Path | None) -> tuple[Path, Path]:
    """The place of a sharded checkpoint, a run directory's last one, and the folder that it is in.

    Raises:
        ConfigError: there is none, it is one file already, or `output` exists.
    """
    is_run = (path / "config.yaml").is_file()
    target = path / "checkpoints" / "last.ckpt" if is_run else path
    folder = existing(target)
    if folder is None:
        what = "is not a sharded checkpoint of promptcomp" if target.exists() else "no checkpoint there"
        raise ConfigError(f"{target}: {what}; give a run directory or its checkpoints/last.ckpt")
    if folder.is_file():
        raise ConfigError(f"{folder}: is already one file")
    if output is not None and output.exists():
        raise ConfigError(f"{output} exists; name another file with --output")
    return target, folder
