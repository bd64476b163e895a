"""Compressing a prompt with a trained run, and what a compressed prompt says of itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from promptcomp import __version__
from promptcomp.batch import Context
from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import ContextDataModule
from promptcomp.datamodules.icl import ICLDataModule
from promptcomp.errors import command
from promptcomp.evaluation.formatting import bytes_text
from promptcomp.experiment import Experiment
from promptcomp.language_model import LanguageModelConfig
from promptcomp.language_model.loading import pick_device
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.memory import Memory, memory_tensors, memory_to
from promptcomp.prompts.artifact import PromptInfo, read_prompt, text_hash, tokenizer_hash, weights_hash
from promptcomp.prompts.prompt_files import CompressedPrompt, PromptReader, next_position
from promptcomp.prompts.sources import PromptSource, read_source
from promptcomp.run.opening import open_trained, quiet


@dataclass(frozen=True, slots=True)
class Compression:
    """A compressed prompt and what it cost."""

    prompt: CompressedPrompt
    milliseconds: float
    """Time of compressing alone, without opening models."""
    kv_bytes: int
    """What the memory holds in the cache that the LM's decoder reads."""
    full_kv_bytes: int
    """What the whole prompt would hold there."""


class Compressor:
    """A trained run that compresses prompts.

    Args:
        run: The run's directory (recorded in the prompts); None: it was trained in memory.
        parts: What `open_trained` gives.
        device: Where to compress.
    """

    def __init__(
        self, run: Path | None, parts: tuple[Experiment, ContextDataModule, CompressionModule], device: str = "auto"
    ) -> None:
        self.run, self.source = run, str(run or "this compressor")
        self.experiment, self.datamodule, self.module = parts
        self.module.to(pick_device(device))
        self.reader = PromptReader(self.module.lm, self.datamodule.prompt_format())

    @cached_property
    def _hashes(self) -> tuple[str, str]:
        return weights_hash(self.module.lm.hf), tokenizer_hash(self.reader.tokenizer)

    @property
    def is_icl(self) -> bool:
        """Whether the run's prompts are demonstrations."""
        return isinstance(self.datamodule, ICLDataModule)

    def context(self, source: PromptSource, task: str | None = None) -> Context:
        """The token ids of a prompt, as training would have written it.

        Raises:
            ConfigError: it is empty, has demonstrations where the data knows none, or the task is unknown.
        """
        if source.rows is not None:
            if not isinstance(self.datamodule, ICLDataModule):
                kind = self.experiment.data.name
                raise ConfigError(f"{self.source}: its data ({kind}) has no demonstrations; give the prompt as text")
            ids = self.datamodule.demonstration_ids(source.rows)
        elif source.text.strip():
            ids = self.datamodule.context_ids(source.text)
        else:
            ids = ()
        if not ids and self.module.method.reads_prompt:
            raise ConfigError("the prompt is empty or only white space; there is nothing to compress")
        row = torch.tensor([ids], dtype=torch.long, device=self.module.device)
        number = torch.tensor([self._task_number(task)], device=self.module.device)
        return Context(row, torch.ones_like(row, dtype=torch.bool), number)

    def _task_number(self, task: str | None) -> int:
        names = self.module.task_names
        if task is None:
            if self.module.method.has_task_prompts and len(names) > 1:
                raise ConfigError(f"{self.source}: has a prompt for each task; choose one with --task: {_list(names)}")
            return 0
        if task not in names:
            raise ConfigError(f"--task {task!r} is unknown; {self.source} knows {_list(names)}")
        return names.index(task)

    def compress(self, source: PromptSource, *, task: str | None = None, keep_text: bool = False) -> Compression:
        """Compress a prompt.

        Raises:
            ConfigError: the prompt is empty or does not fit the LM's window, or the method makes no memory.
        """
        context = self.context(source, task)
        start = time.perf_counter()
        memory = self._memory(context, self.module.compress)
        milliseconds = 1000 * (time.perf_counter() - start)
        if memory is None:
            method = self.experiment.method.name
            raise ConfigError(f"{self.source}: its method ({method}) reads no prompt, so there is nothing to save")
        tokens = context.ids.shape[1]
        info = self._info(source, memory, tokens, task, keep_text)
        lm = self.module.lm
        prompt = CompressedPrompt(memory, info, reader=self.reader)
        whole = (tokens + lm.num_bos) * lm.kv_bytes_per_token
        return Compression(prompt, milliseconds, round(lm.kv_bytes(memory)), whole)

    def uncompressed(self, source: PromptSource) -> Memory | None:
        """The whole prompt as a memory of the same LM, for comparison (on the CPU)."""
        context = self.context(source)
        return self._memory(context, self.module.lm.encode)

    @torch.no_grad()
    def _memory(self, context: Context, read: Callable[[Context], Memory | None]) -> Memory | None:
        tokens, window = context.ids.shape[1], self.module.lm.window
        try:
            memory = read(context)
        except ConfigError as error:
            if window is None or tokens + self.module.num_memory_slots(tokens) <= window:
                raise
            raise ConfigError(
                f"the prompt of {tokens} tokens does not fit the LM's window of {window}; shorten it ({error})"
            ) from None
        return None if memory is None else memory_to(memory, "cpu")  # waits for a GPU to finish

    def _info(self, source: PromptSource, memory: Memory, tokens: int, task: str | None, keep_text: bool) -> PromptInfo:
        lm, experiment, format_ = self.module.lm, self.experiment, self.reader.format
        weights, tokenizer = self._hashes
        settings = experiment.method.model_dump(mode="json", exclude={"name"})
        dtype = next(t.dtype for t in memory_tensors(memory).values() if t.is_floating_point())
        return PromptInfo(
            method=experiment.method.name,
            family=lm.family,
            lm=_findable(experiment.lm),
            run=None if self.run is None else str(self.run.resolve()),
            lm_is_trained=self.module.method.lm_training != "none",
            lm_hash=weights,
            tokenizer_hash=tokenizer,
            bos_id=lm.bos_id,
            slots=int(memory.num_slots[0]),
            source_tokens=tokens,
            next_position=next_position(lm, memory),
            dtype=str(dtype).removeprefix("torch."),
            source_sha256=text_hash(source.text),
            text=source.text if keep_text else None,
            query=format_.query,
            empty_query=format_.empty_query,
            stop_ids=format_.stop_ids,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            version=__version__,
            settings=settings if task is None else {**settings, "task": task},
        )


def _findable(lm: LanguageModelConfig) -> LanguageModelConfig:
    """The same section with an absolute path, where it names a folder."""
    folder = Path(lm.path)
    return lm.model_copy(update={"path": str(folder.resolve())}) if os.path.isdir(folder) else lm


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "no task names"


def open_compressor(run: str | Path, device: str = "auto") -> Compressor:
    """Open a finished run for compressing prompts.

    Raises:
        ConfigError: no run, no trained weights, or its data cannot be opened.
    """
    with quiet():
        return Compressor(Path(run), open_trained(Path(run)), device)


def compress(
    run: str | Path,
    *,
    text: str | None = None,
    file: str | Path | None = None,
    demonstrations: Sequence[tuple[str, str]] | str | Path | None = None,
    task: str | None = None,
    keep_text: bool = False,
    device: str = "auto",
) -> CompressedPrompt:
    """Compress one prompt with a trained run.

    Args:
        run: The run's directory.
        text: The prompt.
        file: A UTF-8 file with the prompt, instead of `text`.
        demonstrations: Pairs (input, output), or a JSON-lines file with `input` and `output`, instead of `text`.
        task: Whose prompt to take (prompt tuning with a prompt for each task).
        keep_text: Keep the prompt's text in the result and its file.
        device: "auto" (a GPU if there is one), "cpu", "cuda", ...

    Raises:
        ConfigError: no such run, or a prompt that is empty, unreadable or too long.
    """
    given = [value for value in (text, file, demonstrations) if value is not None]
    if len(given) > 1:
        raise ConfigError("give one of text, file and demonstrations")
    compressor = open_compressor(run, device)
    source = read_source(text=text, file=file, demonstrations=demonstrations, is_icl=compressor.is_icl)
    return compressor.compress(source, task=task, keep_text=keep_text).prompt


_SHOWN_HASH = 16
_SHOWN_TEXT = 300


def description(file: Path) -> dict[str, Any]:
    """Everything that the file of a compressed prompt says, after verifying it.

    Raises:
        ConfigError: as `read_prompt`.
    """
    memory, info = read_prompt(file)
    tensors = memory_tensors(memory)
    return {
        "file": str(file),
        "file_bytes": file.stat().st_size,
        "verified": True,
        "kind": type(memory).__name__,
        "tensor_bytes": sum(t.numel() * t.element_size() for t in tensors.values()),
        "num_tensors": len(tensors),
        **info.model_dump(mode="json"),
    }


def print_description(found: dict[str, Any], console: Console) -> None:
    """The description as a table."""
    lm, slots, tokens = found["lm"], found["slots"], found["source_tokens"]
    reader = f"{lm['path']} as trained in {found['run']}" if found["lm_is_trained"] else lm["path"]
    rows = {
        "file": f"{found['file']} ({bytes_text(found['file_bytes'])}, hash verified)",
        "kind": f"{found['kind']}, {found['dtype']}, {found['num_tensors']} tensors",
        "made by": f"{found['method']} ({found['run']}) on {found['created']}, promptcomp {found['version']}",
        "prompt": f"{tokens} tokens -> {slots} slots ({tokens / max(slots, 1):.1f}x)",
        "read by": reader,
        "weights": found["lm_hash"][:_SHOWN_HASH],
        "tokenizer": found["tokenizer_hash"][:_SHOWN_HASH],
        "next position": "-" if found["next_position"] is None else str(found["next_position"]),
        "query": repr(found["query"]),
        "empty query": repr(found["empty_query"]),
        "stop tokens": ", ".join(map(str, found["stop_ids"])) or "none",
        "source hash": found["source_sha256"][:_SHOWN_HASH],
        "text": "not kept" if found["text"] is None else repr(found["text"][:_SHOWN_TEXT]),
        "settings": ", ".join(f"{key}={value}" for key, value in found["settings"].items()),
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, value, style=None)
    console.print(table, markup=False, highlight=False)


def print_compression(done: Compression, output: Path, file_bytes: int, console: Console) -> None:
    """What compressing gave, in a few lines."""
    info = done.prompt.info
    ratio = info.source_tokens / max(info.slots, 1)
    lines = [
        f"{output}: {info.source_tokens} tokens -> {info.slots} slots ({ratio:.1f}x) in {done.milliseconds:.0f} ms",
        f"file {bytes_text(file_bytes)}, in the LM's cache {bytes_text(done.kv_bytes)} instead of "
        f"{bytes_text(done.full_kv_bytes)}",
        f"ask it: {command('generate', '--prompt', output, '...')}",
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
