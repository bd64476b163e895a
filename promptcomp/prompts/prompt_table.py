"""What a compressed prompt is, for people and for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from promptcomp.errors import command
from promptcomp.evaluation.formatting import bytes_text
from promptcomp.memory import memory_tensors
from promptcomp.prompts.artifact import read_prompt
from promptcomp.prompts.compressing import Compression

_SHOWN_HASH = 16
_SHOWN_TEXT = 300


def description(file: Path) -> dict[str, Any]:
    """Everything that the file of a compressed prompt says, after verifying it.

    Raises:
        ConfigError: as `read_prompt`.
    """
    stored = read_prompt(file)
    tensors = memory_tensors(stored.memory)
    return {
        "file": str(file),
        "file_bytes": file.stat().st_size,
        "verified": True,
        "kind": type(stored.memory).__name__,
        "tensor_bytes": sum(t.numel() * t.element_size() for t in tensors.values()),
        "num_tensors": len(tensors),
        **stored.info.model_dump(mode="json"),
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
    lines = (
        f"{output}: {info.source_tokens} tokens -> {info.slots} slots ({ratio:.1f}x) in {done.milliseconds:.0f} ms",
        f"file {bytes_text(file_bytes)}, in the LM's cache {bytes_text(done.kv_bytes)} instead of "
        f"{bytes_text(done.full_kv_bytes)}",
        f"ask it: {command('generate', '--prompt', output, '...')}",
    )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
