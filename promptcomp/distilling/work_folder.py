"""The folder of a cartridge in the making: questions, answers and training states, so that a kill loses nothing.

distill.json           what the answers depend on: the text, the LM, the format, the questions
questions.jsonl        what the LM has asked itself, a line each
answers/0000...        what it has answered behind the full context, with its likeliest tokens
slots-64-kv-HASH...    the state of a training with the settings of this hash
written.json           the files that were made from it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from promptcomp.config import ConfigError
from promptcomp.documents import read_json
from promptcomp.files import check_output, locked, make_folder, write_atomic

_WHAT = "folder of a cartridge in the making"
_STOPPED = " stopped"
"""Behind the hash of a file whose training had not ended."""


class WorkFolder:
    """The open folder; one process at a time. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = ExitStack()

    def __enter__(self) -> Self:
        """
        Raises:
            ConfigError: another process works there, or it cannot be made.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path}: is a file; name a folder for questions and answers with --work")
        make_folder(self.path / "answers", "; name another with --work")
        self._held.enter_context(locked(self.path / "lock"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._held.close()

    @property
    def questions(self) -> Path:
        """What the LM has asked itself."""
        return self.path / "questions.jsonl"

    def answers(self, number: int) -> Path:
        """Answers of one batch."""
        return self.path / "answers" / f"{number:04d}.safetensors"

    def training(self, slots: int, kind: str, settings: Mapping[str, object]) -> Path:
        """The state of a training; other settings are another training."""
        found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        return self.path / f"slots-{slots}-{kind}-{found}.safetensors"

    def settle(self, identity: Mapping[str, str]) -> None:
        """Say what answers and slots depend on, or compare it with what an earlier call that has made some has said.

        Args:
            identity: by what a message calls it; what is long as its hash.

        Raises:
            ConfigError: names what differs.
        """
        before = self._kept("distill.json")
        made = self.questions.exists() or any(chain((self.path / "answers").iterdir(), self.path.glob("slots-*")))
        for what in [name for name in identity if made and before.get(name, identity[name]) != identity[name]]:
            raise ConfigError(
                f"{self.path}: its questions and answers were made with another {what}; name another folder with "
                "--work, or remove this one"
            )
        if before != identity:
            write_atomic(self.path / "distill.json", json.dumps(identity, indent=1) + "\n")

    def day(self) -> str | None:
        """The date that the chat template of an earlier call has written."""
        found = self._kept("distill.json").get("day")
        return None if found is None else str(found)

    def outputs(self, output: Path, budgets: Sequence[int], force: bool) -> dict[int, Path]:
        """The file of each number of slots; of several, each has its number in the name.

        Raises:
            ConfigError: one cannot be written, or is there already and was not made from this folder.
        """
        several = len(budgets) > 1
        found = {slots: output.with_stem(f"{output.stem}-{slots}") if several else output for slots in budgets}
        for file in found.values():
            check_output(file, force or self._is_ours(file, "", _STOPPED))
        return found

    def wrote(self, output: Path, finished: bool) -> None:
        """Remember a file that was made here."""
        known = {**self._kept("written.json"), str(output.resolve()): _hash_of(output) + ("" if finished else _STOPPED)}
        write_atomic(self.path / "written.json", json.dumps(known, indent=1) + "\n")

    def has_finished(self, output: Path) -> bool:
        """Whether a file was made here by a training that came to its end."""
        return self._is_ours(output, "")

    def _is_ours(self, file: Path, *states: str) -> bool:
        known = self._kept("written.json").get(str(file.resolve()))
        return file.is_file() and known in [_hash_of(file) + state for state in states]

    def _kept(self, name: str) -> dict[str, object]:
        path = self.path / name
        found = read_json(path, _WHAT) if path.exists() else {}
        if not isinstance(found, dict):
            raise ConfigError(f"{path}: is damaged; name another folder with --work, or remove this one")
        return found


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
