"""The pairs to judge: the answers of both sides, the examples, and the order in which answers are shown.

Texts come from a run's predictions.jsonl or from a table of answers; the rest are pure functions of them and the seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptcomp.config import ConfigError
from promptcomp.datamodules.sources.records import Asked, name_in
from promptcomp.datamodules.sources.row_files import read_records
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
    """Shown in tables: the run and the row."""
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
    lines: list[tuple[str, dict[str, Any]]] = []
    for record in read_records(file, _ASKED):
        where = f"{record.file}, line {record.line}"
        if record.problem is not None:
            raise ConfigError(f"{where}: {record.problem}")
        lines.append((where, dict(record.content)))
    if not lines:
        raise ConfigError(f"{file}: holds no examples")
    if not path.is_dir() and not any("scores" in line or "texts" in line for _, line in lines):
        return Side(path.stem, path, None, _items((where, line, *_of_table(where, line)) for where, line in lines))
    # Examples that were scored by options have no texts.
    generated = [(where, line) for where, line in lines if isinstance(line.get("texts"), dict)]
    again = command("evaluate", path if path.is_dir() else path.parent, "evaluation.generate=true")
    again = f"`{again}` writes answers to a new folder, which can be judged"
    if not generated:
        raise ConfigError(f"{file}: holds no generated texts; {again}")
    own = [
        (where, {**line, "text": line["texts"][row]}) for where, line in generated if line["texts"].get(row) is not None
    ]
    if not own:
        raise ConfigError(f"{file}: holds no texts of row {row!r}; choose another row or another run")
    for where, line in own:
        if not isinstance(line.get("instruction"), str) or not isinstance(line.get("input"), str):
            raise ConfigError(f"{where}: has no 'instruction' and 'input'; {again}")
    name = path.resolve().name if path.is_dir() else path.stem
    return Side(f"{name}:{row}", path, row, _items((where, line, *_of_run(line)) for where, line in own))


def _of_run(line: dict[str, Any]) -> tuple[Key, str]:
    """Which example a line of predictions is, and its context."""
    key = (str(line.get("split")), str(line.get("example")))
    return key, str(line.get("context", key[1]))


def _of_table(where: str, line: dict[str, Any]) -> tuple[Key, str]:
    """Which example a row of a table is, and its context: examples of one instruction belong together."""
    missing = [name for name in _COLUMNS if line.get(name) is None or (name == "id" and line[name] == "")]
    if missing:
        raise ConfigError(
            f"{where}: no {', '.join(missing)}; a table of answers has the columns {', '.join(_COLUMNS)}"
            " (and split, reference if wanted)"
        )
    names = []
    for column in ("split", "id"):
        try:
            names.append(name_in(line.get(column)))
        except ValueError:
            raise ConfigError(f"{where}: {column!r} is neither text nor a whole number") from None
    return (names[0] or TABLE_SPLIT, str(names[1])), str(line["instruction"])


def _items(rows: Iterable[tuple[str, dict[str, Any], Key, str]]) -> dict[Key, Item]:
    """Examples by key, from where a line is, what it holds, its key and its context."""
    items: dict[Key, Item] = {}
    for where, line, key, context in rows:
        for name in ("instruction", "input", "text"):
            if not isinstance(line[name], str):
                raise ConfigError(f"{where}: {name!r} is no text")
        if key in items:
            raise ConfigError(f"{where}: example {key[1]} of split {key[0]!r} occurs twice")
        reference = None if line.get("reference") is None else str(line["reference"])
        items[key] = Item(line["instruction"], line["input"], line["text"], reference, context)
    return items


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
    pairs, other = [], []
    for key in shared:
        a, b = side_a.items[key], side_b.items[key]
        if (a.instruction, a.input) != (b.instruction, b.input):
            other.append(key)
        reference = b.reference if a.reference is None else a.reference
        pairs.append(Pair(*key, a.instruction, a.input, a.text, b.text, reference, a.context))
    if other:
        split, example = other[0]
        raise ConfigError(
            f"{side_a.path} and {side_b.path} answer different tasks: instruction or input differs in {len(other)} of"
            f" {len(shared)} shared examples, first in split {split!r}, example {example};"
            " evaluate both on the same data"
        )
    return Matched(tuple(pairs), len(wanted_a) - len(shared), len(wanted_b) - len(shared))


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
