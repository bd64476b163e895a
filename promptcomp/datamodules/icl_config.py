"""Options that data sections share."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from promptcomp.config import Config
from promptcomp.datamodules.rendering import Scoring, SeparatorName, Truncation

Perturbation = Literal["none", "no_labels", "no_inputs", "random_labels", "wrong_labels"]


class LoaderConfig(Config):
    """Options of batching; every data section has them."""

    length_window: int = Field(default=32, ge=1)
    """Batches of a shuffled window that are sorted by length before they are cut; 1 = plain random order."""
    max_batch_tokens: int | None = Field(default=None, ge=1)
    """Form training batches by padded tokens (contexts, queries, targets) instead of by number of contexts."""
    eval_batch_contexts: int = Field(default=16, ge=1)
    """Most contexts in one evaluation batch."""
    eval_batch_targets: int = Field(default=128, ge=1)
    """Most targets (queries times options) in one evaluation batch; large tasks are split into several batches."""
    num_workers: int = Field(default=0, ge=0)
    """Processes that prepare batches beside the training process; 0 = none."""


class ICLConfig(LoaderConfig):
    """Options of in-context-learning data, whatever its source."""

    num_demonstrations: int = Field(default=16, ge=0)
    """Demonstrations in a context."""
    sampling: Literal["fixed", "fresh"] = "fresh"
    """fixed: one list for each task and data seed (MetaICL); fresh: drawn anew for every context (MEND)."""
    order: Literal["shuffled", "as_given", "reversed"] = "shuffled"
    """Order of the demonstrations: random, as in the file, or the file's order backwards."""
    balance: Literal["examples", "tasks"] = "examples"
    """A training epoch visits every example once (large tasks weigh more; MEND), or every task once."""
    separator: SeparatorName = "arrow"
    """arrow: "input => output \\n", in every vocabulary; space and newlines: as MetaICL (T5 has no newline); none:
    nothing between input, output and the next example (MEND)."""
    output_space: bool = True
    """A space in front of outputs, where no separator already ends in white space (byte-level vocabularies)."""
    max_example_tokens: int = Field(default=256, ge=4)
    """Most tokens of one input with its output; the input is cut on the right."""
    max_context_tokens: int | None = Field(default=None, ge=0)
    """Most tokens of all demonstrations; None = what the LM's window leaves."""
    teacher_max_context_tokens: int | None = Field(default=None, ge=0)
    """The teacher's own budget, as in MEND's release; None = the teacher reads the very same tokens."""
    truncation: Truncation = "whole_demonstrations"
    """Over the budget: whole_demonstrations keeps those that fit; reference cuts the input of the next one too (MEND);
    left keeps the last tokens (MetaICL)."""
    perturbation: Perturbation = "none"
    """Damage to the demonstrations, to ask what a method reads in them."""
    scoring: Scoring = "direct"
    """direct: P(output | demonstrations, input); channel: P(input | demonstrations, output)."""
    calibration: Literal["none", "pmi"] = "none"
    """pmi: subtract the score under the input "N/A" (direct scoring only)."""
    queries_per_context: int = Field(default=1, ge=1)
    """Training queries that share one context; 1 = MEND."""
    eval_queries_per_context: int | None = Field(default=None, ge=1)
    """Evaluation queries that share one context; None = all of a task and data seed; 1 with fresh sampling = MEND."""
    eval_seed: int = Field(default=0, ge=0)
    """Seed of everything drawn for evaluation; not the run's seed: all runs are tested on the same prompts."""
    metric: Literal["accuracy", "task"] = "task"
    """task: macro-F1 for classification, accuracy otherwise, mean over data seeds and then tasks; accuracy: of all."""
    max_dev_tasks: int | None = Field(default=None, ge=1)
    """Most tasks of the dev split; None = all."""
    max_dev_queries: int | None = Field(default=16, ge=1)
    """Most queries of each task (and data seed) of the dev split; None = all."""
    max_eval_tasks: int | None = Field(default=None, ge=1)
    """Most tasks of each test split; None = all."""
    max_eval_queries: int | None = Field(default=None, ge=1)
    """Most queries of each task and data seed of the test splits; None = all."""

    lenient: ClassVar[bool] = False
    """Whether a multi-choice row whose options are the same to the model is worth a warning only: published tasks have
    such rows, and their figures are of all rows."""

    @model_validator(mode="after")
    def _consistent(self) -> ICLConfig:
        if self.calibration == "pmi" and self.scoring == "channel":
            raise ValueError("calibration 'pmi' replaces the input and so needs scoring 'direct'")
        for name in ("max_context_tokens", "teacher_max_context_tokens"):
            budget = getattr(self, name)
            needs_one = self.num_demonstrations > 0 and self.truncation == "whole_demonstrations"
            if budget is not None and needs_one and budget < self.max_example_tokens:
                raise ValueError(
                    f"{name} {budget} is less than max_example_tokens {self.max_example_tokens}, so a long first "
                    "demonstration would leave the context empty; lower max_example_tokens"
                )
        return self
