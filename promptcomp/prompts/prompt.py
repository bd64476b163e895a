"""A compressed prompt in Python: `load_prompt("prompt.safetensors").generate("query")`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch

from promptcomp.memory import Memory
from promptcomp.prompts.artifact import PromptInfo, StoredPrompt, read_prompt, write_prompt
from promptcomp.prompts.prompt_files import Answer, AnswerSettings, OnText, Reader, open_lm


class CompressedPrompt:
    """A compressed prompt and the LM that reads it (which is opened and checked when it is first needed).

    Args:
        stored: The memory and what is known of it.
        reader: The LM, where it is open already.
        model: A run directory or LM to use instead of the one that the prompt names.
        device: "auto", "cpu", "cuda", ...
        source: The prompt's name for messages.
    """

    def __init__(
        self,
        stored: StoredPrompt,
        *,
        reader: Reader | None = None,
        model: str | Path | None = None,
        device: str = "auto",
        source: str = "the compressed prompt",
    ) -> None:
        self._stored, self._reader = stored, reader
        self._model, self._device, self._source = model, device, source

    def __repr__(self) -> str:
        info = self.info
        return f"CompressedPrompt({info.method}, {info.source_tokens} tokens -> {info.slots} slots)"

    @property
    def info(self) -> PromptInfo:
        """What the prompt says of itself."""
        return self._stored.info

    @property
    def memory(self) -> Memory:
        """The memory, with one row, on the CPU."""
        return self._stored.memory

    @property
    def reader(self) -> Reader:
        """The LM that reads the prompt.

        Raises:
            ConfigError: it is gone, or another than the prompt was made for.
        """
        if self._reader is None:
            lm = open_lm(self.info, self._model, self._source)
            lm.to(choose_device(self._device))
            self._reader = Reader(lm, self.info.format)
        return self._reader

    @overload
    def generate(
        self,
        queries: str,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        num_beams: int = 1,
        batch_size: int = 16,
        on_text: OnText | None = None,
    ) -> str: ...

    @overload
    def generate(
        self,
        queries: list[str] | tuple[str, ...],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        num_beams: int = 1,
        batch_size: int = 16,
        on_text: OnText | None = None,
    ) -> list[str]: ...

    def generate(
        self,
        queries: str | list[str] | tuple[str, ...],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        num_beams: int = 1,
        batch_size: int = 16,
        on_text: OnText | None = None,
    ) -> str | list[str]:
        """The answer to one query, or the answers to several; see `AnswerSettings` for the settings.

        Args:
            queries: One text, or several.
            max_new_tokens: Most tokens of an answer; None: 128, or as many as the LM's window leaves.
            temperature: 0 takes the likeliest token; otherwise tokens are drawn.
            top_p: Draw from the likeliest tokens that hold this much probability together.
            seed: Seed of the draws.
            num_beams: More than 1: beam search.
            batch_size: Queries that are answered at once.
            on_text: Called with pieces of the answer as they come; for one query only.

        Raises:
            ConfigError: the LM is gone or another one, a query is empty, or the settings do not fit.
        """
        settings = AnswerSettings(max_new_tokens, temperature, top_p, seed, num_beams, batch_size)
        if isinstance(queries, str):
            return self.answers([queries], settings, on_text)[0].text
        return [answer.text for answer in self.answers(queries, settings)]

    def answers(
        self, queries: Sequence[str], settings: AnswerSettings | None = None, on_text: OnText | None = None
    ) -> list[Answer]:
        """The answers with their token ids; `on_text` goes with one query."""
        settings = AnswerSettings() if settings is None else settings
        return list(self.reader.answers(self.memory, queries, settings, on_text))

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the prompt as a safetensors file.

        Raises:
            ConfigError: a file is there already (without `force`), or it cannot be written.
        """
        write_prompt(Path(path), self._stored, force=force)
        return Path(path)


def load_prompt(path: str | Path, *, model: str | Path | None = None, device: str = "auto") -> CompressedPrompt:
    """Read and verify a compressed prompt; its LM is opened (and checked) when the first query comes.

    Args:
        path: A file that `promptcomp compress` or `CompressedPrompt.save` has written.
        model: A run directory or an LM's path to use instead of the one that the file names.
        device: Where to generate: "auto" (a GPU if there is one), "cpu", "cuda", ...

    Raises:
        ConfigError: missing, truncated, edited, newer than this program, or no compressed prompt.
    """
    return CompressedPrompt(read_prompt(Path(path)), model=model, device=device, source=str(path))


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
