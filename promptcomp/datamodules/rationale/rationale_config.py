"""Sections of examples with a teacher's rationales: their options, the original's folders, files, one dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from promptcomp.config import ConfigError
from promptcomp.datamodules.sections import DEFAULT_WINDOW, DataConfig, Lengths
from promptcomp.datamodules.sources.rationale_parsing import ParsedTask, ParseMode
from promptcomp.datamodules.sources.rationale_records import FORMATS, FormatName, RationaleColumns

Targets = Literal[
    "label_and_rationale",
    "label",
    "rationale",
    "rationale_then_label",
    "label_then_rationale",
    "label_from_rationale",
]
Markers = Literal["prefix", "suffix", "none"]


DEFAULT_INPUT_TOKENS = 1024


class RationaleConfig(DataConfig):
    """Options of examples with a teacher's rationales, whatever their source."""

    module_class: ClassVar[str] = "promptcomp.datamodules.rationale.rationale_module:RationaleDataModule"

    targets: Targets = "label_and_rationale"
    """What is learned from an input: label_and_rationale: two tasks (the method); label, rationale: one of them;
    rationale_then_label and label_then_rationale: both in one target, with `separator` between them;
    label_from_rationale: the label of the input together with the teacher's rationale (also at test time)."""
    markers: Markers = "prefix"
    """Where the task is named: prefix: in front of the input (the paper's T5); suffix: behind it, so that a
    decoder-only LM reads the input once for both tasks; none: nowhere (plain fine-tuning)."""
    label_marker: str = Field(default="predict:", min_length=1)
    """Names the label task."""
    rationale_marker: str = Field(default="explain:", min_length=1)
    """Names the rationale task; with label_from_rationale it stands in front of the rationale."""
    separator: str = Field(default="=>", min_length=1)
    """Stands between rationale and label where both are one target."""
    input_end: str | None = None
    """Text behind the input; null: a line end where a decoder-only LM reads the input right before its answer (" =>" in
    vocabularies without line ends), otherwise nothing."""
    target_space: bool | None = None
    """A space in front of each target; null: where one LM reads both and neither a line end nor the vocabulary begins a
    word (byte-level vocabularies)."""
    input_eos: bool | None = None
    """An end-of-sequence token behind each query; null: as the tokenizer itself does (T5: yes)."""
    label_source: Literal["gold", "teacher"] = "gold"
    """Whose labels are trained on. gold: the data set's; teacher: the teacher's. Evaluation splits always have the data
    set's own."""
    rationale_filter: Literal["all", "teacher_correct", "teacher_correct_rows"] = "all"
    """Which rationales are trained on. all: every one; teacher_correct: those of rows whose teacher label is right (the
    label task keeps all rows); teacher_correct_rows: the same, and the other rows are left out altogether."""
    blank_targets: Literal["skip", "train"] = "skip"
    """What is done with rows without a label or rationale (failed parses). skip: what is missing is not trained on;
    train: it is a blank, as in the original."""
    shuffle_rationales: bool = False
    """Give each row the rationale of another one (a control: is it the content that helps?)."""
    train_count: int | None = Field(default=None, ge=1)
    """Maximum number of training rows; null: all."""
    train_share: float = Field(default=1.0, gt=0, le=1)
    """Share of these rows to train on. With "fixed" and "per_seed" a smaller subset is part of every larger one."""
    subset: Literal["fixed", "per_seed", "reference"] = "fixed"
    """Which rows: fixed: the same in every run; per_seed: others for every seed; reference: the original's, which
    depends on the seed and is drawn before the dev split (and so moves it)."""
    subset_seed: int = Field(default=0, ge=0)
    """Seed of the "fixed" subset."""
    dev_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training rows held out as dev where the data has no dev split; the original's 90/10 split, which
    does not depend on the run's seed. 0: no dev split."""
    max_input_tokens: int | None = Field(default=None, ge=4)
    """Most tokens of an input with its marker; longer ones are cut on the right. null: 1024 (the original), or what the
    LM's window leaves."""
    max_label_tokens: int = Field(default=256, ge=2)
    """Maximum number of tokens of a label with its end-of-sequence token."""
    max_rationale_tokens: int = Field(default=256, ge=2)
    """Maximum number of tokens of a rationale with its end-of-sequence token."""
    max_dev_rows: int | None = Field(default=None, ge=1)
    """Maximum number of rows of the dev split; null: all."""
    max_eval_rows: int | None = Field(default=None, ge=1)
    """Maximum number of rows of each test split; null: all."""
    scored_splits: Literal["none", "dev", "all"] = "dev"
    """Splits whose rows are answered by the likeliest of their options, where they have some; other answers are
    generated. none: no split; dev: dev alone, so that the best weights are chosen by accuracy at little cost; all:
    every split."""
    metric: Literal["exact_match", "equation"] = "exact_match"
    """How a label is compared. exact_match: as text; equation: by the value of the arithmetic expression that it is."""

    @model_validator(mode="before")
    @classmethod
    def _metric_of_format(cls, values: Any) -> Any:
        """Arithmetic formats compare labels by value unless told otherwise."""
        if isinstance(values, Mapping) and "metric" not in values:
            known = FORMATS.get(str(values.get("task") or values.get("format")))
            if known is not None:
                return {**values, "metric": known.metric}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> RationaleConfig:
        if self.markers == "none" and self.targets == "label_and_rationale":
            raise ValueError("targets 'label_and_rationale' needs markers 'prefix' or 'suffix', one for each task")
        if self.label_marker == self.rationale_marker:
            raise ValueError(f"label_marker and rationale_marker are both {self.label_marker!r}; they must differ")
        if self.shuffle_rationales and self.targets == "label":
            raise ValueError("shuffle_rationales has no effect with targets 'label'")
        return self

    @property
    def uses_rationales(self) -> bool:
        """Whether a rationale is read or written anywhere."""
        return self.targets != "label"

    @property
    def has_two_tasks(self) -> bool:
        """Whether the student learns to write rationales beside labels."""
        return self.targets == "label_and_rationale"

    @property
    def in_one_target(self) -> bool:
        """Whether rationale and label stand in one target."""
        return self.targets in ("rationale_then_label", "label_then_rationale")

    @property
    def is_drawn(self) -> bool:
        """The original's subset is drawn before dev rows are held out of it."""
        is_cut = self.dev_share > 0 and "dev" not in (self.splits or ())
        return self.subset == "reference" and self.train_share < 1 and is_cut

    @property
    def format_name(self) -> FormatName | None:
        """The known format of the raw rows: the task's, or the configured one; None: they have none."""
        name: FormatName | None = getattr(self, "task", None) or getattr(self, "format", None)
        return name

    def without_teacher(self) -> Self:
        """The section without what a teacher wrote, whose files then need not be there."""
        nothing = {"teacher": "none", "rationales": ()}
        fields = type(self).model_fields
        return self.model_copy(update={name: value for name, value in nothing.items() if name in fields})

    def budget(self, window: int | None) -> int:
        """Maximum number of tokens of an input with its marker, given the LM's window [positions].

        Raises:
            ConfigError: an input with its target may not fit the window.
        """
        targets = max(self.max_label_tokens, self.max_rationale_tokens)
        if self.in_one_target:
            targets = self.max_label_tokens + self.max_rationale_tokens
        room = DEFAULT_INPUT_TOKENS if window is None else window - targets - 1  # one position for a BOS token
        if self.max_input_tokens is None:
            if room < 4:
                raise ConfigError(
                    f"data.max_label_tokens and data.max_rationale_tokens ({targets} tokens) leave {max(room, 0)} "
                    f"tokens for the input in the LM's window of {window}; lower them"
                )
            return min(DEFAULT_INPUT_TOKENS, room)
        if window is not None and self.max_input_tokens > room:
            raise ConfigError(
                f"data.max_input_tokens = {self.max_input_tokens}: with targets of {targets} tokens it exceeds the "
                f"LM's window of {window}; use at most {max(room, 0)}"
            )
        return self.max_input_tokens

    def eval_splits(self, splits: Sequence[str]) -> tuple[str, ...]:
        """See DataConfig; dev may be held out of the training rows."""
        held_out = ("dev",) if self.dev_share > 0 and "train" in splits and "dev" not in splits else ()
        return (*held_out, *super().eval_splits(splits))

    def lengths(self, window: int | None) -> Lengths:
        """An input is read once for both tasks where their markers stand behind it; otherwise it is part of a query."""
        text = self.max_input_tokens or window or DEFAULT_WINDOW
        most = min(text, text if window is None else window // 2)
        target = max(self.max_label_tokens, self.max_rationale_tokens if self.uses_rationales else 0)
        return Lengths(most, target, target) if self.markers == "suffix" else Lengths(0, most + target, target)

    @property
    def training_queries(self) -> int:
        """One for each task."""
        return 2 if self.has_two_tasks else 1


class RationaleFolderData(RationaleConfig):
    """The original's layout: <folder>/<task>/<task>_<split>.json with llm/<split>_CoT_<i>.json beside it."""

    source_class: ClassVar[str] = "promptcomp.datamodules.sources.rationale_sources:FolderSource"
    name: Literal["rationale_folder"] = "rationale_folder"
    folder: Path
    """Folder with a folder for each task (the original's `datasets`)."""
    task: ParsedTask
    """Which data set: format of the rows, and of the teacher's texts. cqa: CommonsenseQA; svamp: SVAMP; esnli: e-SNLI;
    anli1: ANLI, round 1; asdiv: ASDiv."""
    teacher: Literal["palm", "gpt_neox", "human", "none"] = "palm"
    """Whose rationales: palm: <task>/llm/; gpt_neox: gpt-neox/<task>/<split>.json; human: those in the rows; none:
    nobody's."""
    parsing: ParseMode = "strict"
    """How the teacher's texts are read. strict: whole labels and rationales; reference: as the original, with its
    losses."""


class RationaleRows(RationaleConfig):
    """Rows of files or of a dataset, with the teacher's work in them or in other files."""

    source_class: ClassVar[str] = "promptcomp.datamodules.sources.rationale_sources:TableRationales"
    rationales: tuple[Path, ...] = ()
    """Files with id, llm_label, llm_rationale, teacher, parse_status (as `promptcomp rationales` writes them)."""
    format: FormatName | None = None
    """Format of the rows; null: as `columns` says. cqa: CommonsenseQA; svamp: SVAMP; esnli: e-SNLI; anli1: ANLI, round
    1; asdiv: ASDiv; gsm8k: GSM8K, a question and its rationale before ####."""
    columns: RationaleColumns = RationaleColumns()
    """Names of the columns."""
    human_rationales: bool = True
    """Use the human rationale, if the format has one and no teacher wrote another."""


class RationaleFilesData(RationaleRows):
    """Files of one example a line, with the teacher's work in the same line or in other files (by id)."""

    name: Literal["rationale_files"] = "rationale_files"
    train: tuple[Path, ...] = ()
    """Files of the training rows."""
    dev: tuple[Path, ...] = ()
    """Files of the dev rows; none: `dev_share` of the training rows is held out."""
    test: tuple[Path, ...] = Field(min_length=1)
    """Files of the test rows."""

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train" and "dev" where they are named, and "test"."""
        return (*(["train"] if self.train else []), *(["dev"] if self.dev else []), "test")


class RationaleHFData(RationaleRows):
    """One dataset of the Hugging Face hub (or local), by a known format or a map of columns."""

    name: Literal["rationale_hf"] = "rationale_hf"
    path: str
    """Name on the hub, or a local folder."""
    config: str | None = None
    """Configuration of the dataset, if it has several."""
    train_split: str | None = "train"
    """Split to train on; null: none, the data is for evaluation."""
    dev_split: str | None = None
    """null: `dev_share` of the training rows is held out."""
    test_split: str = "test"
    """Split to test on."""

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train" and "dev" where they are named, and "test"."""
        return (*(["train"] if self.train_split else []), *(["dev"] if self.dev_split else []), "test")
