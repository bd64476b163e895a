"""Everything that is wrong or odd about instruction data, with file and line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from promptcomp.config import ConfigError
from promptcomp.datamodules.arrow import open_table
from promptcomp.datamodules.instruction import InstructionDataModule
from promptcomp.datamodules.instruction_files import (
    file_records,
    instruction_problems,
    instruction_warnings,
    table_records,
    to_instruction,
)
from promptcomp.datamodules.instruction_sources import AlpacaPlusData, HeldOutSource, InstructionsData
from promptcomp.datamodules.rows import Problem
from promptcomp.datamodules.tasks import InstructionRow

Record = tuple[int, Any, str | None]


def record_problems(config: AlpacaPlusData | InstructionsData) -> Iterator[Problem]:
    """What is wrong with single rows of the files (or of the dataset), and rows that occur twice in a file."""
    for where, records in _tables(config):
        try:
            yield from _table_problems(where, records, config)
        except ConfigError as error:
            yield Problem(where, None, str(error).removeprefix(f"{where}: "))


def _tables(config: AlpacaPlusData | InstructionsData) -> Iterator[tuple[str, Iterable[Record]]]:
    if isinstance(config, InstructionsData) and config.dataset is not None:
        for split in dict.fromkeys(config.dataset_splits.values()):
            table = open_table(config.dataset, config.dataset_config, split)
            yield f"{config.dataset}[{split}]", table_records(table)
        return
    for path in dict.fromkeys(HeldOutSource(config).paths.values()):
        yield str(path), file_records(path, config.columns)


def _table_problems(
    where: str, records: Iterable[Record], config: AlpacaPlusData | InstructionsData
) -> Iterator[Problem]:
    seen: dict[tuple[str, str, str], int] = {}
    rows = 0
    for number, record, problem in records:
        rows += 1
        found = [problem] if problem else instruction_problems(record, config.columns, config.allow_empty_instruction)
        yield from (Problem(where, number, message) for message in found)
        if found:
            continue
        yield from (Problem(where, number, text, "warning") for text in instruction_warnings(record, config.columns))
        row = to_instruction(record, config.columns, "")
        key = (row.instruction, row.input, row.output)
        if key in seen:
            yield Problem(where, number, f"the same instruction, input and output as in row {seen[key]}", "warning")
        seen.setdefault(key, number)
    if not rows:
        yield Problem(where, None, "there are no rows")


def module_problems(module: InstructionDataModule) -> Iterator[Problem]:
    """What only shows when splits are compared and tokenised: shared rows, special tokens as text, long rows."""
    rows = {split: module.rows(split) for split in module.source.splits}
    trained = {(row.instruction, row.input) for row in rows.get("train", ())}
    for split in module.eval_splits:
        shared = sum((row.instruction, row.input) in trained for row in rows[split])
        if shared and trained:
            text = f"{shared} of {len(rows[split])} {split} rows are training rows too (same instruction and input)"
            yield Problem("data", None, text, "warning")
    special = sorted({str(token) for token in module.tokenizer.all_special_tokens if token})
    for split in rows:
        yield from _special_problems(split, rows[split], special)
        try:
            long = module.long_rows(split)
            if long.long:
                severity = "error" if module.config.too_long == "error" else "warning"
                yield Problem("data", None, long.describe(module.config.too_long), severity)  # type: ignore[arg-type]
        except ConfigError as error:
            yield Problem("data", None, str(error))


def _special_problems(split: str, rows: Sequence[InstructionRow], special: Sequence[str]) -> Iterator[Problem]:
    counts = dict.fromkeys(special, 0)
    for row in rows:
        for token in special:
            counts[token] += token in row.instruction or token in row.input or token in row.output
    for token, count in counts.items():
        if count:
            text = f"{count} {split} rows contain {token!r}, which the tokenizer reads as a special token"
            yield Problem("data", None, text, "warning")
