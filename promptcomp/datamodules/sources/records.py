"""What readers of rows share: records with file and line, the columns that are asked for, and problems.

What is wrong with how a record is written (no JSON, half a character, a key twice) is said by row_files.py, what is
wrong with its meaning by its section.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from promptcomp.config import Config, ConfigError
from promptcomp.errors import did_you_mean

LIST_SEPARATOR = "|"
"""Stands between the items of a CSV cell that is a list; white space around it does not count."""


class NotHere(ConfigError):
    """A folder or a dataset that is not on this machine; `fit --dry-run` goes on without it and says so."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the data. An error stops a run, a warning does not."""

    file: str
    line: int | None
    message: str
    severity: Literal["error", "warning"] = "error"

    @classmethod
    def at(cls, where: str, message: str, severity: Literal["error", "warning"] = "error") -> Problem:
        """A problem of the row that says where it stands (FILE:LINE)."""
        file, _, line = where.rpartition(":")
        return cls(file, int(line), message, severity) if line.isdecimal() else cls(where, None, message, severity)

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.message}"


Found = list[Problem] | None
"""Where problems are collected; None: the first error is raised, and nobody asks for warnings."""


def tell(problem: Problem, found: Found) -> None:
    """Collect a problem, or raise it where nothing is collected.

    Raises:
        ConfigError: the problem, if it is an error and nothing is collected.
    """
    if found is not None:
        found.append(problem)
    elif problem.severity == "error":
        raise ConfigError(str(problem))


@contextmanager
def collecting(found: Found, where: str = "data") -> Iterator[None]:
    """Collect what is raised inside as a problem of a file; it is raised on where nothing is collected."""
    try:
        yield
    except ConfigError as error:
        if found is None:
            raise
        if (problem := Problem(*_placed(str(error), where))) not in found:  # two splits may be of one file
            found.append(problem)


def _placed(message: str, where: str) -> tuple[str, int | None, str]:
    """File, line and message of a sentence that may begin with them."""
    if placed := re.match(rf"{re.escape(where)}(?::|, line )(\d+): ", message):
        return where, int(placed[1]), message[placed.end() :]
    return where, None, message.removeprefix(f"{where}:").strip()


def has_errors(found: Found) -> bool:
    """Whether an error was collected."""
    return any(problem.severity == "error" for problem in found or ())


@dataclass(frozen=True, slots=True)
class Asked:
    """The columns that a section reads."""

    required: tuple[str, ...] = ()
    """Those that a table must have; where rows are objects, the section itself looks at each row."""
    optional: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    """Columns any one of which stands for all that are required."""
    lists: tuple[str, ...] = ()
    """Columns whose CSV cells are lists, joined by `LIST_SEPARATOR`."""
    numbers: tuple[str, ...] = ()
    """Columns whose class labels stay numbers."""

    @property
    def all(self) -> tuple[str, ...]:
        """Every column that matters."""
        return tuple(dict.fromkeys((*self.required, *self.optional, *self.instead)))

    def check_header(self, header: Sequence[str], where: str) -> None:
        """Check the columns of a table.

        Raises:
            ConfigError: one is missing, or there twice.
        """
        if not any(name in header for name in self.instead):
            for name in self.required:
                if name not in header:
                    names = ", ".join(map(str, header)) or "none"
                    raise ConfigError(f"{where}: no column {name!r}; the columns are {names}")
        for name in self.all:
            if header.count(name) > 1:
                raise ConfigError(f"{where}: the column {name!r} occurs twice; rename one of them")


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it is written: where it stands, and its content or what is wrong with it."""

    file: str
    line: int
    """Line in .jsonl, .csv and .tsv files (the first of several), number of the row from 1 on in others."""
    content: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    offset: int = 0
    """Place of its first byte in a .jsonl file."""

    def warn(self, messages: Iterable[str], found: Found) -> None:
        """Tell what looks odd about a good record."""
        for text in messages if found is not None else ():
            tell(Problem(self.file, self.line, text, "warning"), found)


class Named:
    """Optional columns to which a user has given a name: some row of the data has to have each."""

    def __init__(self, columns: Config, *optional: str) -> None:
        """
        Args:
            columns: Names of the columns, a key for each; those that have their defaults may be absent.
            optional: The keys that need no column.
        """
        self._keys = {getattr(columns, key): key for key in optional if getattr(columns, key) is not None}
        for key in optional:
            self._keys.pop(type(columns).model_fields[key].default, None)
        self._there: set[str] = set()

    def look(self, content: Mapping[str, Any]) -> None:
        """See which of them a row has."""
        if self._keys:
            self._there.update(content)

    def check(self, found: Found) -> None:
        """Tell those that no row has had, once all were looked at.

        Raises:
            ConfigError: the first one, unless they are collected.
        """
        for name, key in self._keys.items():
            if name not in self._there:
                others = sorted(self._there - {*self._keys})
                near = did_you_mean(name, others, f"the others are {', '.join(others) or 'none'}")
                tell(Problem(f"data.columns.{key}", None, f"no row has a column {name!r}; {near}"), found)


def good_records(
    records: Iterable[Record],
    wrong: Callable[[Mapping[str, Any]], list[str]],
    found: Found,
    where: object = None,
    what: str = "rows",
    named: Named | None = None,
) -> Iterator[Record]:
    """The records that nothing is wrong with.

    Args:
        records: All of them.
        wrong: Says what is wrong with the content of a record.
        found: Collects that.
        where: The file that must have rows; None: any number will do.
        what: Its rows in a word.
        named: Is shown every record.

    Raises:
        ConfigError: a bad record, or none, unless that is collected.
    """
    is_first = True
    for record in records:
        if named is not None:
            named.look(record.content)
        problems = wrong(record.content) if record.problem is None else [record.problem]
        for text in problems:
            tell(Problem(record.file, record.line, text + (_there(text, record) if is_first else "")), found)
        is_first = False
        if not problems:
            yield record
    if is_first and where is not None:
        tell(Problem(str(where), None, f"the file has no {what}"), found)


def _there(problem: str, record: Record) -> str:
    """The columns there are, where the problem of a file's first row is that it does not have one."""
    name = problem.removesuffix(" is missing")
    lacks = record.content and name != problem and name not in map(repr, record.content)
    return f"; the columns are {', '.join(map(str, record.content))}" if lacks else ""


def text_problems(record: Mapping[str, Any], required: Sequence[str], optional: Sequence[str | None] = ()) -> list[str]:
    """What is wrong with values that should be texts; the optional ones may be absent."""
    found = []
    for name in (*required, *optional):
        value = record.get(name) if name else None
        if value is None and name in required:
            found.append(f"{name!r} is missing")
        elif not isinstance(value, str | None):
            found.append(f"{name!r} is {type(value).__name__}, expected text")
    return found


def whole_number(value: Any) -> int:
    """The whole number that a cell holds: 7, 7.0 or "7".

    Raises:
        ValueError: it holds none.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and "_" not in value:  # int("1_0") is 10
        return int(value)
    raise ValueError


def name_in(value: Any) -> str | None:
    """The name that a cell holds, as text without the white space around it or as a whole number (0 is one); None: it
    is empty.

    Raises:
        ValueError: it holds something else.
    """
    if value is None:
        return None
    return (value.strip() or None) if isinstance(value, str) else str(whole_number(value))
