"""A registry: a folder of compressed prompts, `NAME.safetensors`. Files may come, change and go while it is served.

A file is looked at whenever a request names it, so nothing has to watch the folder. Requests that run keep the memory
that they began with. Nothing but a regular file of this very folder is ever opened.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from promptcomp.config import ConfigError
from promptcomp.documents import parse_json
from promptcomp.language_model import LanguageModel
from promptcomp.memory import Memory, memory_to
from promptcomp.plain import shown
from promptcomp.prompts.artifact import PromptInfo, read_prompt, weights_hash
from promptcomp.prompts.prompt_files import PromptReader, misfit
from promptcomp.serving import Refusal

SUFFIX = ".safetensors"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}")
_OPEN = 64
"""Prompts that are kept open."""
_SETTLED = 5.0
"""Seconds after its last change in which a file that cannot be read may be one that is being copied."""
_MOST_HEADER = 2**24


@dataclass(frozen=True, slots=True, eq=False)
class StoredPrompt:
    """A prompt that the LM here reads."""

    name: str
    memory: Memory
    info: PromptInfo
    reader: PromptReader


def names(folder: Path) -> list[str]:
    """The prompts in a folder."""
    with os.scandir(folder) as found:
        files = [each.name for each in found if each.is_file(follow_symlinks=False) and each.name.endswith(SUFFIX)]
    return sorted(name for file in files if _NAME.fullmatch(name := file.removesuffix(SUFFIX)))


@contextmanager
def _opened(folder: Path, name: str) -> Iterator[IO[bytes]]:
    """
    Raises:
        FileNotFoundError: there is no prompt of this name.
    """
    if not _NAME.fullmatch(name):
        raise FileNotFoundError
    try:
        handle = os.open(folder / f"{name}{SUFFIX}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        raise FileNotFoundError from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileNotFoundError
    with os.fdopen(handle, "rb") as file:
        yield file


def header(folder: Path, name: str) -> PromptInfo:
    """What a prompt says of itself; its tensors are not looked at, only whether they are all there.

    Raises:
        FileNotFoundError: there is none.
        ConfigError: the file is none, or truncated.
    """
    with _opened(folder, name) as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            entries = parse_json(file.read(min(size, _MOST_HEADER)))
            info = PromptInfo.model_validate(parse_json(entries.pop("__metadata__")["promptcomp"])["metadata"])
            end = 8 + size + max(tensor["data_offsets"][1] for tensor in entries.values())
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, ValidationError):
            raise ConfigError(f"{name}{SUFFIX}: is no file of a compressed prompt") from None
        if os.fstat(file.fileno()).st_size != end:
            raise ConfigError(f"{name}{SUFFIX}: is truncated, or still being written")
        return info


class Registry:
    """The prompts of a folder that an LM reads.

    Args:
        folder: where they are.
        lm: the LM, on its device.
        name: of the LM, in messages.
    """

    def __init__(self, folder: Path, lm: LanguageModel, name: str) -> None:
        self._folder, self._lm, self._name = folder.resolve(), lm, name
        self._weights = weights_hash(lm.hf)
        self._known: OrderedDict[str, tuple[Any, StoredPrompt | Refusal]] = OrderedDict()
        self._misfits: dict[Any, str | None] = {}
        self._lock = threading.Lock()

    def infos(self) -> dict[str, PromptInfo | str]:
        """All prompts by name; a sentence in place of one that cannot be used here."""
        found: dict[str, PromptInfo | str] = {}
        for name in names(self._folder) if self._folder.is_dir() else ():
            try:
                info = header(self._folder, name)
                reason = self._misfit(info)
                found[name] = info if reason is None else str(self._foreign(name, reason))
            except FileNotFoundError:
                continue
            except ConfigError as error:
                found[name] = str(error)
        return found

    def find(self, name: str) -> StoredPrompt:
        """The prompt of a name, as its file is now. Reads files: not for the thread that serves.

        Raises:
            Refusal: there is none (404), it is damaged or for another LM (422), or just being written (503).
        """
        with self._lock:
            try:
                with _opened(self._folder, name) as file:
                    state = os.fstat(file.fileno())
                    version = (state.st_ino, state.st_mtime_ns, state.st_size)
                    before, found = self._known.get(name, (None, None))
                    if found is None or before != version:
                        found = self._load(name, file)
                        if getattr(found, "code", "") == "prompt_damaged" and time.time() - state.st_mtime < _SETTLED:
                            raise Refusal(503, f"{found}; it may be being written now", "prompt_not_ready", 1)
                        self._known[name] = (version, found)
                    self._known.move_to_end(name)
            except FileNotFoundError:
                self._known.pop(name, None)
                raise Refusal(404, f"there is no compressed prompt {shown(name)} here", "model_not_found") from None
            if len(self._known) > _OPEN:
                self._known.popitem(last=False)
        if isinstance(found, Refusal):
            raise found
        return found

    def _load(self, name: str, file: IO[bytes]) -> StoredPrompt | Refusal:
        # of its own: tensors are read where they lie, and this file may be written over
        with tempfile.NamedTemporaryFile(suffix=SUFFIX) as own:
            try:
                shutil.copyfileobj(file, own, 2**20)
                own.flush()
                memory, info = read_prompt(Path(own.name))
            except ConfigError as error:
                return Refusal(422, str(error).replace(own.name, f"{name}{SUFFIX}"), "prompt_damaged")
        if (reason := self._misfit(info)) is not None:
            return self._foreign(name, reason)
        reader = PromptReader(self._lm, info.format)
        return StoredPrompt(name, memory_to(memory, reader.device), info, reader)

    def _misfit(self, info: PromptInfo) -> str | None:
        key = (info.family, info.tokenizer_hash, info.bos_id, info.lm_hash)
        if key not in self._misfits:
            self._misfits[key] = misfit(self._lm, self._weights, info)
        return self._misfits[key]

    def _foreign(self, name: str, reason: str) -> Refusal:
        said = f"the compressed prompt {name!r} was made for another LM: {self._name} {reason.partition(';')[0]}"
        return Refusal(422, said, "prompt_of_another_lm")
