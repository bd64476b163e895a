"""Sections of instruction data: their options, Alpaca+ in its four files, your own files or datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from promptcomp.config import Config, ConfigError
from promptcomp.datamodules.sections import Lengths, TaughtConfig
from promptcomp.datamodules.sources.records import Asked, NotHere

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


class Limits(Config):
    """Budgets of one split where they differ from those of the others; null = the same."""

    max_context_tokens: int | None = Field(default=None, ge=1)
    """Maximum number of tokens of an instruction with what its template writes."""
    max_query_tokens: int | None = Field(default=None, ge=1)
    """Maximum number of tokens of an input with what its template writes."""
    max_target_tokens: int | None = Field(default=None, ge=1)
    """Maximum number of tokens of an output with its end."""


class InstructionConfig(TaughtConfig):
    """Options of instruction data, whatever its source."""

    module_class: ClassVar[str] = "promptcomp.datamodules.instruction.instruction_module:InstructionDataModule"

    template: TemplateName | CustomTemplate = "alpaca_gist"
    """alpaca_gist: "Instruction: ..." and then "Input: ... Output:"; chat: the tokenizer's chat template; plain: lines
    without added words; or your own {context, query, empty_query, output}."""
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
    metric: Literal["exact_match", "rougeL", "loss", "teacher_match", "teacher_rougeL", "kl"] = "rougeL"
    """What results are summed up by. exact_match and rougeL: of generated answers; loss: of the right answer;
    teacher_match and teacher_rougeL: the first two against the LM's own answers (`targets=teacher`); kl: the divergence
    from the LM behind the full prompt."""
    eval_seed: int = Field(default=0, ge=0)
    """Seed of that choice; not the run's seed: all runs are tested on the same rows."""
    allow_empty_instruction: bool = False
    """Take rows whose instruction is empty or blank; otherwise they are errors."""

    @model_validator(mode="after")
    def _metric_is_there(self) -> Self:
        if self.targets == "gold" and self.metric.startswith("teacher_"):
            raise ValueError(f"metric {self.metric!r} compares with the LM's own answers: set data.targets=teacher")
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


class HeldOutConfig(InstructionConfig):
    """Instruction data whose dev split is cut from the training rows."""

    dev_examples: int = Field(default=256, ge=0)
    """Most rows that are cut from the training rows as the dev split (unless one is given); 0 = no dev split."""
    hold_out: Literal["instruction", "row"] = "instruction"
    """instruction: all rows of an instruction are held out together, so dev asks new instructions; row: single rows."""

    def check_places(self: Any) -> None:
        """See DataConfig; names all files that are missing, and those that are there."""
        files = {split: place for split, place in self.given().items() if isinstance(place, Path)}
        if missing := [str(path) for path in files.values() if not path.is_file()]:
            known = ", ".join(f"{split}: {path.name}" for split, path in files.items() if path.is_file())
            message = f"data.files: no such file: {', '.join(missing)}; name only those you have: {{{known}}}"
            raise (ConfigError if getattr(self, "folder", Path()).is_dir() else NotHere)(message)

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

    def given(self) -> Mapping[str, Path | str]:
        """The file of every split."""
        return {split: self.folder / name for split, name in self.files.items()}


class InstructionsData(HeldOutConfig):
    """Your own instructions or conversations: JSONL, JSON, CSV, TSV or Parquet files, or a dataset of the hub."""

    source_class: ClassVar[str] = "promptcomp.datamodules.sources.instruction_sources:HeldOutSource"
    name: Literal["instructions"] = "instructions"
    files: dict[str, Path] = {}
    """A file for each split, for example {train: mine.jsonl, test: other.csv}; "train" and "dev" have their meaning,
    any other name is a test split."""
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
        named = self.files or self.dataset_splits
        if self.test_examples and "test" in named:
            raise ValueError("test_examples cuts a test split from the training rows, but one is given; set it to 0")
        return self

    def given(self) -> Mapping[str, Path | str]:
        """The file, or the dataset's split, of every split."""
        return self.files or self.dataset_splits
