"""`promptcomp data build ...`: published data sets from the files they are made of."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from promptcomp.datamodules.sources.alpaca_plus import (
    build_alpaca_plus,
    counts,
    read_alpaca,
    read_self_instruct,
    read_user_oriented,
    write_alpaca_plus,
)


def build_alpaca_plus_files(
    alpaca: Path,
    self_instruct: Path,
    user_oriented: Path,
    output: Path,
    num_seen: int,
    num_unseen: int,
    overwrite: bool,
    console: Console,
    as_json: bool,
) -> None:
    """Read the three files, write the four of Alpaca+ and print a table of counts.

    Raises:
        ConfigError: a file is missing or bad, there are too few rows, or the folder has such files already.
    """
    data = build_alpaca_plus(
        read_self_instruct(self_instruct),
        read_alpaca(alpaca),
        read_user_oriented(user_oriented),
        num_seen,
        num_unseen,
    )
    paths = write_alpaca_plus(data, output, overwrite)
    figures = {split: counts(rows) for split, rows in data.splits().items()}
    if as_json:
        print(json.dumps({split: {"file": str(paths[split]), **found} for split, found in figures.items()}))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("split", *figures["train"]):
        table.add_column(name.replace("_", " "), justify="left" if name == "split" else "right")
    for split, found in figures.items():
        table.add_row(split, *(str(value) for value in found.values()))
    console.print(table)
    console.print(f"written to {output}", highlight=False, soft_wrap=True)
