"""The file of a compressed prompt: a memory with one row, and in its header everything needed to use it safely."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError

from promptcomp.config import Config, ConfigError
from promptcomp.datamodules.base import PromptFormat
from promptcomp.language_model import LanguageModelConfig
from promptcomp.memory import Memory, load_memory, save_memory


class PromptInfo(Config):
    """What a compressed prompt says of itself; the `metadata` of its file."""

    # files of later programs of the same format may say more
    model_config = ConfigDict(extra="ignore")

    method: str
    """The method that compressed it."""
    family: Literal["decoder", "encoder_decoder"]
    """Family of the LM that reads it."""
    lm: LanguageModelConfig
    """The LM that reads it, or that the run has trained into it."""
    run: str | None = None
    """The run directory that made it."""
    lm_is_trained: bool = False
    """Whether the reading LM is the run's and not `lm` as it is."""
    lm_hash: str
    """Hash of the reading LM's weights."""
    tokenizer_hash: str
    """Hash of its tokenizer."""
    bos_id: int | None = None
    """The token in front of every sequence (a SoftPrompt stands behind it; the other kinds contain its effect)."""
    slots: int
    """Positions that the memory takes."""
    source_tokens: int
    """Tokens of the prompt it was made of (without BOS)."""
    next_position: int | None = None
    """Position id of the first token behind it (decoder-only)."""
    dtype: str
    """Type of the memory's numbers."""
    source_sha256: str
    """Hash of the prompt's text (UTF-8)."""
    text: str | None = None
    """The text itself, kept only on request."""
    query: str
    """Template of a query, with `{input}` where its text goes."""
    empty_query: str = ""
    """What stands for a query without text."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end an answer."""
    created: str
    """When it was made (UTC)."""
    version: str
    """The promptcomp that made it."""
    settings: dict[str, Any] = {}
    """The method's settings, and the task where one was named."""

    @property
    def format(self) -> PromptFormat:
        """How queries are written."""
        return PromptFormat(self.query, self.empty_query, self.stop_ids)


@dataclass(frozen=True, slots=True)
class StoredPrompt:
    """A memory (on the CPU) and what its file says of it."""

    memory: Memory
    info: PromptInfo


def write_prompt(path: Path, prompt: StoredPrompt, *, force: bool = False) -> None:
    """Write the file of a compressed prompt.

    Raises:
        ConfigError: a file is there already (without `force`), or it cannot be written.
    """
    check_output(path, force)
    save_memory(path, prompt.memory, prompt.info.model_dump(mode="json"))


def read_prompt(path: Path) -> StoredPrompt:
    """Read and verify the file of a compressed prompt.

    Raises:
        ConfigError: missing, truncated, edited, newer than this program, or something else altogether.
    """
    memory, metadata = load_memory(path)
    try:
        info = PromptInfo.model_validate(metadata)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{path}: holds a memory, but not a compressed prompt ({where}: {first['msg']}); "
            "'promptcomp compress' makes one"
        ) from None
    if len(memory.mask) != 1:
        raise ConfigError(f"{path}: holds {len(memory.mask)} memories; the file of a compressed prompt holds one")
    return StoredPrompt(memory, info)


def check_output(path: Path, force: bool) -> None:
    """Find out before the work whether a file can be written.

    Raises:
        ConfigError: says what is in the way.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file, for example {path / 'prompt.safetensors'}")
    if path.exists() and not force:
        raise ConfigError(f"{path}: exists already; replace it with --force, or name another file")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path}: the folder {path.parent} cannot be written to; name another file")
