"""Whole files or none: atomic writes, and reads that tell a person what is wrong."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from promptcomp.config import ConfigError


def write_atomic(path: Path, text: str) -> None:
    """Replace the file `path` by `text`; a reader (or a crash at any moment) sees the old file or the new one.

    Raises:
        ConfigError: the folder is missing, not writable or full. The old file, if any, is untouched.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes private files; a run directory is for sharing
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{path}: cannot be written ({reason}); free space or choose another output_dir") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def read_text(path: Path, what: str) -> str:
    """The text of a file that a run has written.

    Args:
        path: the file.
        what: what it should be, for the message ("results file").

    Raises:
        ConfigError: the file is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such {what}; has the run finished its evaluation?") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a {what} of promptcomp (not UTF-8 text)") from None


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; some file systems cannot sync a folder, and then there is nothing to do."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
