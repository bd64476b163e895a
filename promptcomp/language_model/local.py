"""Language models that answer here instead of an endpoint: their names and their device."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from promptcomp.config import ConfigError
from promptcomp.language_model.loading import locate

DEVICES = ("auto", "cpu", "cuda")


def local_device(name: str) -> torch.device:
    """The device of `--device`; auto: CUDA where there is one.

    Raises:
        ConfigError: an unknown name, or there is no such device.
    """
    if name not in DEVICES:
        raise ConfigError(f"--device {name!r} is not known; choose {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no CUDA device here; use --device cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def local_identity(path: str) -> str:
    """The name of a local model in a record: a folder by its full path, a hub name as it is."""
    found = Path(locate(path))
    return f"local:{found.resolve()}" if os.path.exists(found) and not path.startswith("embedded:") else f"local:{path}"
