"""The one reader of rows: files of every kind and Arrow tables become records with file and line.

Only the columns that a section asks for matter: what stands in another one is never looked at.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptcomp.config import ConfigError
from promptcomp.datamodules.sources.records import LIST_SEPARATOR, Asked, NotHere, Record
from promptcomp.plain import not_utf8

if TYPE_CHECKING:
    import pyarrow as pa

FILE_KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_SEPARATED = {
    ",": ("commas", "name it .csv"),
    "\t": ("tabs", "name it .tsv"),
    ";": ("semicolons", "save it with commas (.csv) or tabs (.tsv), or as JSON lines (.jsonl)"),
}
_LONGEST_CELL = 2**31 - 1  # characters; Python's own limit is 131,072
_ROWS_AT_ONCE = 4096
_UNREADABLE = (ValueError, TypeError, ArithmeticError, NotImplementedError)  # what pyarrow raises for single values


def read_records(path: Path, asked: Asked, kind: str | None = None) -> Iterator[Record]:
    """The rows of a file; `kind`: read it as this kind and not by its name (".jsonl").

    Raises:
        ConfigError: the file is missing, is no file, cannot be read, lacks a column, or is of an unknown kind.
    """
    kind = kind or path.suffix.lower()
    if kind not in FILE_KINDS:
        raise ConfigError(f"{path}: a file of rows should end in {', '.join(FILE_KINDS)}")
    check_file(path)
    readers = {".jsonl": _json_lines, ".json": _json_list, ".parquet": _parquet}
    try:
        if kind == ".jsonl" and path.suffix.lower() == ".json" and _holds_rows(path, asked):
            kind = ".json"
        yield from readers[kind](path, asked) if kind in readers else _csv(path, asked, "\t" if kind == ".tsv" else ",")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None


def kind_of_rows(path: Path) -> str:
    """How a file is read that need not say what it is: as JSON lines unless its name says that it is a table
    (`read_records` looks whether a .json file is one value that holds the rows)."""
    suffix = path.suffix.lower()
    return suffix if suffix in (".csv", ".tsv", ".parquet") else ".jsonl"


def check_file(path: Path) -> None:
    """Check that there is a file to read (a pipe would be waited for without end).

    Raises:
        ConfigError: there is none; NotHere where its folder is missing, too.
    """
    try:
        if path.is_file():
            return
        there = path.exists()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(path)[:80]!r}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    kind = ConfigError if path.parent.exists() else NotHere
    raise kind(f"{path}: not a file" if there else f"{path}: no such file")


# ---- JSON


class _Repeated(dict[str, Any]):
    """An object with a key twice; the last value counts."""

    twice: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    repeated = _Repeated(found)
    repeated.twice = frozenset(name for name in found if names.count(name) > 1)
    return repeated


def _whole(digits: str) -> int | float:
    """An integer; one of thousands of digits, which Python refuses to read, is infinite."""
    try:
        return int(digits)
    except ValueError:
        return -math.inf if digits.startswith("-") else math.inf


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole)


def parse_json(text: str) -> Any:
    """The value in a JSON text.

    Raises:
        json.JSONDecodeError: it is not valid JSON, or nested too deeply.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", text, 0) from None


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        ConfigError: the file is missing, cannot be read, or is not JSON (with its line).
    """
    check_file(path)
    try:
        return parse_json(_text(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except json.JSONDecodeError as error:
        hint = "; a file with one object a line should end in .jsonl" if error.msg == "Extra data" else ""
        raise ConfigError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno}){hint}") from None


def _holds_rows(path: Path, asked: Asked) -> bool:
    """Whether a file is a list, or one object with lists that is no row itself, and not an object a line."""
    with path.open("rb") as file:
        lines = (line for raw in file if (line := raw.removeprefix(b"\xef\xbb\xbf").strip()))
        first, more = next(lines, b""), next(lines, None) is not None
    if not first.startswith(b"{"):
        return first.startswith(b"[")
    found: Any = None
    with contextlib.suppress(ValueError):  # the row of this line is not valid then, or it goes on in the next one
        found = parse_json(first.decode())
        if more:
            return False
    with contextlib.suppress(ValueError):
        found = parse_json(path.read_text(encoding="utf-8-sig")) if found is None else found
    if found is None or any(name in found for name in asked.required or asked.all):
        return False
    return any(isinstance(value, list) for value in found.values())


def _text(path: Path) -> str:
    """
    Raises:
        ConfigError: names the line that is not UTF-8.
    """
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: {not_utf8(raw)}") from None


def _json_lines(path: Path, asked: Asked) -> Iterator[Record]:
    with path.open("rb") as file:
        offset = 0
        for number, raw in enumerate(file, start=1):
            if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                raw, offset = raw[3:], 3
            if raw.strip():
                yield _json_line(str(path), number, offset, raw, asked)
            offset += len(raw)


def _json_line(file: str, number: int, offset: int, raw: bytes, asked: Asked) -> Record:
    try:
        content = parse_json(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        text = not_utf8(raw) if number == 1 else "not UTF-8 text"
        return Record(file, number, problem=f"{text} (byte {error.start} of the line)")
    except json.JSONDecodeError as error:
        hint = "; a file with one list of rows should end in .json" if number == 1 and raw.lstrip()[:1] == b"[" else ""
        return Record(file, number, problem=f"not valid JSON: {error.msg} (column {error.colno}){hint}")
    return Record(file, number, *checked(content, asked), offset=offset)


def _json_list(path: Path, asked: Asked) -> Iterator[Record]:
    found = read_json(path)
    if isinstance(found, _Repeated):
        raise ConfigError(f"{path}: the key {min(found.twice)!r} occurs twice")
    if isinstance(found, dict) and len(lists := [each for each in found.values() if isinstance(each, list)]) == 1:
        found = lists[0]  # {"version": ..., "examples": [...]}
    if not isinstance(found, list):
        keys = f" with the keys {', '.join(map(repr, found))}" if isinstance(found, dict) else ""
        raise ConfigError(f"{path}: expected one list of rows, found {type(found).__name__}{keys}")
    for number, content in enumerate(found, start=1):
        yield Record(str(path), number, *checked(content, asked))


def checked(content: Any, asked: Asked) -> tuple[Mapping[str, Any], str | None]:
    """The content of a row that is an object, and what is wrong with how it is written."""
    if not isinstance(content, Mapping):
        names = " and ".join(map(repr, asked.required))
        return {}, f"expected an object{' with ' if names else ''}{names}, found {type(content).__name__}"
    if isinstance(content, _Repeated) and (twice := [name for name in asked.all if name in content.twice]):
        return {}, f"the key {twice[0]!r} occurs twice"
    for name in asked.all:
        try:
            half, within = half_character(content.get(name)), _key_twice(content.get(name))
        except RecursionError:
            return {}, f"{name!r} is nested too deeply"
        if within is not None:
            return {}, f"{name!r} has the key {within!r} twice"
        if half:
            return {}, f"{name!r} has half a character (\\u{ord(half):04x}, one of a surrogate pair)"
    return content, None


def half_character(value: Any) -> str | None:
    """The first surrogate that stands alone in the texts of a value; None: they are all of whole characters."""
    if isinstance(value, str):
        if value.isascii():
            return None
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            return value[error.start]
        return None
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next((found for part in parts if (found := half_character(part))), None)


def _key_twice(value: Any) -> str | None:
    """The first key that an object within a value has twice; None: there is none."""
    if isinstance(value, _Repeated):
        return min(value.twice)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for part in parts if (found := _key_twice(part)) is not None), None)


# ---- CSV


def _csv(path: Path, asked: Asked, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(_LONGEST_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            yield from _csv_rows(str(path), reader, asked)
        except UnicodeDecodeError:  # the decoder counts within a chunk
            _text(path)
        except csv.Error as error:
            raise ConfigError(f"{path}:{reader.line_num}: not valid CSV: {error}") from None


def _csv_rows(file: str, reader: Any, asked: Asked) -> Iterator[Record]:
    header: list[str] = next((cells for cells in reader if cells), [])
    where = f"{file}:{reader.line_num or 1}"
    if len(header) == 1 and header[0] not in asked.all:
        for mark, (words, advice) in _SEPARATED.items():
            if mark in header[0] and mark != reader.dialect.delimiter:
                raise ConfigError(f"{where}: the only column is {header[0]!r}: separated by {words}? {advice}")
    asked.check_header(header, where)
    line = reader.line_num + 1
    for cells in reader:
        if len(cells) > len(header):
            yield Record(file, line, problem=f"more cells than the {len(header)} columns")
        elif cells:
            content: dict[str, Any] = dict(zip(header, cells, strict=False))
            for name in asked.lists:
                items = content[name].split(LIST_SEPARATOR) if content.get(name) else []
                content[name] = [item.strip() for item in items]
            yield Record(file, line, content)
        line = reader.line_num + 1


# ---- Arrow


def _parquet(path: Path, asked: Asked) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pa.parquet.ParquetFile(path, memory_map=True) as file:
            schema = file.schema_arrow
            asked.check_header(schema.names, str(path))
            columns = [name for name in asked.all if name in schema.names]
            names = {name: classes for name, classes in _classes(schema).items() if name not in asked.numbers}
            batches = file.iter_batches(_ROWS_AT_ONCE, columns=columns)
            yield from batch_records((named(batch, names, str(path)) for batch in batches), str(path))
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from None


def _classes(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the classes of every column of class labels, as `datasets` writes them into a file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        labels = {name: each for name, each in features.items() if isinstance(each, dict)}  # older lists are lists
        return {name: each["names"] for name, each in labels.items() if each.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def named(batch: pa.RecordBatch | pa.Table, names: Mapping[str, Sequence[str]], where: str) -> Any:
    """A table whose class labels are the classes' names; a label of -1 (unknown) is null.

    Raises:
        ConfigError: a label is no number of a class; `where`: what the message calls the table.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, classes in names.items():
        if name in batch.schema.names:
            place = batch.schema.get_field_index(name)
            try:
                labels = batch.column(place).cast("int64")  # where some are missing, pandas writes floats
            except pa.ArrowException as error:
                raise ConfigError(f"{where}: {name!r} has a class label that is no whole number ({error})") from None
            if (most := pc.max(labels).as_py()) is not None and most >= len(classes):
                told = f"{name!r} has the class label {most}, and {len(classes)} classes have names"
                raise ConfigError(f"{where}: {told}")
            known = pc.if_else(pc.less(labels, 0), None, labels)
            batch = batch.set_column(place, name, pc.take(pa.array(classes), known))
    return batch


def batch_records(batches: Iterable[pa.RecordBatch], where: str) -> Iterator[Record]:
    """The rows of Arrow batches; a value that Python cannot hold (the year 10000) is the problem of its row."""
    number = 0
    for batch in batches:
        for row in _values(batch):
            number += 1
            yield Record(where, number, problem=row) if isinstance(row, str) else Record(where, number, row)


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    try:
        yield from batch.to_pylist()
        return
    except _UNREADABLE:
        pass
    for place in range(batch.num_rows):
        row: dict[str, Any] | str = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                if isinstance(row, dict):
                    row[name] = column[place].as_py()
            except _UNREADABLE as error:
                row = f"{name!r} cannot be read ({' '.join(str(error).split())[:120]})"
        yield row
