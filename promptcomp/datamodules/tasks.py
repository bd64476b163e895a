"""The rows and tasks that in-context-learning data is made of, whatever file or generator they come from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, overload

TaskKind = Literal["classification", "multi_choice", "free_form"]


Item = TypeVar("Item", covariant=True)


class LazySequence(Sequence[Item]):
    """A sequence whose items are read or built when they are indexed. Subclasses give `__len__` and `item`."""

    @abstractmethod
    def item(self, index: int) -> Item:
        """The item at `index`, 0 <= index < len(self)."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        places = range(len(self))[index]  # an IndexError beyond the ends, as for a list
        return self.item(places) if isinstance(places, int) else [self.item(place) for place in places]


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled example of a task. `options` is empty for free-form tasks, otherwise it holds `output`."""

    input: str
    output: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InstructionRow:
    """An instruction, what it is applied to (may be empty) and the answer. `source` names the row's part or origin."""

    instruction: str
    input: str
    output: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """A task: rows to show as demonstrations and rows to ask.

    `demonstrations` and `queries` may be the same sequence (MetaICL's training tasks); a query is then never shown as
    its own demonstration. `seed` names the data seed that made the demonstration pool (MetaICL: 100, 13, 21, 42, 87).
    """

    name: str
    kind: TaskKind
    demonstrations: Sequence[Row]
    queries: Sequence[Row]
    seed: int | None = None


class TaskSource(Protocol):
    """Anything that can list tasks. Both members are pure functions of the source's configuration."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names that `tasks` accepts: "train", a "dev" split where there is one, and one or more test splits."""
        ...

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split; the sequence may build each task when it is indexed."""
        ...
