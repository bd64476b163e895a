"""Datasets of the Hugging Face hub (or saved by `datasets`) as Arrow tables that stay on disk.

`datasets` is imported when a dataset is opened and not needed after that: rows are read from the memory-mapped table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from promptcomp.config import ConfigError
from promptcomp.datamodules.sources.records import Asked, NotHere, Record
from promptcomp.datamodules.sources.row_files import batch_records, named
from promptcomp.datamodules.tasks import LazySequence

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 4096
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Table:
    """The columns of one split of a dataset that a section asks for; class labels are the classes' names."""

    where: str
    """Dataset and split, for messages."""
    arrow: pa.Table

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def records(self) -> Iterator[Record]:
        """Every row, numbered from 1 on."""
        return batch_records(self.arrow.to_batches(max_chunksize=_ROWS_AT_ONCE), self.where)

    def columns(self, *names: str | None) -> dict[str, Any]:
        """Those of the columns that the table has."""
        return {name: self.arrow.column(name) for name in names if name is not None and name in self.arrow.column_names}


def open_table(path: str, name: str | None, split: str, asked: Asked) -> Table:
    """One split of a dataset; a script in it never runs.

    Args:
        path: Name on the hub, a folder written by `save_to_disk`, or anything else that `load_dataset` reads.
        name: Configuration of the dataset, if it has several.
        split: Split to open.
        asked: The columns to read.

    Raises:
        ConfigError: it cannot be found, reached or read, or lacks the split or a column.
    """
    try:
        found = _open(path, name, split)
        asked.check_header(found.column_names, f"dataset {path} (split {split})")
        return table_of(found, f"{path}[{split}]", asked)
    except ConfigError:
        raise
    except Exception as error:  # whatever a builder, a file system or a reader of the library raises
        message = f"dataset {path} (split {split}) cannot be loaded: {' '.join(str(error).split()) or repr(error)}"
        raise (ConfigError if Path(path).exists() else NotHere)(message) from None


def table_of(found: Any, where: str, asked: Asked) -> Table:
    """Those of the columns that are asked for that a dataset of `datasets` has; `where`: what messages call it."""
    import datasets

    found = found.select_columns([column for column in asked.all if column in found.column_names])
    kinds = {name: kind for name, kind in found.features.items() if name not in asked.numbers}
    labels = {name: kind.names for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)}
    return Table(where, named(found.with_format("arrow")[:], labels, where))


def _open(path: str, name: str | None, split: str) -> Any:
    import datasets

    folder = Path(path)
    if (folder / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(path)
        if split not in splits:
            raise ConfigError(f"dataset {path}: no split {split!r}; it has {', '.join(map(str, splits))}")
        return splits[split]
    if (folder / "state.json").is_file():
        return datasets.load_from_disk(path)
    return datasets.load_dataset(path, name, split=split)


def text_column(table: Table, column: str) -> LazySequence[str]:
    """A text column, read from disk when indexed; null is empty.

    Raises:
        ConfigError: the column holds something else.
    """
    values = table.columns(column)[column]
    kind = str(values.type)
    if kind not in ("string", "large_string", "string_view", "null"):
        raise ConfigError(f"{table.where}: the column {column!r} is {kind}, expected text")
    return LazySequence(len(values), lambda index: str(values[index].as_py() or ""))


def arrow_rows(
    table: Table, names: Iterable[str | None], make: Callable[[Mapping[str, Any], str], Made], places: Sequence[int]
) -> LazySequence[Made]:
    """Rows of a table, read from disk when indexed.

    Args:
        table: Holds them.
        names: Columns to read.
        make: The row of a record that stands at a place (DATASET[SPLIT]:NUMBER).
        places: Which rows.
    """
    columns, numbers = table.columns(*names), np.asarray(places, dtype=np.int64)

    def item(index: int) -> Made:
        place = int(numbers[index])
        record = {name: values[place].as_py() for name, values in columns.items()}
        return make(record, f"{table.where}:{place + 1}")

    return LazySequence(len(numbers), item)
