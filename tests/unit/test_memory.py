"""Memories as rows and as files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from promptcomp.config import ConfigError
from promptcomp.memory import EncoderStates, KVCache, Memory, SoftPrompt, load_memory, memory_tensors, save_memory

MASK = torch.tensor([[True, True, False], [True, True, True]])
MEMORIES: list[Memory] = [
    SoftPrompt(torch.randn(2, 3, 4), MASK),
    KVCache(tuple((torch.randn(2, 2, 3, 4), torch.randn(2, 2, 3, 4)) for _ in range(2)), MASK, torch.tensor([2, 9])),
    EncoderStates((torch.randn(2, 3, 4), torch.randn(2, 3, 4)), MASK),
]
IDS = [type(memory).__name__ for memory in MEMORIES]


@pytest.mark.parametrize("memory", MEMORIES, ids=IDS)
def test_file_round_trip(memory: Memory, tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_memory(path, memory, {"tokens": [12, 9], "method": "mend"})
    again, metadata = load_memory(path)
    assert type(again) is type(memory)
    assert metadata == {"tokens": [12, 9], "method": "mend"}
    before, after = memory_tensors(memory), memory_tensors(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [file.name for file in tmp_path.iterdir()] == ["one.safetensors"]


@pytest.mark.parametrize("memory", MEMORIES, ids=IDS)
def test_rows_and_slots(memory: Memory) -> None:
    assert memory.num_slots.tolist() == [2, 3]
    rows = memory_tensors(memory.rows(torch.tensor([1, 1, 0])))
    whole = memory_tensors(memory)
    assert all(torch.equal(rows[name], whole[name][[1, 1, 0]]) for name in rows)


def test_refuses_what_is_no_memory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_memory(tmp_path / "missing.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_memory(tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="not a memory file"):
        load_memory(tmp_path / "other.safetensors")
