"""Sections of in-context-learning data: their options, and MetaICL's folders, one dataset, your own tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from promptcomp.config import ConfigError
from promptcomp.datamodules.sections import DEFAULT_WINDOW, ChosenTasks, Lengths
from promptcomp.datamodules.sources.rows import Columns
from promptcomp.evaluation.formatting import many

SeparatorName = Literal["none", "space", "newlines", "arrow"]
Scoring = Literal["direct", "channel"]
Truncation = Literal["whole_demonstrations", "reference", "left"]
Perturbation = Literal["none", "no_labels", "no_inputs", "random_labels", "wrong_labels"]


class ICLConfig(ChosenTasks):
    """Options of in-context-learning data, whatever its source."""

    module_class: ClassVar[str] = "promptcomp.datamodules.icl:ICLDataModule"

    num_demonstrations: int = Field(default=16, ge=0)
    """Demonstrations in a context."""
    sampling: Literal["fixed", "fresh"] = "fresh"
    """fixed: one list for each task and data seed (MetaICL); fresh: drawn anew for every context (MEND)."""
    order: Literal["shuffled", "as_given", "reversed"] = "shuffled"
    """Order of the demonstrations. shuffled: random; as_given: as in the file; reversed: the file's order backwards."""
    balance: Literal["examples", "tasks"] = "examples"
    """What a training epoch visits once. examples: every example, so large tasks weigh more (MEND); tasks: every
    task."""
    separator: SeparatorName = "arrow"
    """arrow: "input => output \\n", in every vocabulary; space and newlines: as MetaICL (T5 has no newline); none:
    nothing between input, output and the next example (MEND)."""
    output_space: bool = True
    """A space before outputs, where no separator ends in white space already (needed by byte-level vocabularies)."""
    max_example_tokens: int = Field(default=256, ge=4)
    """Maximum number of tokens of one input with its output; the input is cut on the right."""
    max_context_tokens: int | None = Field(default=None, ge=0)
    """Maximum number of tokens of all demonstrations; null: what the LM's window leaves."""
    teacher_max_context_tokens: int | None = Field(default=None, ge=0)
    """A separate budget for the teacher, as in MEND's release; null: the teacher reads the same tokens."""
    truncation: Truncation = "whole_demonstrations"
    """What is done over the budget. whole_demonstrations: keep those in front of the first that does not fit;
    reference: cut the input of that one as well (MEND); left: keep the last tokens (MetaICL)."""
    perturbation: Perturbation = "none"
    """What is changed in the demonstrations, to test what a method reads in them. none: nothing; no_labels: inputs
    alone; no_inputs: outputs alone; random_labels: outputs drawn at random; wrong_labels: outputs that are wrong."""
    scoring: Scoring = "direct"
    """direct: P(output | demonstrations, input); channel: P(input | demonstrations, output)."""
    calibration: Literal["none", "pmi"] = "none"
    """What scores of options are corrected by. none: nothing; pmi: the score under the input "N/A" (direct scoring
    only)."""
    queries_per_context: int = Field(default=1, ge=1)
    """Training queries that share one context; 1 = MEND."""
    eval_queries_per_context: int | None = Field(default=None, ge=1)
    """Evaluation queries that share one context; null: all of a task and data seed; 1 with fresh sampling = MEND."""
    eval_seed: int = Field(default=0, ge=0)
    """Seed of everything drawn for evaluation; not the run's seed: all runs are tested on the same prompts."""
    metric: Literal["accuracy", "task"] = "task"
    """task: macro-F1 for classification, accuracy otherwise, mean over data seeds and then tasks; accuracy: of all."""
    max_dev_tasks: int | None = Field(default=None, ge=1)
    """Maximum number of tasks of the dev split; null: all."""
    max_dev_queries: int | None = Field(default=16, ge=1)
    """Maximum number of queries of each task (and data seed) of the dev split; null: all."""
    max_eval_tasks: int | None = Field(default=None, ge=1)
    """Maximum number of tasks of each test split; null: all."""
    max_eval_queries: int | None = Field(default=None, ge=1)
    """Maximum number of queries of each task and data seed of the test splits; null: all."""

    context_kind: ClassVar[Literal["demonstrations", "prompt"]] = "demonstrations"
    split_words: ClassVar[Mapping[str, str]] = {
        "dev": "tasks by which a training chooses its weights",
        "test": "tasks that training never sees",
    }
    lenient: ClassVar[bool] = False
    """Whether a multi-choice row whose options are the same to the model is worth a warning only, and a row without a
    token to ask or to score is taken: published tasks have such rows, and their figures are of all rows."""

    @model_validator(mode="after")
    def _consistent(self) -> ICLConfig:
        if self.calibration == "pmi" and self.scoring == "channel":
            raise ValueError("calibration 'pmi' replaces the input and so needs scoring 'direct'")
        if self.targets == "teacher" and (self.scoring, self.calibration) != ("direct", "none"):
            raise ValueError(
                "targets 'teacher' are answers to inputs: they need scoring 'direct' and calibration 'none'"
            )
        for name in ("max_context_tokens", "teacher_max_context_tokens"):
            budget = getattr(self, name)
            needs_one = self.num_demonstrations > 0 and self.truncation == "whole_demonstrations"
            if budget is not None and needs_one and budget < self.max_example_tokens:
                raise ValueError(
                    f"{name} {budget} is less than max_example_tokens {self.max_example_tokens}, so a long first "
                    "demonstration would leave the context empty; lower max_example_tokens"
                )
        return self

    @property
    def context_words(self) -> str:
        """See DataConfig."""
        return many(self.num_demonstrations, "demonstration")

    def budget(self, window: int | None) -> int | None:
        """Maximum number of tokens of a context, given the LM's window [positions].

        Raises:
            ConfigError: a context with a query and its target may not fit the window.
        """
        if window is None:
            return self.max_context_tokens
        room = window - self.max_example_tokens - 1  # one position for a BOS token
        for name in ("max_context_tokens", "teacher_max_context_tokens"):
            budget = getattr(self, name)
            if budget is not None and budget > room:
                raise ConfigError(
                    f"data.{name} = {budget}: with an example of {self.max_example_tokens} tokens "
                    f"(data.max_example_tokens) it exceeds the LM's window of {window}; use at most {max(room, 0)}"
                )
        if room < self.max_example_tokens and self.num_demonstrations:
            raise ConfigError(
                f"data.max_example_tokens = {self.max_example_tokens} leaves {max(room, 0)} tokens for demonstrations "
                f"in the LM's window of {window}; use at most {(window - 1) // 2}"
            )
        return room if self.max_context_tokens is None else self.max_context_tokens

    def lengths(self, window: int | None) -> Lengths:
        """Demonstrations of full length, as many as fit."""
        example = self.max_example_tokens
        room = DEFAULT_WINDOW if window is None else window - example - 1
        most = room if self.max_context_tokens is None else self.max_context_tokens
        return Lengths(min(most, self.num_demonstrations * example), example, example)

    @property
    def training_queries(self) -> int:
        """As configured."""
        return self.queries_per_context

    @property
    def is_calibrated(self) -> bool:
        """As configured."""
        return self.calibration == "pmi"

    @property
    def why_no_answers(self) -> str:
        """A channel query holds the answer."""
        return "needs data.scoring=direct: a channel query holds the answer" if self.scoring == "channel" else ""


class PublishedTasks(ICLConfig):
    """Tasks that were published in a training and a test part."""

    lenient: ClassVar[bool] = True

    dev: Literal["train_tasks", "target_dev", "none"] = "train_tasks"
    """Where checkpoints are selected. train_tasks: on a held-out share of the training tasks; target_dev: on the dev
    rows of the test tasks (as the original does; it sees the test tasks before the end); none: nowhere."""
    dev_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training tasks that is held out with dev "train_tasks"."""


class MetaICLData(PublishedTasks):
    """Tasks in MetaICL's folder layout."""

    source_class: ClassVar[str] = "promptcomp.datamodules.sources.metaicl_folder:MetaICLSource"
    name: Literal["metaicl"] = "metaicl"
    folder: Path
    """Folder that holds `data/` and `config/`."""
    partition: str
    """Name of a file in `config/` (without .json): which tasks to train and to test on."""
    seeds: tuple[int, ...] = Field(default=(100, 13, 21, 42, 87), min_length=1)
    """Data seeds of the test tasks' demonstrations."""
    train_k: int = Field(default=16384, ge=1)
    """The <k> in the names of the training tasks' files."""
    train_seed: int = 100
    """The <seed> in the names of the training tasks' files."""
    test_k: int = Field(default=16, ge=1)
    """The <k> in the names of the test tasks' files."""
    dev_seed: int = 100
    """Data seed of the dev rows with dev "target_dev"."""

    @model_validator(mode="after")
    def _seeds_differ(self) -> MetaICLData:
        if twice := [seed for seed in self.seeds if self.seeds.count(seed) > 1]:
            raise ValueError(f"seeds: {twice[0]} occurs twice, so its examples would count twice; leave one out")
        return self


class HFData(PublishedTasks):
    """One dataset of the Hugging Face hub (or local, for `datasets`) with the rows of all tasks."""

    source_class: ClassVar[str] = "promptcomp.datamodules.sources.task_tables:HFSource"
    name: Literal["hf_icl"] = "hf_icl"
    path: str
    """Name on the hub, or a local folder (MEND's: bigheiniuJ/EvalMetaICLAll)."""
    config: str | None = None
    """Configuration of the dataset, if it has several."""
    train_split: str = "meta_train"
    """Split with the training tasks."""
    test_split: str = "meta_eval_100shot"
    """Split with the test tasks' demonstrations (split "train") and queries (split "test", "dev")."""
    partition: Path | None = None
    """MetaICL partition file {"train": [task, ...], "test": [...]}; null: all tasks of both splits."""
    seeds: tuple[int, ...] | None = None
    """Data seeds to test with; null: all."""
    columns: Columns = Columns()
    """Names of the columns."""

    @model_validator(mode="after")
    def _columns_are_named(self) -> HFData:
        if self.columns.task is None or self.columns.split is None:
            raise ValueError("columns.task and columns.split must be named: one dataset holds all tasks")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train", "dev" unless it is off, and "test"."""
        return ("train", "test") if self.dev == "none" else ("train", "dev", "test")


class TableData(ICLConfig):
    """Your own examples in JSONL, JSON, CSV, TSV or Parquet files."""

    source_class: ClassVar[str] = "promptcomp.datamodules.sources.task_tables:TableSource"
    name: Literal["table_icl"] = "table_icl"
    train: tuple[Path, ...] = ()
    """Files with the training tasks."""
    test: tuple[Path, ...] = Field(min_length=1)
    """Files with the tasks to test on."""
    dev: tuple[Path, ...] = ()
    """Files with the tasks to select checkpoints on; none: a held-out share of the training tasks (dev_share)."""
    demonstrations: tuple[Path, ...] = ()
    """Files with demonstrations for the dev and test tasks, whose own rows with split "train" are then left out; none:
    a task's rows with split "train", or else its other rows."""
    dev_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training tasks that is held out when `dev` is empty; 0 = no dev split."""
    columns: Columns = Columns()
    """Names of the columns."""
    options_from_outputs: bool = False
    """Give a task without options the list of its distinct outputs."""

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train" and "dev" where there are any, and "test"."""
        has_dev = bool(self.dev) or (bool(self.train) and self.dev_share > 0)
        return (*(["train"] if self.train else []), *(["dev"] if has_dev else []), "test")
