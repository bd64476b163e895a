"""What is judged: the texts of both sides, which examples, and in which order their answers are shown.

Texts come from a run's predictions.jsonl or from a table of answers; the rest are pure functions of them and the seed.
"""

from __future__ import annotations

import hashlib
import json
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


@dataclass(frozen=True, slots=True)
class Pair:
    """One example with both answers."""

    split: str
    example: str
    instruction: str
    input: str
    text_a: str
    text_b: str
    reference: str | None
    context: str

    @property
    def question(self) -> str:
        """What the assistants were asked."""
        return "\n\n".join(part for part in (self.instruction.strip(), self.input.strip()) if part)

    @property
    def identical(self) -> bool:
        """Whether both sides gave the same answer (but for white space at its ends)."""
        return self.text_a.strip() == self.text_b.strip()


@dataclass(frozen=True, slots=True)
class Matched:
    """The pairs, and how many examples had no partner."""

    pairs: tuple[Pair, ...]
    only_a: int
    only_b: int


def match(side_a: Side, side_b: Side, splits: Sequence[str] = ()) -> Matched:
    """Pairs of the examples that both sides have, in the order of side A.

    Args:
        side_a: the side whose win rate is asked for.
        side_b: the other one.
        splits: the only splits to take; empty: all.

    Raises:
        ConfigError: the sides are the same, share no example, have not the same questions, or lack a split.
    """
    if side_a.path.resolve() == side_b.path.resolve() and side_a.row == side_b.row:
        raise ConfigError(
            f"{side_a.name} would be compared with itself; name another run, or another row with --row-a or --row-b"
        )
    for side in (side_a, side_b):
        known = list(dict.fromkeys(split for split, _ in side.items))
        for split in splits:
            if split not in known:
                raise ConfigError(f"{side.path}: no texts for split {split!r}; it has {', '.join(known)}")
    wanted_a = [key for key in side_a.items if not splits or key[0] in splits]
    wanted_b = [key for key in side_b.items if not splits or key[0] in splits]
    shared = [key for key in wanted_a if key in side_b.items]
    if not shared:
        raise ConfigError(f"{side_a.path} and {side_b.path} share no example (split and number)")
    _refuse_other_questions(side_a, side_b, shared)
    pairs = tuple(_pair(key, side_a.items[key], side_b.items[key]) for key in shared)
    return Matched(pairs, len(wanted_a) - len(shared), len(wanted_b) - len(shared))


def choose(pairs: Sequence[Pair], count: int | None, seed: int) -> list[Pair]:
    """`count` pairs of each split, drawn by the seed; a larger count keeps those of a smaller one. None: all."""
    if count is None:
        return list(pairs)
    kept: set[Key] = set()
    for split in dict.fromkeys(pair.split for pair in pairs):
        own = [pair for pair in pairs if pair.split == split]
        own.sort(key=lambda pair: _draw(seed, "choice", pair.split, pair.example))
        kept |= {(pair.split, pair.example) for pair in own[:count]}
    return [pair for pair in pairs if (pair.split, pair.example) in kept]


def is_swapped(seed: int, split: str, example: str) -> bool:
    """Whether side B is shown first: a fair coin that depends on the seed, the split and the example alone."""
    return _draw(seed, "order", split, example)[0] % 2 == 1


def _draw(seed: int, what: str, split: str, example: str) -> bytes:
    return hashlib.sha256(json.dumps([seed, what, split, example]).encode()).digest()


def _pair(key: Key, a: Item, b: Item) -> Pair:
    reference = a.reference if a.reference is not None else b.reference
    return Pair(key[0], key[1], a.instruction, a.input, a.text, b.text, reference, a.context)


def _refuse_other_questions(side_a: Side, side_b: Side, shared: Sequence[Key]) -> None:
    other = [
        key
        for key in shared
        if (side_a.items[key].instruction, side_a.items[key].input)
        != (side_b.items[key].instruction, side_b.items[key].input)
    ]
    if other:
        split, example = other[0]
        raise ConfigError(
            f"{side_a.path} and {side_b.path} were not asked the same: instruction or input differs in {len(other)} of"
            f" {len(shared)} shared examples, first in split {split!r}, example {example};"
            " evaluate both on the same data"
        )
