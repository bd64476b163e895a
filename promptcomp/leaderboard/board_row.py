"""A row of a leaderboard as a file: DIR/rows/ROW/SEED.json, all that the tables need of one seed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from promptcomp.config import Measured
from promptcomp.documents import read_json
from promptcomp.errors import ConfigError
from promptcomp.files import make_folder, write_atomic

SCHEMA = 1
ROWS = "rows"
"""The folder of rows in a leaderboard's."""
ROW_NAME = r"^[A-Za-z0-9._-]+$"
Scores = tuple[float | None, ...]


class RowBudget(Measured):
    """What a row may take."""

    kind: Literal["slots", "bytes"]
    requested: float = Field(gt=0)
    """Positions, or the share of the bytes of the full context's keys and values."""

    @property
    def text(self) -> str:
        """As in the names of rows: `16`, `bytes-0.125`."""
        return f"{self.requested:g}" if self.kind == "slots" else f"bytes-{self.requested:g}"


class ContextScores(Measured):
    """The score of every context, the units of intervals and tests: a mean over its examples [C]."""

    weights: tuple[float, ...]
    """Examples of each context (tokens, for a mean over tokens)."""
    row: Scores
    no_prompt: Scores
    full_prompt: Scores

    @model_validator(mode="after")
    def _aligned(self) -> ContextScores:
        if {len(self.row), len(self.no_prompt), len(self.full_prompt)} != {len(self.weights)}:
            raise ValueError("row, no_prompt, full_prompt and weights have different lengths")
        if not sum(self.weights) > 0 or any(weight < 0 for weight in self.weights):
            raise ValueError("weights: none may be below 0, and one has to be above")
        return self


class BoardRow(Measured):
    """One method or rival at one budget with one seed."""

    schema_version: int = Field(SCHEMA, alias="schema")
    board: str = ""
    """What its leaderboard is called."""
    row: str = Field(pattern=ROW_NAME)
    """Its name and its folder's: `mend-16`, `truncate_tail-16`, `evict_knorm-bytes-0.125`."""
    method: str
    """What it has in common with itself at other budgets: `mend`, `truncate_tail`."""
    title: str
    paper: str = ""
    budget: RowBudget
    seed: int = Field(ge=0)
    data: str
    lm: str
    split: str
    metric: str
    """What is scored."""
    examples_sha256: str
    bounds: str | None = None
    """Weights of no_prompt and full_prompt: `untrained`, or `trained` with the method."""
    is_trained: bool = False
    query_aware: bool = False
    is_control: bool = False
    failure: str = ""
    """Why there are no numbers, in words."""
    contexts: ContextScores | None = None
    slots: float | None = None
    """Positions taken, mean over contexts, like all sizes."""
    stored_bytes: float | None = None
    kv_bytes: float | None = None
    """In use: keys and values once the memory is loaded."""
    context_bytes: float | None = None
    """Keys and values of the full context."""
    kl: float | None = None
    top1: float | None = None
    compress_flops: float | None = None
    train_seconds: float | None = None
    train_steps: int | None = None
    train_flops: float | None = None
    break_even: int | None = None
    """Queries on one context from which compressing and reading the memory's keys and values takes fewer FLOPs than
    reading the full context once and keeping its keys and values; training not counted. Null: never, or not known."""
    rate: float | None = None
    """Learning rate, chosen on dev."""
    rates: dict[str, float | None] = {}
    """Learning rate -> best dev result, mean over seeds; null: a seed has failed."""
    dev_metric: str | None = None
    shares: tuple[float, ...] = ()
    """Budgets in bytes of its track: it may stand in these blocks too."""
    command: str = ""
    """What made it."""
    version: str = ""

    @property
    def track(self) -> tuple[str, ...]:
        """What all rows of a leaderboard have in common."""
        return self.data, self.lm, self.split, self.metric, self.examples_sha256

    @model_validator(mode="after")
    def _scored(self) -> BoardRow:
        if not self.failure and self.contexts is None:
            raise ValueError("it has neither the scores of contexts nor a failure")
        return self


_TRACK = ("data", "LM", "split", "metric", "examples")


def write_rows(folder: Path, rows: Iterable[BoardRow]) -> None:
    """Write each to rows/ROW/SEED.json, a key a line.

    Raises:
        ConfigError: a file cannot be written.
    """
    for row in rows:
        tree = json.loads(row.model_dump_json(by_alias=True))
        pairs = ((json.dumps(key), json.dumps(value, ensure_ascii=False)) for key, value in tree.items())
        lines = ",\n".join(f" {key}: {value}" for key, value in pairs)
        place = folder / ROWS / row.row
        make_folder(place)
        write_atomic(place / f"{row.seed}.json", f"{{\n{lines}\n}}\n")


def read_rows(folder: Path) -> list[BoardRow]:
    """The rows of a leaderboard, by name and seed.

    Raises:
        ConfigError: there are none, a file is no row, a folder's rows have other data, LM or examples than the rest, or
            its seeds have other learning rates (those of an earlier plan with more seeds).
    """
    files = sorted((folder / ROWS).glob("*/*.json"), key=lambda path: (path.parent.name, path.name))
    found = [(path, _read(path)) for path in files]
    if not found:
        raise ConfigError(f"{folder}: no rows (files {ROWS}/ROW/SEED.json) to build a leaderboard of")
    usual = Counter(row.track for _, row in found).most_common(1)[0][0]
    other = next(path for path, row in found if row.track == usual)
    for path, row in found:
        for what, own, theirs in zip(_TRACK, row.track, usual, strict=True):
            if own != theirs:
                told = "" if what == "examples" else f" ({own}, not {theirs})"
                raise ConfigError(f"{path.parent}: {path.name} has other {what} than {other}{told}; leave it out")
    rates: dict[str, tuple[str, float | None]] = {}
    for path, row in found:
        first, rate = rates.setdefault(row.row, (path.name, row.rate)) if not row.failure else ("", row.rate)
        if row.rate != rate:
            told = f"has learning rate {row.rate}, and {first} {rate}; a row has one"
            raise ConfigError(f"{path}: {told}, so leave out the seeds of an earlier plan")
    return sorted((row for _, row in found), key=lambda row: (row.row, row.seed))


def _read(path: Path) -> BoardRow:
    tree = read_json(path, "row of a leaderboard")
    version = tree.get("schema") if isinstance(tree, dict) else None
    if isinstance(version, int) and version > SCHEMA:
        raise ConfigError(f"{path}: written by a newer promptcomp (schema {version}); upgrade promptcomp")
    try:
        row = BoardRow.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = f"{place}: {first['msg']}" if place else first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: not a row of a leaderboard: {reason}") from None
    if (path.parent.name, path.stem) != (row.row, str(row.seed)):
        raise ConfigError(f"{path}: holds seed {row.seed} of {row.row}, which belongs in {row.row}/{row.seed}.json")
    return row
