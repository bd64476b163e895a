"""Building Alpaca+ (Mu et al. 2023, arXiv 2304.08467) from Stanford Alpaca and Self-Instruct, by the published rules.

1. Self-Instruct is grouped by instruction, in the order of the file. Of the first instructions with two or more
   instances, the first of them with an input, that first instance goes to "seen" and its (instruction, input) is kept
   out of training.
2. All other Self-Instruct instances are training rows, each (instruction, input) once.
3. Alpaca in order: the first rows with an input whose instruction no training row has go to "unseen", all others to
   training.
4. "human" holds every instance of the user-oriented tasks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from promptcomp.config import ConfigError
from promptcomp.datamodules.instruction.instruction_config import ALPACA_PLUS_FILES, InstructionColumns
from promptcomp.datamodules.sources.instruction_sources import good_instructions
from promptcomp.datamodules.sources.records import Asked, good_records
from promptcomp.datamodules.sources.row_files import read_records
from promptcomp.datamodules.tasks import InstructionRow
from promptcomp.files import make_folder, write_atomic

ALPACA, SELF_INSTRUCT = "alpaca", "self_instruct"
_COLUMNS = InstructionColumns(source=None)


class AlpacaPlus(NamedTuple):
    """The rows of every split."""

    train: list[InstructionRow]
    seen: list[InstructionRow]
    unseen: list[InstructionRow]
    human: list[InstructionRow]


def build_alpaca_plus(
    self_instruct: Sequence[InstructionRow],
    alpaca: Sequence[InstructionRow],
    human: Sequence[InstructionRow],
    num_seen: int = 1000,
    num_unseen: int = 1000,
) -> AlpacaPlus:
    """Split the rows by the rules of the module docstring.

    Args:
        self_instruct: Instances of Self-Instruct in the order of their file.
        alpaca: Stanford Alpaca in the order of its file.
        human: Instances of the user-oriented tasks.
        num_seen: Rows of "seen".
        num_unseen: Rows of "unseen".

    Raises:
        ConfigError: there are too few rows for a split, or the splits overlap.
    """
    train, seen = _split_self_instruct(self_instruct, num_seen)
    unseen: list[InstructionRow] = []
    known = {row.instruction for row in train}
    for row in alpaca:
        if len(unseen) < num_unseen and row.input and row.instruction not in known:
            unseen.append(replace(row, source=ALPACA))
        else:
            train.append(replace(row, source=ALPACA))
            known.add(row.instruction)
    for name, wanted, rows in (("seen", num_seen, seen), ("unseen", num_unseen, unseen)):
        if len(rows) < wanted:
            raise ConfigError(
                f"only {len(rows)} rows qualify for the {name} split, not {wanted}; use --{name} {len(rows)}"
            )
    found = AlpacaPlus(train, seen, unseen, [replace(row, source=SELF_INSTRUCT) for row in human])
    check_overlaps(found)
    return found


def _split_self_instruct(
    rows: Sequence[InstructionRow], num_seen: int
) -> tuple[list[InstructionRow], list[InstructionRow]]:
    """Training rows and the seen split."""
    groups: dict[str, list[InstructionRow]] = {}
    for row in rows:
        groups.setdefault(row.instruction, []).append(replace(row, source=SELF_INSTRUCT))
    seen = [rows[0] for rows in groups.values() if len(rows) >= 2 and rows[0].input][:num_seen]
    taken = {(row.instruction, row.input) for row in seen}
    train: list[InstructionRow] = []
    for members in groups.values():
        for row in members:
            if (row.instruction, row.input) not in taken:
                taken.add((row.instruction, row.input))
                train.append(row)
    return train, seen


def check_overlaps(data: AlpacaPlus) -> None:
    """Check what the splits promise; the human split is not checked, as in the release.

    Raises:
        ConfigError: names the rule and the first row that breaks it.
    """
    train_rows = {(row.instruction, row.input, row.source) for row in data.train}
    trained, seen = ({row.instruction for row in rows} for rows in (data.train, data.seen))
    for name, rows in (("seen", data.seen), ("unseen", data.unseen)):
        for row in rows:
            if (row.instruction, row.input, row.source) in train_rows:
                raise ConfigError(
                    f"a row of the {name} split is a training row too: {row.instruction[:80]!r} ({row.input[:40]!r})"
                )
    for row in data.seen:
        if row.instruction not in trained:
            raise ConfigError(
                f"no training row has the seen instruction {row.instruction[:80]!r}: its instances have one input"
            )
    for row in data.unseen:
        if row.instruction in trained or row.instruction in seen:
            where = "training" if row.instruction in trained else "seen"
            raise ConfigError(f"a {where} row has the unseen instruction {row.instruction[:80]!r}")


def read_flat(path: Path) -> Sequence[InstructionRow]:
    """Rows of {instruction, input, output}: Alpaca's alpaca_data.json, Self-Instruct's all_instances_82K.jsonl."""
    records = read_records(path, _COLUMNS.asked())
    return good_instructions(records, path.stem, str(path), _COLUMNS, allow_empty=True)


def read_user_oriented(path: Path) -> list[InstructionRow]:
    """Self-Instruct's user_oriented_instructions.jsonl: {instruction, instances: [{input, output}]} on each line.

    Raises:
        ConfigError: the file is missing, or a line is not of that form.
    """
    found: list[InstructionRow] = []
    records = read_records(path, Asked(("instruction", "instances")))
    for record in good_records(records, _task_problems, None, path):
        for each in record.content["instances"]:
            found.append(InstructionRow(record.content["instruction"], each["input"], each["output"], SELF_INSTRUCT))
    return found


def _task_problems(record: Mapping[str, Any]) -> list[str]:
    if not isinstance(record.get("instruction"), str):
        return ["'instruction' is missing or no text"]
    instances = record.get("instances")
    if not isinstance(instances, list) or not instances:
        return ["'instances' is missing or no list of {input, output}"]
    for instance in instances:
        if not isinstance(instance, Mapping) or not all(isinstance(instance.get(k), str) for k in ("input", "output")):
            return ["an instance without the texts 'input' and 'output'"]
    return []


def write_alpaca_plus(data: AlpacaPlus, folder: Path, overwrite: bool = False) -> dict[str, Path]:
    """Write the four files that `data.name=alpaca_plus` reads; no file is ever half written.

    Returns:
        The file of every split.

    Raises:
        ConfigError: a file is there already and `overwrite` is off, or the folder cannot be written.
    """
    paths = {split: folder / name for split, name in ALPACA_PLUS_FILES.items()}
    there = [path.name for path in paths.values() if path.exists()]
    if there and not overwrite:
        raise ConfigError(f"{folder} holds {', '.join(there)} already; choose another folder or add --force")
    make_folder(folder)
    for split, rows in data._asdict().items():
        write_atomic(paths[split], json.dumps([asdict(row) for row in rows], ensure_ascii=False))
    return paths


def counts(rows: Sequence[InstructionRow]) -> dict[str, int]:
    """Figures for people: rows, distinct instructions, rows with an input, rows of each source."""
    found = {
        "rows": len(rows),
        "instructions": len({row.instruction for row in rows}),
        "with_input": sum(bool(row.input) for row in rows),
    }
    for source in (ALPACA, SELF_INSTRUCT):
        found[source] = sum(row.source == source for row in rows)
    return found
