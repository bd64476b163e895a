"""What is wrong with data: every bad row with its file and line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from promptcomp.config import Config, ConfigError
from promptcomp.datamodules import build_datamodule, build_rationales, build_source
from promptcomp.datamodules.arrow import open_table
from promptcomp.datamodules.hub import HFData
from promptcomp.datamodules.instruction import InstructionDataModule
from promptcomp.datamodules.instruction_options import InstructionConfig
from promptcomp.datamodules.instruction_problems import module_problems, record_problems
from promptcomp.datamodules.instruction_sources import AlpacaPlusData, InstructionsData
from promptcomp.datamodules.metaicl import MetaICLData, MetaICLSource, read_partition
from promptcomp.datamodules.options import ICLConfig
from promptcomp.datamodules.rationale_options import RationaleConfig
from promptcomp.datamodules.rationale_selection import Account
from promptcomp.datamodules.rationale_sources import FilesSource, FolderSource, HubSource, source_problems
from promptcomp.datamodules.rows import (
    METAICL_COLUMNS,
    Columns,
    Problem,
    json_lines,
    row_problems,
    row_warnings,
    seed_problems,
)
from promptcomp.datamodules.tables import TableData, TableSource, read_entries
from promptcomp.datamodules.tasks import Task
from promptcomp.datamodules.text import TextConfig, text_problems


def validate(
    config: Config,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    window: int | None = None,
    query_in_encoder: bool = False,
) -> list[Problem]:
    """Everything that is wrong with the data of a section, in the order of its files; errors and warnings.

    Args:
        config: A data section.
        tokenizer: The LM's tokenizer, to tell rows over a budget; None: they are not looked for.
        window: Most positions the LM can read.
        query_in_encoder: Whether an encoder reads the queries.
    """
    try:
        if isinstance(config, InstructionConfig):
            return list(_instruction_problems(config, tokenizer, window, query_in_encoder))
        if isinstance(config, MetaICLData):
            return list(_metaicl_problems(config))
        if isinstance(config, TableData):
            return list(_table_problems(config))
        if isinstance(config, HFData):
            return list(_hub_problems(config))
        if isinstance(config, TextConfig):
            return list(text_problems(config))
        if isinstance(config, RationaleConfig):
            return list(_rationale_problems(config))
    except ConfigError as error:
        return [_as_problem(error)]
    return []


def _instruction_problems(
    config: InstructionConfig, tokenizer: PreTrainedTokenizerBase | None, window: int | None, query_in_encoder: bool
) -> Iterator[Problem]:
    errors = False
    for problem in record_problems(config) if isinstance(config, AlpacaPlusData | InstructionsData) else ():
        errors = errors or problem.severity == "error"
        yield problem
    if errors or tokenizer is None:
        return
    module = build_datamodule(config, tokenizer, seed=0, batch_size=1, window=window, query_in_encoder=query_in_encoder)
    if isinstance(module, InstructionDataModule):
        yield from module_problems(module)


def _as_problem(error: ConfigError, where: str = "data") -> Problem:
    return Problem(where, None, str(error))


def _metaicl_problems(config: MetaICLData) -> Iterator[Problem]:
    source = MetaICLSource(config)
    lists = read_partition(config.folder, config.partition)
    partition = str(config.folder / "config" / f"{config.partition}.json")
    for task in sorted(set(lists["train"]) & set(lists["test"])):
        yield Problem(partition, None, f"task {task!r} is both a train and a test task", "warning")
    for task, path in source.files():
        if not path.parent.is_dir():
            yield Problem(partition, None, f"task {task!r} is unknown: no folder {path.parent}")
        else:
            yield from _file_problems(path, METAICL_COLUMNS, task)


def _file_problems(path: Path, columns: Columns, task: str) -> Iterator[Problem]:
    """Everything that is wrong with one JSON-lines file of one task."""
    seen: dict[tuple[str, str], int] = {}
    lines = 0
    try:
        for line in json_lines(path):
            lines += 1
            found = [line.problem] if line.problem else row_problems(line.record, columns)
            yield from (Problem(str(path), line.number, message) for message in found)
            if found:
                continue
            yield from (Problem(str(path), line.number, text, "warning") for text in row_warnings(line.record, columns))
            if line.record.get("task", task) != task:
                yield Problem(str(path), line.number, f"the row belongs to task {line.record['task']!r}, not {task!r}")
            yield from _duplicate(str(path), line.number, line.record, columns, seen)
    except ConfigError as error:
        yield Problem(str(path), None, str(error).removeprefix(f"{path}: "))
        return
    if not lines:
        yield Problem(str(path), None, "the file has no rows")


def _duplicate(
    file: str, line: int, record: Any, columns: Columns, seen: dict[tuple[str, str], int]
) -> Iterator[Problem]:
    key = (record[columns.input], record[columns.output])
    if key in seen:
        yield Problem(file, line, f"the same input and output as in line {seen[key]}", "warning")
    seen.setdefault(key, line)


def _table_problems(config: TableData) -> Iterator[Problem]:
    errors = False
    for path in TableSource(config).files():
        found: list[Problem] = []
        seen: dict[tuple[str, str, str], int] = {}
        try:
            for entry in read_entries(path, config.columns, found):
                key = (entry.task, entry.row.input, entry.row.output)
                if key in seen:
                    message = f"the same input and output as in line {seen[key]}"
                    found.append(Problem(str(path), entry.line, message, "warning"))
                seen.setdefault(key, entry.line)
            if not seen and not found:
                found.append(Problem(str(path), None, "the file has no rows"))
        except ConfigError as error:
            found.append(_as_problem(error, str(path)))
        errors = errors or any(problem.severity == "error" for problem in found)
        yield from found
    if not errors:  # what only shows when the rows are put together
        yield from _source_problems(config)


def _source_problems(config: ICLConfig) -> Iterator[Problem]:
    source = build_source(config)
    by_split: dict[str, Sequence[Task]] = {}
    for split in source.splits:
        try:
            by_split[split] = source.tasks(split)
        except ConfigError as error:
            yield _as_problem(error)
    leaked = _names(by_split.get("train", ())) & _names(by_split.get("test", ()))
    for task in sorted(leaked):
        yield Problem("data", None, f"task {task!r} is both a train and a test task", "warning")


def _names(tasks: Iterable[Task]) -> set[str]:
    return {task.name for task in tasks}


def _hub_problems(config: HFData) -> Iterator[Problem]:
    errors = False
    for split in dict.fromkeys((config.train_split, config.test_split)):
        table = open_table(config.path, config.config, split)
        place = 0
        for batch in table.to_batches(max_chunksize=4096):
            for record in batch.to_pylist():
                place += 1
                for message in [*row_problems(record, config.columns), *seed_problems(record, config.columns)]:
                    errors = True
                    yield Problem(f"{config.path}[{split}]", place, message)
    if not errors:
        yield from _source_problems(config)


def _rationale_problems(config: RationaleConfig) -> Iterator[Problem]:
    """What is wrong with the files; then, as warnings, how reading the teacher's texts went in each split."""
    source = build_rationales(config)
    errors = False
    if isinstance(source, FolderSource | FilesSource | HubSource):
        for problem in source_problems(source):
            errors = errors or problem.severity == "error"
            yield problem
    for split in () if errors else source.splits:
        account = Account.of(source.rows(split), config.metric)
        for line in account.lines(of_training=False):
            yield Problem("data", None, f"{split}: {line}", "warning")
