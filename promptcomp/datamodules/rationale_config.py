"""Options of examples with a teacher's rationales, whatever their source."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from promptcomp.datamodules.icl_config import LoaderConfig

Targets = Literal[
    "label_and_rationale",
    "label",
    "rationale",
    "rationale_then_label",
    "label_then_rationale",
    "label_from_rationale",
]
Markers = Literal["prefix", "suffix", "none"]


class RationaleConfig(LoaderConfig):
    """Options of examples with a teacher's rationales, whatever their source."""

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
    """Whose labels are trained on. Evaluation splits always have the data set's own."""
    rationale_filter: Literal["all", "teacher_correct", "teacher_correct_rows"] = "all"
    """Which rationales are trained on: all; those of rows whose teacher label is right (the label task keeps all rows);
    teacher_correct_rows: the other rows are left out altogether."""
    blank_targets: Literal["skip", "train"] = "skip"
    """Rows without a label or rationale (failed parses): skip what is missing, or train on a blank as the original."""
    shuffle_rationales: bool = False
    """Give each row the rationale of another one (a control: is it the content that helps?)."""
    train_count: int | None = Field(default=None, ge=1)
    """Most training rows; null: all."""
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
    """Most tokens of a label with its end-of-sequence token."""
    max_rationale_tokens: int = Field(default=256, ge=2)
    """Most tokens of a rationale with its end-of-sequence token."""
    max_dev_rows: int | None = Field(default=None, ge=1)
    """Most rows of the dev split; null: all."""
    max_eval_rows: int | None = Field(default=None, ge=1)
    """Most rows of each test split; null: all."""
    scored_splits: Literal["none", "dev", "all"] = "dev"
    """Splits whose rows are answered by the likeliest of their options, where they have some; other answers are
    generated. "dev" lets the best weights be chosen by accuracy at little cost."""
    metric: Literal["exact_match", "equation"] = "exact_match"
    """How a label is compared: as text, or by the value of the arithmetic expression it is."""

    @model_validator(mode="after")
    def _consistent(self) -> RationaleConfig:
        if self.markers == "none" and self.targets == "label_and_rationale":
            raise ValueError("targets 'label_and_rationale' needs markers 'prefix' or 'suffix' to tell the tasks apart")
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
