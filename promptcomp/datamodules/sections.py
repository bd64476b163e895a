"""What every data section is: options of batching, and what the rest of the program asks of data; and that of text.

Files of sections import no torch: what a section builds is imported when it is built.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from promptcomp.config import Config, ConfigError, read_yaml
from promptcomp.datamodules.sources.records import Found, NotHere, Problem, collecting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from promptcomp.datamodules.context_module import ContextDataModule
    from promptcomp.datamodules.tasks import InstructionSource


DEFAULT_WINDOW = 1024
"""Tokens of a context that a forecast assumes where neither data nor LM has a limit."""


@dataclass(frozen=True, slots=True)
class Reader:
    """What an LM requires of its data."""

    tokenizer: PreTrainedTokenizerBase
    seed: int
    """The run's."""
    batch_size: int
    """Contexts of one micro-batch over all processes."""
    window: int | None = None
    """Maximum number of positions the LM can read; None: no limit."""
    query_in_encoder: bool = False
    """Whether an encoder reads the queries (instruction data then closes them with EOS)."""
    writes_bos: bool | None = None
    """Whether the LM puts BOS in front of a context; None: as the tokenizer itself does."""
    rows: InstructionSource | None = None
    """Rows in memory, which instruction data takes instead of those that its section names."""


def check_split(split: str, splits: Sequence[str]) -> None:
    """Check that a split is one of those.

    Raises:
        ConfigError: it is not.
    """
    if split not in splits:
        raise ConfigError(f"split {split!r} is unknown; this data has {', '.join(splits) or 'none'}")


def tested(splits: tuple[str, ...]) -> tuple[str, ...]:
    """Which of the splits that can be evaluated are, after training: all but dev, or dev where there is no other."""
    return tuple(split for split in splits if split != "dev") or splits


class Lengths(NamedTuple):
    """Maximum number of tokens of a training context, of a query with its target, and of the target alone."""

    context: int
    example: int
    target: int
    """As long as the example where it has no budget of its own."""


class DataConfig(Config):
    """Options of batching, which every data section has, and what the rest of the program asks of data."""

    length_window: int = Field(default=32, ge=1, le=2**16)
    """Batches of a shuffled window that are sorted by length before they are cut; 1 = plain random order."""
    max_batch_tokens: int | None = Field(default=None, ge=1, le=2**24)
    """Form training batches by padded tokens (contexts, queries, targets) instead of by number of contexts."""
    eval_batch_contexts: int = Field(default=16, ge=1)
    """Maximum number of contexts in one evaluation batch."""
    eval_batch_targets: int = Field(default=128, ge=1)
    """Most targets (queries times options) in one evaluation batch; large tasks are split into several batches."""
    num_workers: int = Field(default=0, ge=0, le=1024)
    """Processes that prepare batches beside the training process; 0 = none."""

    context_kind: ClassVar[Literal["demonstrations", "prompt"]] = "prompt"
    """The kind of contexts; results name it."""

    split_words: ClassVar[Mapping[str, str]] = {
        "dev": "held out; a training chooses its weights by it",
        "test": "rows that training never sees",
    }
    """What splits are, for people; a split that is not in it has a name of the user's."""

    @model_validator(mode="after")
    def _files_are_read_once(self) -> Self:
        for key, paths in self._lists():
            full = [*map(os.path.abspath, paths)]
            if twice := [path for path, each in zip(paths, full, strict=True) if full.count(each) > 1]:
                raise ValueError(f"{key}: {twice[0]} occurs twice, so its rows would count twice; leave one out")
        return self

    @property
    def context_words(self) -> str:
        """A whole context in words: "24 demonstrations"."""
        return "the full prompt"

    module_class: ClassVar[str] = ""
    """The datamodule that the section builds (of the section, its source and the reader), as "module:class"."""
    source_class: ClassVar[str] = ""
    """What lists its rows (made of the section), likewise."""

    def source(self) -> Any:
        """The rows or tasks that the section describes; None: it has none that could be checked alone.

        Raises:
            ConfigError: files are missing or bad.
        """
        return resolve_name(self.source_class)(self) if self.source_class else None

    def build(self, reader: Reader) -> ContextDataModule:
        """The datamodule that the section describes, not read yet.

        Raises:
            ConfigError: files are missing or bad, or budgets do not fit the window.
        """
        found: ContextDataModule = resolve_name(self.module_class)(
            self, self.source() if reader.rows is None else reader.rows, reader
        )
        return found

    def check_places(self) -> None:
        """Look whether the files and folders that the section names are there.

        Raises:
            ConfigError: names the first that is not.
        """
        for key, path in self._named():
            if not path.exists():
                kind = NotHere if key == "folder" or not path.parent.exists() else ConfigError
                raise kind(f"data.{key}: no such file or folder: {path}; name only those you have")

    def places(self) -> tuple[Path, ...]:
        """The files and folders that it reads."""
        return tuple(path for _, path in self._named())

    def _named(self) -> Iterator[tuple[str, Path]]:
        for key, paths in self._lists():
            for path in paths:
                yield key, path

    def _lists(self) -> Iterator[tuple[str, list[Path]]]:
        for key, value in self:
            for each in value.values() if isinstance(value, dict) else (value,):
                yield key, [path for path in (each if isinstance(each, tuple) else (each,)) if isinstance(path, Path)]

    @property
    def splits(self) -> tuple[str, ...] | None:
        """The splits that its rows come in; None: its source knows them, once it has read something."""
        return None

    def eval_splits(self, splits: Sequence[str]) -> tuple[str, ...]:
        """Those that can be evaluated where its rows come in these splits: "dev" and the test splits."""
        return tuple(split for split in splits if split != "train")

    def budget(self, window: int | None) -> int | None:
        """Maximum number of tokens of what is compressed, in an LM's window [positions]; None: no limit, or several.

        Raises:
            ConfigError: an example within its budgets may not fit the window.
        """
        return None

    def check_files(self, found: Found) -> None:
        """Look for what is wrong with the files alone, where another mistake keeps the datamodule from being made.

        Raises:
            ConfigError: the files cannot be listed.
        """
        source = self.source()
        if source is not None:
            source.check(found)

    def file_problems(self) -> list[Problem]:
        """What `check_files` finds."""
        found: list[Problem] = []
        with collecting(found):
            self.check_files(found)
        return found

    def lengths(self, window: int | None) -> Lengths:
        """Budgets of a training step in tokens, for the forecast; `window`: the LM's."""
        raise NotImplementedError(f"{type(self).__name__} has no lengths()")

    @property
    def context_budget(self) -> int | None:
        """Maximum number of tokens of a training context that were asked for; None: as many as fit."""
        return None

    @property
    def training_queries(self) -> int:
        """Maximum number of queries of one context in training."""
        return 1

    @property
    def has_two_tasks(self) -> bool:
        """Whether the student learns to write rationales beside labels."""
        return False

    @property
    def asks(self) -> TeacherTargets | None:
        """How the LM is asked for the targets; None: the rows have them."""
        return None

    @property
    def is_calibrated(self) -> bool:
        """Whether scores under an empty input are subtracted."""
        return False

    @property
    def is_drawn(self) -> bool:
        """Whether the rows of a split that is evaluated depend on the run's seed."""
        return False

    @property
    def why_no_answers(self) -> str:
        """Why no answers can be generated to this data; empty: they can."""
        return ""


class TeacherTargets(Config):
    """How the LM writes the answers that are trained on with `targets: teacher`."""

    temperature: float = Field(default=0.0, ge=0)
    """0: the likeliest token each time; above: drawn at this temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the likeliest tokens that hold this much probability together."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draws; each answer has draws of its own, whatever is asked beside it."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest answer in tokens; less where the data's budget of a target is less."""
    batch_size: int = Field(default=16, ge=1)
    """Answers that are written at a time."""

    @model_validator(mode="after")
    def _draws_where_it_says(self) -> Self:
        for name in ("top_p", "seed") if self.temperature == 0 else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} has no meaning at temperature 0, where nothing is drawn; set data.teacher.temperature "
                    f"above 0, or leave data.teacher.{name} out"
                )
        return self


class TaughtConfig(DataConfig):
    """Base of the sections of data whose targets may be the LM's own answers."""

    targets: Literal["gold", "teacher"] = "gold"
    """gold: the rows' own answers; teacher: what the LM answers behind the full context, so that rows need none."""
    teacher: TeacherTargets = TeacherTargets()
    """How it answers."""

    @model_validator(mode="after")
    def _teacher_is_asked(self) -> Self:
        if self.targets == "gold" and self.teacher != TeacherTargets():
            raise ValueError("data.teacher has no effect with data.targets=gold; set data.targets=teacher")
        return self

    @property
    def asks(self) -> TeacherTargets | None:
        """See DataConfig."""
        return self.teacher if self.targets == "teacher" else None


class ChosenTasks(TaughtConfig):
    """Data in tasks, some of which may be left out."""

    task_choice: Path | None = None
    """A file of `fit --bounds-only --keep-tasks`: the tasks that it drops are in no split."""

    def dropped_tasks(self) -> frozenset[str]:
        """Names of the tasks that are left out.

        Raises:
            ConfigError: the file is missing or is no such file.
        """
        if self.task_choice is None:
            return frozenset()
        return frozenset(self._chosen("drop"))

    def check_choice(self, names: Set[str]) -> None:
        """Check that the file of `task_choice` is about these tasks.

        Raises:
            ConfigError: it names none of them, or drops all.
        """
        if names.isdisjoint((*self._chosen("keep"), *self._chosen("drop"))):
            raise ConfigError(f"data.task_choice: {self.task_choice} names no task of this data; it is of other data")
        if names <= self.dropped_tasks():
            raise ConfigError(f"data.task_choice: {self.task_choice} drops every task of this data")

    def _chosen(self, part: str) -> list[str]:
        assert self.task_choice is not None
        found = read_yaml(self.task_choice, "file for data.task_choice", example="keep: [one], drop: [other]").get(part)
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise ConfigError(f"data.task_choice: {self.task_choice} has no list {part!r} of names of tasks")
        return found


class TextConfig(DataConfig):
    """Plain text, cut into pseudo-demonstrations and completions."""

    module_class: ClassVar[str] = "promptcomp.datamodules.text:TextDataModule"
    source_class: ClassVar[str] = "promptcomp.datamodules.text:Documents"

    name: Literal["text"] = "text"
    paths: tuple[Path, ...] = ()
    """Files: .txt (documents between blank lines) or .jsonl, .json, .csv, .tsv, .parquet (one document a row)."""
    hub: str | None = None
    """A dataset of the Hugging Face hub, or a folder that `datasets` can load; instead of `paths`."""
    hub_config: str | None = None
    """Configuration of the hub's dataset ("en" of allenai/c4)."""
    hub_split: str = "validation"
    """Split of the hub's dataset (MEND uses C4's validation split)."""
    text_column: str = "text"
    """Column or key with the text."""
    context_share: float = Field(default=0.8, gt=0, lt=1)
    """Share of a document's tokens that becomes the context."""
    min_tokens: int = Field(default=16, ge=4)
    """Documents with fewer tokens are passed over."""
    max_tokens: int = Field(default=1024, ge=4)
    """Longer documents are cut on the right."""
    dev_documents: int = Field(default=64, ge=0)
    """Documents that are held out as the dev split (chosen by a fixed seed); 0 = no dev split."""

    @model_validator(mode="after")
    def _one_source(self) -> TextConfig:
        if bool(self.paths) == (self.hub is not None):
            raise ValueError("give either `paths` or `hub`")
        for name in ("hub_config", "hub_split") if self.paths else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of a dataset of the hub, and `paths` names files; leave it out")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is larger than max_tokens {self.max_tokens}")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """Documents are held out as dev."""
        return ("train", "dev") if self.dev_documents else ("train",)

    def budget(self, window: int | None) -> None:
        """See DataConfig."""
        if window is not None and self.max_tokens > window:
            raise ConfigError(
                f"data.max_tokens = {self.max_tokens} exceeds the LM's window of {window}; use at most {window}"
            )

    def lengths(self, window: int | None) -> Lengths:
        """The longest document."""
        context = round(self.context_share * self.max_tokens)
        return Lengths(context, self.max_tokens - context, self.max_tokens - context)
