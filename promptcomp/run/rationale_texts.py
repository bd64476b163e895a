"""The rationales that a student writes for the test examples: what its second task has learned, for people to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from promptcomp.batch import Batch
from promptcomp.datamodules.rationale.rationale_module import RationaleDataModule
from promptcomp.files import write_atomic
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.run.written_answers import example_of_query, room


def write_rationales(
    module: CompressionModule,
    datamodule: RationaleDataModule,
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
    lines = []
    for split in splits:
        rows = datamodule.rows(split)
        loader = datamodule.rationale_dataloader(split)
        total = len(loader)
        texts: dict[int, str] = {}
        for done, batch in enumerate(loader, start=1):
            texts.update(_texts(module, datamodule, batch.to(module.device)))
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
