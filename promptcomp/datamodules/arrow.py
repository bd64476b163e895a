"""Datasets of the Hugging Face hub (or saved by `datasets`) as Arrow tables that stay on disk.

`datasets` is imported when a dataset is opened and not needed after that: rows are read from the memory-mapped table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from promptcomp.config import ConfigError
from promptcomp.datamodules.rows import Columns, to_row
from promptcomp.datamodules.tasks import LazySequence, Row

if TYPE_CHECKING:
    import pyarrow as pa


def open_table(path: str, name: str | None, split: str) -> pa.Table:
    """One split of a dataset.

    Args:
        path: Name on the hub, a folder written by `save_to_disk`, or anything else that `load_dataset` reads.
        name: Configuration of the dataset, if it has several.
        split: Split to open.

    Raises:
        ConfigError: it cannot be found, reached or read, or has no such split.
    """
    import datasets

    try:
        folder = Path(path)
        if (folder / "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(path)
            if split not in splits:
                raise ConfigError(f"dataset {path}: no split {split!r}; it has {', '.join(map(str, splits))}")
            found = splits[split]
        elif (folder / "state.json").is_file():
            found = datasets.load_from_disk(path)
        else:
            found = datasets.load_dataset(path, name, split=split)
    except ConfigError:
        raise
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise ConfigError(f"dataset {path} (split {split}) cannot be loaded: {' '.join(str(error).split())}") from None
    return found.with_format("arrow")[:]


def column_of(table: pa.Table, column: str) -> Any:
    """A column of a table.

    Raises:
        ConfigError: there is no such column.
    """
    if column not in table.column_names:
        raise ConfigError(f"the dataset has no column {column!r}; it has {', '.join(table.column_names)}")
    return table.column(column)


class TextColumn(LazySequence[str]):
    """A text column, read from disk when indexed."""

    def __init__(self, table: pa.Table, column: str) -> None:
        self._values = column_of(table, column)

    def __len__(self) -> int:
        return len(self._values)

    def item(self, index: int) -> str:
        """One text; null is empty."""
        return str(self._values[index].as_py() or "")


class ArrowRows(LazySequence[Row]):
    """Some rows of a table, read from disk when indexed."""

    def __init__(self, table: pa.Table, columns: Columns, places: Sequence[int]) -> None:
        self._columns = columns
        self._places = np.asarray(places, dtype=np.int64)
        names = [columns.input, columns.output, *([columns.options] if columns.options in table.column_names else [])]
        self._values = {name: column_of(table, name) for name in names if name is not None}

    def __len__(self) -> int:
        return len(self._places)

    def item(self, index: int) -> Row:
        """One row."""
        place = int(self._places[index])
        return to_row({name: values[place].as_py() for name, values in self._values.items()}, self._columns)
