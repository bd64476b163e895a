"""The rows that data is made of: in tasks, with instructions or with rationales, whatever they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, overload

from promptcomp.datamodules.sources.records import Problem

TaskKind = Literal["classification", "multi_choice", "free_form"]


Item = TypeVar("Item", covariant=True)


class LazySequence(Sequence[Item]):
    """A sequence whose items are read or built when they are indexed."""

    def __init__(self, length: int, item: Callable[[int], Item]) -> None:
        """
        Args:
            length: Number of items.
            item: Gives the item at an index, 0 <= index < length.
        """
        self._length, self._item = length, item

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        places = range(len(self))[index]  # an IndexError beyond the ends, as for a list
        return self._item(places) if isinstance(places, int) else [self._item(place) for place in places]


class Source(ABC):
    """Anything that lists rows or tasks by split. All members are pure functions of the source's configuration."""

    config: Any
    """Its section, or what of it the source is made of."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names that `rows` or `tasks` accepts: "train" and "dev" where there are any, and the test splits."""
        found: tuple[str, ...] = self.config.splits
        return found

    def check(self, found: list[Problem] | None = None) -> None:
        """Read everything once. Problems are collected in `found`; None: the first error is raised.

        Generated data has nothing that could be wrong.

        Raises:
            ConfigError: something is wrong.
        """
        return


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled example of a task. `options` is empty for free-form tasks, otherwise it holds `output`."""

    input: str
    output: str
    options: tuple[str, ...] = ()
    where: str = field(default="", compare=False)
    """File and line, where the row comes from a file."""


@dataclass(frozen=True, slots=True)
class RationaleRow:
    """One example with what a teacher wrote about it; the teacher's part is empty where there is none."""

    id: str
    input: str
    label: str
    """The data set's own label; empty where there is none."""
    llm_label: str = ""
    """The label that the teacher gave."""
    llm_rationale: str = ""
    """The teacher's reasons."""
    parse_status: str = "ok"
    """How reading the teacher's text went: a `promptcomp.datamodules.sources.rationale_parsing.ParseStatus`."""
    teacher: str = ""
    """Who wrote them."""
    options: tuple[str, ...] = ()
    """Labels to choose from; empty where they are free."""
    where: str = field(default="", compare=False)
    """File and line, where the row comes from a file."""


class RationaleSource(Source):
    """Anything that lists examples with rationales."""

    @abstractmethod
    def rows(self, split: str) -> Sequence[RationaleRow]:
        """The examples of a split, whole: nothing is filtered or subsampled here."""

    def check_columns(self) -> None:
        """Check that the rows read so far have the columns that were named.

        Raises:
            ConfigError: none of them has one.
        """
        return


@dataclass(frozen=True, slots=True)
class Task:
    """A task: rows for demonstrations and rows for queries.

    `demonstrations` and `queries` may be the same sequence (MetaICL's training tasks); a query is then never shown as
    its own demonstration. `seed` names the data seed that made the demonstration pool (MetaICL: 100, 13, 21, 42, 87).
    """

    name: str
    kind: TaskKind
    demonstrations: Sequence[Row]
    queries: Sequence[Row]
    seed: int | None = None


class TaskSource(Source):
    """Anything that can list tasks."""

    @abstractmethod
    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split; the sequence may build each task when it is indexed."""


@dataclass(frozen=True, slots=True)
class InstructionRow:
    """An instruction with what it is applied to and the answer; `input` may be empty."""

    instruction: str
    input: str
    output: str
    source: str = "instructions"
    """Where the row comes from ("alpaca", "self_instruct"); evaluation groups by source as by task."""
    options: tuple[str, ...] = ()
    """Answers to choose from, the output among them; empty where they are free."""


class InstructionSource(Source):
    """Anything that can list rows with instructions."""

    def notes(self) -> list[str]:
        """Notes on the rows as they were read, such as turns that are left out."""
        return []

    @abstractmethod
    def rows(self, split: str) -> Sequence[InstructionRow]:
        """The rows of a split; the sequence may read or build each row when it is indexed."""
