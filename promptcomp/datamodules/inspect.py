"""Looking at data: rows as the model will see them, and every bad row with its file and line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from promptcomp.batch import RATIONALE, EncodedContext, EncodedQuery
from promptcomp.config import Config, ConfigError
from promptcomp.datamodules import DATASETS, build_datamodule, build_rationales, build_source
from promptcomp.datamodules.arrow import open_table
from promptcomp.datamodules.base import ContextDataModule
from promptcomp.datamodules.eval_batches import EvalPart
from promptcomp.datamodules.hub import HFData
from promptcomp.datamodules.icl import ICLDataModule
from promptcomp.datamodules.instruction import InstructionDataModule
from promptcomp.datamodules.instruction_options import InstructionConfig
from promptcomp.datamodules.instruction_problems import module_problems, record_problems
from promptcomp.datamodules.instruction_sources import AlpacaPlusData, InstructionsData
from promptcomp.datamodules.metaicl import MetaICLData, MetaICLSource, read_partition
from promptcomp.datamodules.options import ICLConfig
from promptcomp.datamodules.plans import Plan
from promptcomp.datamodules.rationale import RationaleDataModule
from promptcomp.datamodules.rationale_options import RationaleConfig
from promptcomp.datamodules.rationale_selection import Account
from promptcomp.datamodules.rationale_sources import FilesSource, FolderSource, HubSource, source_problems
from promptcomp.datamodules.rendering import assemble
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


@dataclass(frozen=True, slots=True)
class ShownRow:
    """One query of a context, decoded from the ids that the model gets."""

    task: str
    seed: int | None
    demonstrations: tuple[str, ...]
    """The context, piece by piece; their concatenation is what the compressor reads."""
    dropped: int
    """Demonstrations that did not fit the budget."""
    cut_tokens: int
    """Tokens cut from demonstrations by the per-example cap and the budget."""
    query: str
    options: tuple[str, ...]
    """Targets: the options in evaluation, the output in training."""
    gold: int
    context_tokens: int
    teacher_tokens: int
    query_tokens: int
    target_tokens: tuple[int, ...]


def sections() -> list[tuple[str, str]]:
    """Name and one-line description of every data section."""
    return [(name, (section.__doc__ or "").strip().splitlines()[0]) for name, section in DATASETS.items()]


def show(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    count: int,
    *,
    seed: int = 0,
    window: int | None = None,
    query_in_encoder: bool = False,
    writes_bos: bool | None = None,
) -> list[ShownRow]:
    """The first rows of a split as the model will see them.

    Args:
        config: A data section.
        tokenizer: The LM's tokenizer.
        split: "train", "dev" or a test split.
        count: Most rows.
        seed: The run's seed (it orders the train split).
        window: Most positions the LM can read.
        query_in_encoder: Whether an encoder reads the queries.
        writes_bos: Whether the LM puts BOS in front of a context; None: as the tokenizer itself does.

    Raises:
        ConfigError: the data is bad or the split unknown.
    """
    module = build_datamodule(
        config,
        tokenizer,
        seed=seed,
        batch_size=1,
        window=window,
        query_in_encoder=query_in_encoder,
        writes_bos=writes_bos,
    )
    if split == "train":
        contexts = _train_contexts(module)
    else:
        contexts = _eval_contexts(module, split)
    rows = (row for plan, context, golds in contexts for row in _shown(module, plan, context, golds))
    return list(islice(rows, count))


Item = tuple[Plan | None, EncodedContext, Sequence[int]]
"""The plan of a context (None for text), the context, and the gold option of each query."""


def _train_contexts(module: ContextDataModule) -> Iterator[Item]:
    for batch in module.train_sampler().global_batches():
        for draw in batch:
            plan = module.train_plan(draw) if isinstance(module, ICLDataModule) else None
            context = module.train_context(draw)
            yield plan, context, [0] * len(context.queries)


def _eval_contexts(module: ContextDataModule, split: str) -> Iterator[Item]:
    examples = module.examples(split)
    contexts = module.eval_contexts(split)
    for number in range(len(contexts)):
        plan = module.eval_plans(split)[number] if isinstance(module, ICLDataModule) else None
        context = contexts.encode(EvalPart(number, 0, len(contexts.targets(number))))
        yield plan, context, [examples[query.example].gold for query in context.queries]


def _shown(
    module: ContextDataModule, plan: Plan | None, context: EncodedContext, golds: Sequence[int]
) -> Iterator[ShownRow]:
    def text(ids: Sequence[int]) -> str:
        return str(module.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    borders, dropped, cut = [len(context.ids)], 0, 0
    if plan is not None and isinstance(module, ICLDataModule):
        parts = module.demonstration_parts(plan)
        _, borders = assemble(parts, module.budget, module.config.truncation)
        dropped = len(parts) - len(borders)
        kept = parts[dropped:] if module.config.truncation == "left" else parts[: len(borders)]
        cut = sum(part.cut + len(part) for part in kept) - len(context.ids)
    pieces = tuple(text(context.ids[a:b]) for a, b in zip([0, *borders], borders, strict=False))
    for query, gold in zip(context.queries, golds, strict=True):
        yield ShownRow(
            task=plan.task.name if plan is not None else _task(module, context, query),
            seed=plan.task.seed if plan is not None else None,
            demonstrations=pieces,
            dropped=dropped,
            cut_tokens=cut,
            query=text(query.ids),
            options=tuple(text(target.ids) for target in query.targets),
            gold=gold,
            context_tokens=len(context.ids),
            teacher_tokens=len(context.ids if context.teacher_ids is None else context.teacher_ids),
            query_tokens=len(query.ids),
            target_tokens=tuple(len(target.ids) for target in query.targets),
        )


def _task(module: ContextDataModule, context: EncodedContext, query: EncodedQuery) -> str:
    """What a query without a plan asks for."""
    if isinstance(module, RationaleDataModule):
        return f"{module.data_name}, {'rationale' if query.targets[0].role == RATIONALE else 'label'}"
    return dict(enumerate(module.task_names)).get(context.task, "text")


def remarks(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    window: int | None = None,
    query_in_encoder: bool = False,
) -> list[str]:
    """What a person should know about the data of a section, a sentence each (see `ContextDataModule.remarks`).

    Raises:
        ConfigError: the data is bad.
    """
    return build_datamodule(
        config, tokenizer, seed=seed, batch_size=1, window=window, query_in_encoder=query_in_encoder
    ).remarks()


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
