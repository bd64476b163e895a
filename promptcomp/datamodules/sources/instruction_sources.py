"""Sources of instruction rows: Alpaca+ in its four files, your own files or datasets, conversations among them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from promptcomp.config import ConfigError
from promptcomp.datamodules.instruction.instruction_config import (
    CONVERSATIONS,
    HeldOutConfig,
    InstructionColumns,
    Place,
    files_of,
)
from promptcomp.datamodules.sections import check_split
from promptcomp.datamodules.sources.arrow import arrow_rows, open_table, table_of
from promptcomp.datamodules.sources.records import (
    Asked,
    Found,
    Named,
    Record,
    collecting,
    good_records,
    has_errors,
    name_in,
    text_problems,
)
from promptcomp.datamodules.sources.row_files import batch_records, checked, read_records
from promptcomp.datamodules.sources.rows import Duplicates
from promptcomp.datamodules.tasks import InstructionRow, InstructionSource, LazySequence

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "bing", "bard"), "assistant"),
}


class BadConversation(ValueError):
    """Turns that are no question with its answer; the message says why."""


def first_exchange(turns: list[Any], system: Any = None, answers: bool = True) -> tuple[str, str, str, int]:
    """Instruction, input and output of a conversation (ShareGPT's, or of a chat file), and how many turns are left out.

    The system turn is the instruction, the first user turn the input and the reply to it the output; without a system
    turn (a blank one is none) the user turn is the instruction.

    Args:
        turns: Each with `role` and `content` or, as ShareGPT has it, with `from` and `value`.
        system: The system turn, where it stands outside of the turns.
        answers: A reply has to be there; otherwise the output may be empty.

    Raises:
        BadConversation: it does not begin with a user turn and an answer (after a system turn), or one is no text.
    """
    if system is not None:
        turns = [{"role": "system", "content": system}, *turns]
    while turns and _role(turns[0], 1) == "system" and not _text(turns[0], 1).strip():
        turns = turns[1:]
    first = [_role(turn, number) for number, turn in enumerate(turns[:3], start=1)]
    for shape in (["user", "assistant"], ["system", "user", "assistant"]):
        if first[: len(shape)] == shape or (not answers and first == shape[:-1]):
            texts = [_text(turn, number) for number, turn in enumerate(turns[: len(shape)], start=1)]
            texts += [""] * (len(shape) - len(texts))
            instruction, given, output = texts if len(texts) == 3 else (texts[0], "", texts[1])
            return instruction, given, output, max(0, len(turns) - len(shape))
    found = ", ".join(first) or "nothing"
    raise BadConversation(f"begins with {found}; expected user, assistant or system, user, assistant")


def _role(turn: Any, number: int) -> str:
    if not isinstance(turn, Mapping):
        raise BadConversation(f"turn {number} is {type(turn).__name__}, expected an object with 'role' and 'content'")
    name = turn.get("role", turn.get("from"))
    role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    return role or repr(name)


def _text(turn: Mapping[str, Any], number: int) -> str:
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else texts
    if not isinstance(content, str):
        raise BadConversation(f"turn {number} is {type(content).__name__}, expected text")
    return content


_HUGE = 1_000_000  # characters; such a row is hardly meant


def instruction_problems(
    record: Mapping[str, Any], columns: InstructionColumns, allow_empty: bool, answers: bool = True
) -> list[str]:
    """Everything that is wrong with a record, in words; empty for a good one."""
    turns = _turns(record, columns)
    named = next((name for name in CONVERSATIONS if record.get(name) is not None), None)
    if turns is None and named and record.get(columns.instruction) is None:
        return [f"{named!r} is {type(record[named]).__name__}, expected a list of turns"]
    required, optional = (columns.instruction, columns.output), (columns.input,)
    if not answers:
        required, optional = required[:1], (columns.input, columns.output)  # type: ignore[assignment]
    found = [] if turns else text_problems(record, required, optional)
    try:
        name_in(record.get(columns.source) if columns.source else None)
    except ValueError:
        kind = type(record[columns.source]).__name__  # type: ignore[index]
        found.append(f"{columns.source!r} is {kind}, expected text or a whole number")
    if not found:
        try:
            row = to_instruction(record, columns, "", answers)
        except BadConversation as error:
            return [f"{turns!r} {error}"]
        if not allow_empty and not row.instruction.strip():
            name = turns or columns.instruction
            found.append(f"{name!r} is empty (data.allow_empty_instruction=true takes such rows)")
    return found


def _turns(record: Mapping[str, Any], columns: InstructionColumns) -> str | None:
    """The column with the turns of a conversation; None: the row has an instruction or no turns."""
    if record.get(columns.instruction) is not None:
        return None
    return next((name for name in CONVERSATIONS if isinstance(record.get(name), list)), None)


def instruction_warnings(row: InstructionRow, answers: bool = True) -> list[str]:
    """What looks odd about a good row."""
    found = []
    if not row.instruction.strip():
        found.append("the instruction is empty")
    if answers and not row.output.strip():
        found.append("the output is empty")
    size = len(row.instruction) + len(row.input) + len(row.output)
    if size > _HUGE:
        found.append(f"the row has {size} characters")
    return found


def to_instruction(
    record: Mapping[str, Any], columns: InstructionColumns, stem: str, answers: bool = True
) -> InstructionRow:
    """The row in a good record.

    Raises:
        BadConversation: the record is a conversation that does not begin with a question and its answer.
    """
    source = (name_in(record.get(columns.source)) if columns.source else None) or stem
    if turns := _turns(record, columns):
        instruction, given, output, _ = first_exchange(record[turns], record.get("system"), answers)
        return InstructionRow(instruction, given, output, source)
    given = (record.get(columns.input) or "") if columns.input else ""
    return InstructionRow(record[columns.instruction], given, record.get(columns.output) or "", source)


def good_instructions(
    records: Iterable[Record],
    stem: str,
    where: str,
    columns: InstructionColumns,
    allow_empty: bool,
    found: Found = None,
    notes: list[str] | None = None,
    answers: bool = True,
    named: Named | None = None,
) -> list[InstructionRow]:
    """The rows of a file or table; `notes` takes what a person should know about them, `answers`: each has to have one,
    `named` is shown every row.

    Raises:
        ConfigError: there is no row or a bad one (named with its line), unless that is collected in `found`.
    """
    rows: list[InstructionRow] = []
    duplicates, longer = Duplicates(), 0

    def wrong(content: Mapping[str, Any]) -> list[str]:
        return instruction_problems(content, columns, allow_empty, answers)

    for record in good_records(records, wrong, found, where, named=named):
        row = to_instruction(record.content, columns, stem, answers)
        rows.append(row)
        record.warn(instruction_warnings(row, answers), found)
        duplicates.look(record, (row.instruction, row.input, row.output), "instruction, input and output", found)
        if turns := _turns(record.content, columns):
            longer += first_exchange(record.content[turns], record.content.get("system"), answers)[3] > 0
    if longer and notes is not None:
        notes.append(f"{where}: {longer} of {len(rows)} rows have turns after the first answer, which are not read")
    return rows


class RowsInMemory(InstructionSource):
    """Rows of named splits as a user gives them: dictionaries, or a table with such columns."""

    def __init__(self, columns: InstructionColumns | None = None, allow_empty: bool = False, **by_split: Any) -> None:
        """
        Args:
            columns: Names of their keys.
            allow_empty: Take rows without an instruction.
            by_split: Rows of each split: dictionaries, a DataFrame, a dataset, a table of Arrow.

        Raises:
            ConfigError: names the first bad row.
        """
        columns = columns or InstructionColumns()
        self._rows = {split: [*_given_rows(split, rows, columns, allow_empty)] for split, rows in by_split.items()}

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that were given."""
        return tuple(self._rows)

    def rows(self, split: str) -> Sequence[InstructionRow]:
        """As they were given."""
        return self._rows[split]


def _given_rows(split: str, rows: Any, columns: InstructionColumns, allow_empty: bool) -> Iterator[InstructionRow]:
    asked, name, named = columns.asked(), "rows" if split == "train" else split, columns.named()
    for number, row in enumerate(_as_dictionaries(rows, name, asked)):
        if isinstance(row, Record):
            content, problem = row.content, row.problem
        elif isinstance(row, Mapping):
            content, problem = checked({key: _as_list(value) for key, value in row.items()}, asked)
        else:
            raise ConfigError(f"{name}[{number}]: expected a dictionary, not {type(row).__name__}")
        named.look(content)
        problems = [problem] if problem else instruction_problems(content, columns, allow_empty)
        if problems:
            raise ConfigError(f"{name}[{number}]: {problems[0]}")
        yield to_instruction(content, columns, "rows")
    named.check(None)


def _as_list(value: Any) -> Any:
    """A list, where a DataFrame that was read from a Parquet file has an array."""
    return [*value] if isinstance(value, tuple | np.ndarray) else value


def _as_dictionaries(rows: Any, name: str, asked: Asked) -> Iterable[Any]:
    """Rows one by one (those of tables of Arrow as records); the missing values of a DataFrame are None, as those of
    other tables are."""
    if hasattr(rows, "iterrows"):
        asked.check_header([*rows.columns], name)
        return list(rows.astype(object).where(rows.notna(), None).to_dict("records"))
    if hasattr(rows, "to_iterable_dataset"):  # of `datasets`, with its names of classes
        asked.check_header(rows.column_names, name)
        return table_of(rows, name, asked).records()
    if hasattr(rows, "to_pylist") and hasattr(rows, "schema"):  # of Arrow
        asked.check_header(rows.schema.names, name)
        chosen = rows.select([column for column in asked.all if column in rows.schema.names])
        return batch_records(chosen.to_batches() if hasattr(chosen, "to_batches") else [chosen], name)
    if hasattr(rows, "to_dicts"):  # of Polars
        return list(rows.to_dicts())
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise ConfigError(f"{name}: expected rows (dictionaries, a DataFrame, a dataset), not {type(rows).__name__}")
    return rows


class HeldOutSource(InstructionSource):
    """Rows of named splits, some of them cut from the training rows."""

    def __init__(self, config: HeldOutConfig) -> None:
        """
        Raises:
            ConfigError: a file is missing.
        """
        config.check_places()
        self.config, self._given, self._cuts = config, config.given(), config.cuts
        self._tables: dict[Place, Sequence[InstructionRow]] = {}
        self._notes: list[str] = []
        self._named = self.config.columns.named()

    def rows(self, split: str) -> Sequence[InstructionRow]:
        """The rows of a split.

        Raises:
            ConfigError: the split is unknown, or its file or dataset is bad.
        """
        check_split(split, self.splits)
        if split in self._cuts or (split == "train" and self._cuts):
            rows, parts = self._parts
            places = np.asarray(parts[split], dtype=np.int64)
            return LazySequence(len(places), lambda index: rows[int(places[index])])
        return self._read(split)

    def check(self, found: Found = None) -> None:
        """Read every file or split once.

        Raises:
            ConfigError: the first bad row or file, unless they are collected.
        """
        for split, place in self._given.items():
            with collecting(found, ", ".join(map(str, files_of(place))) or "data"):
                self._read(split, found)
        if not has_errors(found):
            self._named.check(found)

    def notes(self) -> list[str]:
        """Later turns of conversations, which are left out."""
        return list(self._notes)

    def _read(self, split: str, found: Found = None) -> Sequence[InstructionRow]:
        place, config, columns = self._given[split], self.config, self.config.columns
        if place not in self._tables:
            answers = config.asks is None
            asked = columns.asked(answers)
            how = columns, config.allow_empty_instruction, found, self._notes, answers, self._named
            if not isinstance(place, str):
                self._tables[place] = [
                    row
                    for path in files_of(place)
                    for row in good_instructions(read_records(path, asked), path.stem, str(path), *how)
                ]
            else:  # of a dataset, whose rows stay on disk
                name = str(config.dataset)
                table = open_table(name, config.dataset_config, place, asked)
                good_instructions(table.records(), name, table.where, *how)

                def make(record: Mapping[str, Any], _: str) -> InstructionRow:
                    return to_instruction(record, columns, name, answers)

                self._tables[place] = arrow_rows(table, asked.all, make, range(len(table)))
        return self._tables[place]

    @cached_property
    def _parts(self) -> tuple[Sequence[InstructionRow], dict[str, list[int]]]:
        """All training rows, and the places of those of each part."""
        rows = self._read("train")
        left = list(range(len(rows)))
        parts: dict[str, list[int]] = {}
        for split, count in self._cuts.items():
            parts[split] = self._held_out(rows, left, count, split)
            chosen = set(parts[split])
            left = [place for place in left if place not in chosen]
        parts["train"] = left
        return rows, parts

    def _held_out(self, rows: Sequence[InstructionRow], left: list[int], count: int, split: str) -> list[int]:
        """Places of the rows that are cut for a split."""
        return held_out(rows, left, count, split, self.config.hold_out)


def held_out(
    rows: Sequence[InstructionRow],
    places: Sequence[int],
    count: int,
    split: str,
    by: Literal["instruction", "row"],
    task: str | None = None,
) -> list[int]:
    """At most `count` of the places, chosen by their rows' text alone, in their order.

    Args:
        rows: All training rows.
        places: Those to choose from.
        count: Maximum number of rows to hold out.
        split: What they are held out for.
        by: Whether rows of one instruction stay together.
        task: Whose rows these are, for the message.

    Raises:
        ConfigError: there is no such choice that leaves a row to train on.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for place in places:
        row = rows[place]
        key: tuple[str, ...] = (row.instruction,) if by == "instruction" else (row.instruction, row.input, row.output)
        groups.setdefault(key, []).append(place)
    order = sorted(groups, key=lambda key: hashlib.sha256("\0".join((split, *key)).encode()).digest())
    most = min(count, len(places) - 1)
    chosen: list[int] = []
    for key in order:
        if len(chosen) + len(groups[key]) <= most:
            chosen += groups[key]
    if not chosen:
        way = f"set data.hold_out=row, or data.{split}_examples=0"
        if len(places) < 2 or by == "row":
            way = f"set data.{split}_examples=0" + ("" if task is None else ", or name the other tasks in data.tasks")
        raise ConfigError(
            f"data.{split}_examples = {count}: {'' if task is None else f'task {task!r}: '}every "
            f"{by} has more rows than may be held out of {len(places)}, of which one is left to train on; {way}"
        )
    return sorted(chosen)
