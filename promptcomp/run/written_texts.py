"""What the LM of a run writes: answers to the queries of a split, behind the memories that are scored anyway, and
rationales, where a student has learned to write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch

from promptcomp.batch import Batch
from promptcomp.datamodules.context_module import ContextDataModule, ExampleInfo
from promptcomp.datamodules.rationale.rationale_module import RationaleDataModule
from promptcomp.evaluation.predictions import GeneratedTexts
from promptcomp.experiment import EvaluationConfig
from promptcomp.files import write_atomic
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.memory import KVCache, Memory

_UNLIMITED = 1 << 30


@dataclass(slots=True)
class Answers:
    """Generates and collects answers; one object for one split."""

    datamodule: ContextDataModule
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    examples: Mapping[int, ExampleInfo]
    collected: dict[str, GeneratedTexts] = field(default_factory=dict)
    questions: dict[int, tuple[str, str, str]] = field(default_factory=dict)
    """Example -> instruction, input and right answer as texts."""

    def add(self, module: CompressionModule, memories: Mapping[str, Memory | None], batch: Batch) -> None:
        """Answer every query of a batch behind each row's memory.

        Args:
            module: its LM writes, greedily.
            memories: row -> the memory of the batch's contexts.
            batch: its targets are not looked at.
        """
        numbers = example_of_query(batch)
        limit = min(self.max_new_tokens, room(module, memories, batch))
        tokenizer = self.datamodule.tokenizer
        for row, memory in memories.items():
            made = module.lm.generate(memory, batch, max_new_tokens=limit, stop_ids=self.stop_ids)
            texts = [self.datamodule.answer_of(str(tokenizer.decode(ids, skip_special_tokens=True))) for ids in made]
            cut = [len(ids) >= limit for ids in made]
            self.collected.setdefault(row, GeneratedTexts()).add(numbers, texts, cut)
        contexts = self._contexts(batch)
        for number, context in zip(numbers, batch.context_of.tolist(), strict=True):
            example = self.examples[number]
            instruction = example.instruction or contexts[context]
            self.questions[number] = (instruction, example.input, example.output.strip())

    def repeat(self, row: str, other: str) -> None:
        """What `row` answered is what `other` would have."""
        if row in self.collected:
            self.collected[other] = self.collected[row]

    def _contexts(self, batch: Batch) -> list[str]:
        """The contexts as the tokenizer writes them."""
        rows = zip(batch.context.ids, batch.context.mask, strict=True)
        decode = self.datamodule.tokenizer.decode
        return [str(decode(ids[mask].tolist(), skip_special_tokens=True)).strip() for ids, mask in rows]


def answers_for(
    datamodule: ContextDataModule, config: EvaluationConfig, examples: Sequence[ExampleInfo]
) -> Answers | None:
    """Where answers to the examples of a split are collected; None where none are wanted."""
    wanted = datamodule.answers_are_generated if config.generate == "auto" else config.generate
    if not wanted:
        return None
    stop_ids = datamodule.prompt_format().stop_ids
    return Answers(datamodule, config.max_new_tokens, stop_ids, {e.number: e for e in examples})


def example_of_query(batch: Batch) -> list[int]:
    """Number of the example that each query [N] belongs to."""
    numbers = torch.zeros_like(batch.context_of)
    return numbers.scatter(0, batch.query_of, batch.example).tolist()


def room(module: CompressionModule, memories: Mapping[str, Memory | None], batch: Batch) -> int:
    """Tokens that every row of a batch can add to its longest prompt within the LM's window.

    All rows of the table get the same limit, so that none is cut where another is not.
    """
    window = module.lm.window
    if window is None:
        return _UNLIMITED
    front = max(_positions(memory) for memory in memories.values())
    return max(1, window - front - int(batch.query_mask.sum(-1).max()) - 1)  # 1: a BOS


def _positions(memory: Memory | None) -> int:
    """Positions in front of a query, the longest of a batch."""
    if memory is None:
        return 0
    return int((memory.next_position if isinstance(memory, KVCache) else memory.num_slots).max())


def write_rationales(
    module: CompressionModule,
    datamodule: ContextDataModule,
    splits: Sequence[str],
    path: Path,
    on_batch: Callable[[str, int, int], None],
) -> None:
    """Write one line for each example: split, example, input, the student's rationale and the teacher's.

    Args:
        module: A built module in eval mode.
        datamodule: Data with both tasks.
        splits: Which splits.
        path: The file; it appears whole or not at all.
        on_batch: Progress callback: split, batches done, batches in all.

    Raises:
        ConfigError: the file cannot be written.
    """
    lines, data = [], cast(RationaleDataModule, datamodule)  # what data with two tasks offers
    for split in splits:
        rows = data.rows(split)
        loader = data.rationale_dataloader(split)
        total = len(loader)
        texts: dict[int, str] = {}
        for done, batch in enumerate(loader, start=1):
            texts.update(_texts(module, data, batch.to(module.device)))
            on_batch(split, done, total)
        for number in sorted(texts):
            row = rows[number]
            line = {
                "split": split,
                "example": number,
                "input": row.input,
                "rationale": texts[number],
                "teacher": row.llm_rationale or None,
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomic(path, "".join(lines))


@torch.inference_mode()
def _texts(module: CompressionModule, datamodule: RationaleDataModule, batch: Batch) -> Iterator[tuple[int, str]]:
    """Example numbers and greedy rationales of a batch."""
    memory = module.compress(batch.context)
    limit = min(datamodule.config.max_rationale_tokens, room(module, {"method": memory}, batch))
    stop_ids = datamodule.prompt_format().stop_ids
    made = module.lm.generate(memory, batch, max_new_tokens=limit, stop_ids=stop_ids)
    for number, ids in zip(example_of_query(batch), made, strict=True):
        yield number, str(datamodule.tokenizer.decode(ids, skip_special_tokens=True)).strip()
