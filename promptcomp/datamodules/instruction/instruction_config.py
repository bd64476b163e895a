"""Sections of instruction data: their options, Alpaca+ in its four files, your own files or datasets."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from promptcomp.config import Config, ConfigError
from promptcomp.datamodules.sections import ChosenTasks, Lengths
from promptcomp.datamodules.sources.records import Asked, Named, NotHere

TemplateName = Literal["alpaca_gist", "chat", "plain"]
CONVERSATIONS = ("messages", "conversations", "conversation")
"""Names of the column with the turns of a conversation."""
ALPACA_PLUS_FILES = {
    "train": "alpaca_plus_train.json",
    "seen": "alpaca_plus_validation_seen.json",
    "unseen": "alpaca_plus_validation_unseen.json",
    "human": "alpaca_plus_validation_human.json",
}


class CustomTemplate(Config):
    """Your own template. Nothing is added to it but the token that ends an answer."""

    context: str = "{instruction}"
    """What is compressed; `{instruction}` stands for the instruction."""
    query: str
    """What follows; `{input}` stands for the input."""
    empty_query: str
    """What follows for rows without an input."""
    output: str = "{output}"
    """The answer, `{output}`; put a space in front where the vocabulary is byte-level and the query ends in none."""

    @model_validator(mode="after")
    def _fields_are_there(self) -> CustomTemplate:
        for name, field in (("context", "{instruction}"), ("query", "{input}"), ("output", "{output}")):
            if getattr(self, name).count(field) != 1:
                raise ValueError(f"{name} should hold {field} once")
        return self


class InstructionColumns(Config):
    """Names of the columns of a table of instructions; conversations (`messages`, `conversations`) need none."""

    instruction: str = "instruction"
    """Column with the instruction."""
    input: str | None = "input"
    """Column with what it is applied to; null or absent: no row has an input."""
    output: str = "output"
    """Column with the answer; with `targets: teacher` it may be absent, or empty in some rows."""
    source: str | None = "source"
    """Column that says where a row comes from; null or absent: the name of the file."""

    def asked(self, answers: bool = True) -> Asked:
        """The columns for a reader; `answers`: that with the answers must be there."""
        optional = tuple(name for name in (self.input, self.source, "system") if name is not None)
        required = (self.instruction, self.output) if answers else (self.instruction,)
        return Asked(required, optional if answers else (*optional, self.output), instead=CONVERSATIONS)

    def named(self) -> Named:
        """The optional ones to which a user has given a name."""
        return Named(self, "input", "source")


class Limits(Config):
    """Budgets of one split where they differ from those of the others; null = the same."""

    max_context_tokens: int | None = Field(default=None, ge=1)
    """Maximum number of tokens of an instruction with what its template writes."""
    max_query_tokens: int | None = Field(default=None, ge=1)
    """Maximum number of tokens of an input with what its template writes."""
    max_target_tokens: int | None = Field(default=None, ge=1)
    """Maximum number of tokens of an output with its end."""


class InstructionConfig(ChosenTasks):
    """Options of instruction data, whatever its source."""

    module_class: ClassVar[str] = "promptcomp.datamodules.instruction.instruction_module:InstructionDataModule"

    template: TemplateName | CustomTemplate = "alpaca_gist"
    """alpaca_gist: "Instruction: ..." and then "Input: ... Output:"; chat: the tokenizer's chat template; plain: lines
    without added words; or your own {context, query, empty_query, output}."""
    query: str = "{input}"
    """What stands where the template puts an input that is not empty, for example "Q: {input}"."""
    answer: str = "{output}"
    """What stands where the template puts the output, for example "The answer is {output}."; of a generated text, what
    follows the last "The answer is" is then the answer."""
    template_date: date | None = None
    """The date for chat templates that insert one (Llama 3's does); null = the day of the run."""
    max_context_tokens: int = Field(default=256, ge=1)
    """Most tokens of an instruction with what its template writes; gist tokens come on top and are never cut."""
    max_query_tokens: int = Field(default=256, ge=1)
    """Maximum number of tokens of an input with what its template writes."""
    max_target_tokens: int = Field(default=256, ge=1)
    """Maximum number of tokens of an output with the token that ends it."""
    split_limits: dict[str, Limits] = {}
    """Other budgets for some splits, for example {human: {max_context_tokens: 384}}."""
    too_long: Literal["cut", "skip", "error"] = "cut"
    """What is done with a row over a budget. cut: its text is cut on the right (an output then has no end token); skip:
    the row is left out; error: the command stops. How many there are is always said."""
    queries_per_context: int = Field(default=1, ge=1)
    """Maximum number of training rows of one instruction that share its compression."""
    eval_queries_per_context: int | None = Field(default=None, ge=1)
    """Maximum number of evaluation rows of one instruction that share its compression; null = all."""
    max_dev_examples: int | None = Field(default=None, ge=1)
    """Maximum number of rows of the dev split, chosen at random by eval_seed; null = all."""
    max_eval_examples: int | None = Field(default=None, ge=1)
    """Maximum number of rows of each test split, chosen at random by eval_seed; null = all."""
    metric: Literal["exact_match", "rougeL", "loss", "accuracy", "teacher_match", "teacher_rougeL", "kl"] = "rougeL"
    """What results are summed up by. exact_match and rougeL: of generated answers; loss: of the right answer;
    accuracy: of choices, where rows have options; teacher_match and teacher_rougeL: the first two against the LM's
    own answers (`targets=teacher`); kl: the divergence from the LM behind the full prompt."""
    eval_seed: int = Field(default=0, ge=0)
    """Seed of that choice; not the run's seed: all runs are tested on the same rows."""
    allow_empty_instruction: bool = False
    """Take rows whose instruction is empty or blank; otherwise they are errors."""

    @model_validator(mode="after")
    def _metric_is_there(self) -> Self:
        if self.targets == "gold" and self.metric.startswith("teacher_"):
            raise ValueError(f"metric {self.metric!r} compares with the LM's own answers: set data.targets=teacher")
        return self

    @model_validator(mode="after")
    def _texts_have_places(self) -> Self:
        for name, field in (("query", "{input}"), ("answer", "{output}")):
            if getattr(self, name).count(field) != 1:
                raise ValueError(f"{name} should hold {field} once")
        return self

    def limits(self, split: str) -> tuple[int, int, int]:
        """Budgets of a split for context, query and target, in tokens."""
        own = self.split_limits.get(split, Limits())
        return (
            own.max_context_tokens or self.max_context_tokens,
            own.max_query_tokens or self.max_query_tokens,
            own.max_target_tokens or self.max_target_tokens,
        )

    def check_window(self, splits: Sequence[str], window: int | None) -> None:
        """Check the budgets of these splits against the LM's window [positions].

        Raises:
            ConfigError: a row within its budgets may not fit, or `split_limits` names an unknown split.
        """
        for split in self.split_limits:
            if split not in splits:
                raise ConfigError(f"data.split_limits: no split {split!r}; there are {', '.join(splits)}")
        for split in splits if window is not None else ():
            total = sum(self.limits(split)) + 1  # one position for a BOS token
            if window is not None and total > window:
                where = "data.split_limits" if split in self.split_limits else "data.max_context_tokens"
                raise ConfigError(
                    f"{where}: context, query and target of {' + '.join(map(str, self.limits(split)))} tokens and a "
                    f"BOS token exceed the LM's window of {window} (split {split}); lower max_context_tokens, "
                    "max_query_tokens or max_target_tokens"
                )

    def budget(self, window: int | None) -> None:
        """See DataConfig."""
        self.check_window(self.splits or (), window)

    def lengths(self, window: int | None) -> Lengths:
        """As the budgets of the training split."""
        context, query, target = self.limits("train")
        return Lengths(context, query + target, target)

    @property
    def context_budget(self) -> int:
        """The training split's."""
        return self.limits("train")[0]

    @property
    def training_queries(self) -> int:
        """As configured."""
        return self.queries_per_context


Place = Path | tuple[Path, ...] | str
"""Where the rows of a split are: in files, or a split of a dataset."""


def files_of(place: Place) -> tuple[Path, ...]:
    """The files of a place; none for a dataset's split."""
    return () if isinstance(place, str) else (place,) if isinstance(place, Path) else place


class HeldOutConfig(InstructionConfig):
    """Instruction data whose dev split is cut from the training rows."""

    dev_examples: int = Field(default=256, ge=0)
    """Most rows that are cut from the training rows as the dev split (unless one is given); 0 = no dev split."""
    hold_out: Literal["instruction", "row"] = "instruction"
    """instruction: all rows of an instruction are held out together, so dev asks new instructions; row: single rows."""

    def given(self) -> Mapping[str, Place]:
        """Where the rows of every split are."""
        raise NotImplementedError

    def check_places(self: Any) -> None:
        """See DataConfig; names all files that are missing, and those that are there."""
        given = {split: files_of(place) for split, place in self.given().items()}
        files = [(split, path) for split, paths in given.items() for path in paths]
        if missing := [str(path) for _, path in files if not path.is_file()]:
            known = ", ".join(f"{split}: {path.name}" for split, path in files if path.is_file())
            message = f"data.files: no such file: {', '.join(missing)}; name only those you have: {{{known}}}"
            raise (ConfigError if any(path.parent.is_dir() for _, path in files) else NotHere)(message)

    @property
    def cuts(self: Any) -> dict[str, int]:
        """Rows that are cut from the training rows for each split."""
        given = self.given()
        wanted = {"dev": 0 if "dev" in given else self.dev_examples, "test": self.test_examples}
        return {split: count for split, count in wanted.items() if count and "train" in given}

    @property
    def splits(self: Any) -> tuple[str, ...]:
        """ "train" and "dev" where there are any, then the test splits."""
        found = dict.fromkeys((*self.given(), *self.cuts))
        first = [split for split in ("train", "dev") if split in found]
        return (*first, *(split for split in found if split not in first))


class AlpacaPlusData(HeldOutConfig):
    """Alpaca+ (Mu et al. 2023), in the files that 'promptcomp data build alpaca-plus' makes."""

    source_class: ClassVar[str] = "promptcomp.datamodules.sources.instruction_sources:HeldOutSource"
    split_words: ClassVar[Mapping[str, str]] = {
        **InstructionConfig.split_words,
        "seen": "instructions of training, with other inputs",
        "unseen": "instructions that training never sees",
        "human": "instructions that people wrote, unlike those of training",
    }
    name: Literal["alpaca_plus"] = "alpaca_plus"
    folder: Path
    """Folder with the files."""
    files: dict[str, str] = ALPACA_PLUS_FILES
    """File in the folder for each split; name only those you have: {seen: alpaca_plus_validation_seen.json}."""
    columns: InstructionColumns = InstructionColumns()
    """Names of the keys of a row."""

    dataset: ClassVar[str | None] = None
    dataset_config: ClassVar[str | None] = None
    test_examples: ClassVar[int] = 0

    def given(self) -> Mapping[str, Place]:
        """The file of every split."""
        return {split: self.folder / name for split, name in self.files.items()}


class InstructionsData(HeldOutConfig):
    """Your own instructions or conversations, in files of rows or a dataset of the hub."""

    source_class: ClassVar[str] = "promptcomp.datamodules.sources.instruction_sources:HeldOutSource"
    name: Literal["instructions"] = "instructions"
    files: dict[str, Path | tuple[Path, ...]] = {}
    """A file (or several) for each split, for example {train: mine.jsonl, test: other.csv}; "train" and "dev" have
    their meaning, any other name is a test split."""
    dataset: str | None = None
    """Instead of files: a dataset of the hub, or a folder that `datasets` can load."""
    dataset_config: str | None = None
    """Configuration of the dataset, if it has several."""
    dataset_splits: dict[str, str] = Field(default={"train": "train"}, min_length=1)
    """The dataset's split for each split."""
    test_examples: int = Field(default=0, ge=0)
    """Maximum number of rows that are cut from the training rows as the split "test"; 0 = none."""
    columns: InstructionColumns = InstructionColumns()
    """Names of the columns."""

    @model_validator(mode="after")
    def _one_source(self) -> InstructionsData:
        if bool(self.files) == (self.dataset is not None):
            raise ValueError("give either `files` or `dataset`")
        for name in ("dataset_config", "dataset_splits") if self.files else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of a dataset, and `files` names files; leave it out")
        named = self.files or self.dataset_splits
        if self.test_examples and "test" in named:
            raise ValueError("test_examples cuts a test split from the training rows, but one is given; set it to 0")
        return self

    def given(self) -> Mapping[str, Place]:
        """The file, or the dataset's split, of every split."""
        return self.files or self.dataset_splits


class TaskFilesData(HeldOutConfig):
    """Tasks in a file of rows each, with one prompt for a task or a context in every row."""

    source_class: ClassVar[str] = "promptcomp.datamodules.sources.task_files:TaskFilesSource"
    name: Literal["task_files"] = "task_files"
    folder: Path
    """Folder that the files are in."""
    rows: str = "{task}.jsonl"
    """The file of a task's rows in it; `{task}` stands for the name of the task."""
    prompt: str | None = None
    """The file with the prompt of a task, for example "prompts/{task}.txt": the context of all its rows; null: a row
    has its own (`columns.instruction`, or `split`)."""
    prompt_after: str = ""
    """The line behind which the prompts begin (the last one, if there are several); empty: with the first line."""
    split: tuple[str, ...] = ()
    """Regular expressions with the groups `instruction` and `input` for inputs that hold a passage and a question: the
    first one that matches the whole input cuts it in two."""
    tasks: tuple[str, ...] | None = None
    """Names of the tasks; null: all whose files are there."""
    columns: InstructionColumns = InstructionColumns(source=None)
    """Names of the columns; the source of a row is its task."""
    options: str | None = "options"
    """Column with the answers to choose from; null or absent: none."""
    most_outputs: int = Field(default=0, ge=0)
    """A task without options that has at most so many different outputs is scored by the choice among them; 0: none."""
    dev_examples: int = Field(default=20, ge=0)
    """Rows of each task that are cut as the dev split; 0 = no dev split."""
    test_examples: int = Field(default=50, ge=0)
    """Rows of each task that are cut as the split "test"; 0 = none."""

    @model_validator(mode="after")
    def _files_are_named(self) -> TaskFilesData:
        for name in ("rows", "prompt"):
            if (pattern := getattr(self, name)) is not None and "{task}" not in pattern:
                raise ValueError(f"{name} should hold {{task}}, which stands for the name of a task")
        if self.prompt is not None and self.split:
            raise ValueError("either all rows of a task share a `prompt`, or `split` finds a context in each; give one")
        for pattern in self.split:
            try:
                groups = re.compile(pattern).groupindex
            except re.error as error:
                raise ValueError(f"split: {pattern!r} is no regular expression: {error}") from None
            if not {"instruction", "input"} <= set(groups):
                raise ValueError(f"split: {pattern!r} should have the groups (?P<instruction>...) and (?P<input>...)")
        return self

    def given(self) -> Mapping[str, Place]:
        """All rows are training rows, before dev and test are cut from them."""
        return {"train": self.folder}

    def check_places(self) -> None:
        """See DataConfig."""
        if not self.folder.is_dir():
            raise NotHere(f"data.folder: no such folder: {self.folder}")
        self.files()

    def files(self) -> dict[str, tuple[Path, Path | None]]:
        """The file of rows and the prompt's file of every task.

        Raises:
            ConfigError: there is none, or one is missing.
        """
        names = self.tasks
        if names is None:
            first, *rest = map(re.escape, self.rows.split("{task}"))
            known = re.compile(first + "(?P<task>[^/]+)" + "(?P=task)".join(rest))
            pattern = "*".join(map(glob.escape, self.rows.split("{task}")))
            found = (str(path.relative_to(self.folder)) for path in self.folder.glob(pattern))
            matches = (match for path in found if (match := known.fullmatch(path)) and (self.folder / path).is_file())
            names = tuple(sorted(match["task"] for match in matches if not match["task"].startswith(".")))
        if not names:
            raise ConfigError(f"data.rows: no file {self.folder / self.rows}")
        files = {
            name: (
                self.folder / self.rows.replace("{task}", name),
                None if self.prompt is None else self.folder / self.prompt.replace("{task}", name),
            )
            for name in names
        }
        if missing := [
            str(path) for pair in files.values() for path in pair if path is not None and not path.is_file()
        ]:
            raise ConfigError(
                f"data.tasks: no such file: {', '.join(missing[:3])}; name only tasks whose files are there"
            )
        return files
