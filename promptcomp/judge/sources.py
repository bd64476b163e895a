"""Where the judged texts come from: a run's predictions.jsonl, or a table of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptcomp.config import ConfigError
from promptcomp.datamodules.sources.records import Asked, Record, name_in, read_records
from promptcomp.errors import command
from promptcomp.evaluation.predictions import ROWS

TABLE_SPLIT = "all"
"""Split of table rows that name none."""
_COLUMNS = ("id", "instruction", "input", "text")
_ASKED = Asked(optional=(*_COLUMNS, "split", "reference", "texts", "scores", "example", "context"))

Key = tuple[str, str]
"""Split and example."""


@dataclass(frozen=True, slots=True)
class Item:
    """One example with the answer of one side."""

    instruction: str
    input: str
    text: str
    reference: str | None
    context: str
    """Examples that share their instruction share this; the unit of the bootstrap."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the comparison."""

    name: str
    """For people: the run and the row."""
    path: Path
    row: str | None
    """Row of a run's predictions; None for a table."""
    items: dict[Key, Item]


def read_side(path: Path, row: str = "method") -> Side:
    """The texts of one side.

    Args:
        path: a run directory, a folder with predictions.jsonl (such as one made by `promptcomp evaluate -o`), or a
            file of rows (JSONL, JSON, CSV, TSV, Parquet) with the columns id, instruction, input, text (and split,
            reference if wanted).
        row: which row of a run's predictions.

    Raises:
        ConfigError: nothing there, a line that cannot be read, no generated texts, or an unknown row.
    """
    if row not in ROWS:
        raise ConfigError(f"row {row!r} is not known; choose {', '.join(ROWS)}")
    file = path / "predictions.jsonl" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise ConfigError(f"{file}: no such predictions file; has the run finished its evaluation?")
    lines = [_line(record) for record in read_records(file, _ASKED)]
    if not lines:
        raise ConfigError(f"{file}: holds no examples")
    if path.is_dir() or any("scores" in line or "texts" in line for _, line in lines):
        items = _predictions(path, file, lines, row)
        name = path.resolve().name if path.is_dir() else path.stem
        return Side(f"{name}:{row}", path, row, items)
    return Side(path.stem, path, None, _table(file, lines))


def _line(record: Record) -> tuple[int, dict[str, Any]]:
    if record.problem is not None:
        raise ConfigError(f"{record.file}, line {record.line}: {record.problem}")
    return record.line, dict(record.content)


def _predictions(path: Path, file: Path, lines: Sequence[tuple[int, dict[str, Any]]], row: str) -> dict[Key, Item]:
    """The examples that have a text in `row`; those scored by options have none."""
    items: dict[Key, Item] = {}
    generated = 0
    for number, line in lines:
        texts = line.get("texts")
        if not isinstance(texts, dict):
            continue
        generated += 1
        if texts.get(row) is None:
            continue
        if not isinstance(line.get("instruction"), str) or not isinstance(line.get("input"), str):
            raise ConfigError(f"{file}, line {number}: has no 'instruction' and 'input'; {_again(path)}")
        key = (str(line.get("split")), str(line.get("example")))
        context = str(line.get("context", key[1]))
        _add(items, key, _item(file, number, {**line, "text": texts[row]}, context), file, number)
    if not generated:
        raise ConfigError(f"{file}: holds no generated texts; {_again(path)}")
    if not items:
        raise ConfigError(f"{file}: holds no texts of row {row!r}; choose another row or another run")
    return items


def _again(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    again = command("evaluate", folder, "evaluation.generate=true")
    return f"`{again}` writes answers to a folder of its own, to be judged"


def _table(file: Path, lines: Sequence[tuple[int, dict[str, Any]]]) -> dict[Key, Item]:
    items: dict[Key, Item] = {}
    for number, line in lines:
        missing = [name for name in _COLUMNS if line.get(name) is None or (name == "id" and line[name] == "")]
        if missing:
            raise ConfigError(
                f"{file}, line {number}: no {', '.join(missing)}; a table of answers has the columns"
                f" {', '.join(_COLUMNS)} (and split, reference if wanted)"
            )
        key = (_name(file, number, line, "split") or TABLE_SPLIT, str(_name(file, number, line, "id")))
        _add(items, key, _item(file, number, line, str(line["instruction"])), file, number)
    return items


def _name(file: Path, number: int, line: dict[str, Any], column: str) -> str | None:
    try:
        return name_in(line.get(column))
    except ValueError:
        raise ConfigError(f"{file}, line {number}: {column!r} is neither text nor a whole number") from None


def _item(file: Path, number: int, line: dict[str, Any], context: str) -> Item:
    reference = line.get("reference")
    for name in ("instruction", "input", "text"):
        if not isinstance(line[name], str):
            raise ConfigError(f"{file}, line {number}: {name!r} is no text")
    return Item(
        line["instruction"], line["input"], line["text"], None if reference is None else str(reference), context
    )


def _add(items: dict[Key, Item], key: Key, item: Item, file: Path, number: int) -> None:
    if key in items:
        raise ConfigError(f"{file}, line {number}: example {key[1]} of split {key[0]!r} is there twice")
    items[key] = item
