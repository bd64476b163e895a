"""Options of instruction data, whatever its source."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field

from promptcomp.config import Config, ConfigError
from promptcomp.datamodules.icl_config import LoaderConfig
from promptcomp.datamodules.templates import CustomTemplate, TemplateName


class Limits(Config):
    """Budgets of one split where they differ from those of the others; null = the same."""

    max_context_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of an instruction with what its template writes."""
    max_query_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of an input with what its template writes."""
    max_target_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of an output with its end."""


class InstructionConfig(LoaderConfig):
    """Options of instruction data, whatever its source."""

    template: TemplateName | CustomTemplate = "alpaca_gist"
    """alpaca_gist: "Instruction: ..." and then "Input: ... Output:"; chat: the tokenizer's chat template; plain: lines
    without words of their own; or your own {context, query, empty_query, output}."""
    template_date: date | None = None
    """The day that a chat template writes where it writes one (Llama 3 does); null = the day of the run."""
    max_context_tokens: int = Field(default=256, ge=1)
    """Most tokens of an instruction with what its template writes; gist tokens come on top and are never cut."""
    max_query_tokens: int = Field(default=256, ge=1)
    """Most tokens of an input with what its template writes."""
    max_target_tokens: int = Field(default=256, ge=1)
    """Most tokens of an output with the token that ends it."""
    split_limits: dict[str, Limits] = {}
    """Other budgets for some splits, for example {human: {max_context_tokens: 384}}."""
    too_long: Literal["cut", "skip", "error"] = "cut"
    """A row over a budget: cut its text on the right (an output then has no end token), skip the row, or stop. How
    many there are is always said."""
    queries_per_context: int = Field(default=1, ge=1)
    """Most training rows of one instruction that share its compression."""
    eval_queries_per_context: int | None = Field(default=None, ge=1)
    """Most evaluation rows of one instruction that share its compression; null = all."""
    max_dev_examples: int | None = Field(default=None, ge=1)
    """Most rows of the dev split, chosen at random by eval_seed; null = all."""
    max_eval_examples: int | None = Field(default=None, ge=1)
    """Most rows of each test split, chosen at random by eval_seed; null = all."""
    metric: Literal["exact_match", "rougeL", "loss"] = "rougeL"
    """What results are summed up by: exact_match or rougeL of generated answers, or the loss of the right answer."""
    eval_seed: int = Field(default=0, ge=0)
    """Seed of that choice; not the run's seed: all runs are tested on the same rows."""
    allow_empty_instruction: bool = False
    """Take rows whose instruction is empty or blank; otherwise they are errors."""

    def limits(self, split: str) -> tuple[int, int, int]:
        """Budgets of a split for context, query and target, in tokens."""
        own = self.split_limits.get(split, Limits())
        return (
            own.max_context_tokens or self.max_context_tokens,
            own.max_query_tokens or self.max_query_tokens,
            own.max_target_tokens or self.max_target_tokens,
        )

    def check_window(self, splits: tuple[str, ...], window: int | None) -> None:
        """Check the budgets against the LM's window [positions].

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
