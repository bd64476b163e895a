"""What all datamodules share: the options of in-context-learning data, example records, loaders and eval batches.

A datamodule says which training items there are, encodes one item, and lists the contexts of an evaluation split. This
file turns that into loaders: training through `StepSampler`, evaluation in batches that depend on the data alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import lightning as L
import torch
from pydantic import Field, model_validator
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from promptcomp.batch import Batch, EncodedContext, collate
from promptcomp.config import Config, ConfigError
from promptcomp.datamodules.rendering import Scoring, SeparatorName, Truncation
from promptcomp.datamodules.sampler import Draw, StepSampler
from promptcomp.datamodules.tasks import TaskKind

Perturbation = Literal["none", "no_labels", "no_inputs", "random_labels", "wrong_labels"]


class LoaderConfig(Config):
    """Options of batching; every data section has them."""

    length_window: int = Field(default=32, ge=1)
    """Batches of a shuffled window that are sorted by length before they are cut; 1 = plain random order."""
    max_batch_tokens: int | None = Field(default=None, ge=1)
    """Form training batches by padded tokens instead of by number of contexts; None = by number."""
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
    separator: SeparatorName = "none"
    """none: nothing (MEND); space and newlines: as MetaICL; arrow: "input => output \\n" (the embedded world)."""
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
    """Seed of everything drawn for evaluation; apart from the run's seed, so that runs are tested on the same prompts."""
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


@dataclass(frozen=True, slots=True)
class ExampleInfo:
    """What evaluation needs to know about one example of a split."""

    number: int
    """Number within the split; `Batch.example` refers to it."""
    task: str
    kind: TaskKind
    seed: int | None
    """Data seed of the task."""
    context: int
    """Number of the shared context within the split; examples with one number belong to one cluster."""
    gold: int
    """Index of the output among the options; 0 for free-form examples, whose only option is their output."""
    options: tuple[str, ...]
    input: str
    output: str


class EvalPart(NamedTuple):
    """Queries `start:stop` of one evaluation context."""

    context: int
    start: int
    stop: int


class EvalContexts:
    """The contexts of an evaluation split, encoded when asked for."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def length(self, context: int) -> int:
        """Tokens of a context (its place in the order of batches)."""

    @abstractmethod
    def targets(self, context: int) -> Sequence[int]:
        """Number of targets of each query of a context."""

    @abstractmethod
    def encode(self, part: EvalPart) -> EncodedContext:
        """A context with some of its queries."""


class _TrainItems(Dataset[EncodedContext]):
    def __init__(self, module: ContextDataModule) -> None:
        self._module = module

    def __getitem__(self, draw: Draw) -> EncodedContext:
        return self._module.train_context(draw)


class _EvalItems(Dataset[EncodedContext]):
    def __init__(self, contexts: EvalContexts) -> None:
        self._contexts = contexts

    def __getitem__(self, part: EvalPart) -> EncodedContext:
        return self._contexts.encode(part)


class ContextDataModule(L.LightningDataModule):
    """Loaders over contexts with queries. Subclasses give the items; see the module docstring.

    Attributes:
        eval_splits: Splits that `eval_dataloader` and `examples` accept ("dev" and the test splits).
        task_names: Names of the tasks that `Batch.context.task` counts.
    """

    eval_splits: tuple[str, ...]

    def __init__(
        self,
        config: LoaderConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        batch_size: int,
    ) -> None:
        """
        Args:
            config: The batching options.
            tokenizer: Makes ids; its padding id is used for padding (0 where it has none: padding is masked).
            seed: The run's seed; it decides the order and the draws of training, not of evaluation.
            batch_size: Contexts of one step (micro-batch) over all processes.
        """
        super().__init__()
        self.loader_config = config
        self.tokenizer = tokenizer
        self.seed = seed
        self.batch_size = batch_size
        pad_id = tokenizer.pad_token_id
        self._collate = partial(collate, pad_id=0 if pad_id is None else pad_id)

    @property
    @abstractmethod
    def task_names(self) -> tuple[str, ...]: ...

    @abstractmethod
    def num_train_items(self) -> int:
        """Items in one epoch."""

    @abstractmethod
    def train_context(self, draw: Draw) -> EncodedContext:
        """The training item of a draw, a pure function of (seed, draw)."""

    @abstractmethod
    def train_lengths(self, draws: Sequence[Draw]) -> Sequence[int]:
        """Tokens of the longest path (context, query, target) of each draw."""

    @abstractmethod
    def eval_contexts(self, split: str, *, null: bool = False) -> EvalContexts:
        """The contexts of an evaluation split; `null` replaces the inputs by "N/A"."""

    @abstractmethod
    def examples(self, split: str) -> Sequence[ExampleInfo]:
        """The examples of an evaluation split; example i is at place i."""

    def train_sampler(
        self, *, rank: int = 0, world_size: int = 1, start_step: int = 0, follow_trainer: bool = False
    ) -> StepSampler:
        """The order of training; `follow_trainer` starts every iteration at the attached trainer's step."""
        config = self.loader_config
        return StepSampler(
            self.num_train_items(),
            self.batch_size,
            self.seed,
            rank=rank,
            world_size=world_size,
            start_step=self._trainer_step if follow_trainer else start_step,
            window=config.length_window,
            lengths_of=self.train_lengths,
            max_tokens=config.max_batch_tokens,
        )

    def _trainer_step(self) -> int:
        assert self.trainer is not None
        return self.trainer.global_step * self.trainer.accumulate_grad_batches

    def train_dataloader(self) -> DataLoader[Batch]:
        """Endless batches for this process, from the trainer's current step on (Lightning's own sampler must be off)."""
        if self.trainer is None:
            sampler = self.train_sampler()
        else:
            sampler = self.train_sampler(
                rank=self.trainer.global_rank, world_size=self.trainer.world_size, follow_trainer=True
            )
        workers = self.loader_config.num_workers
        return DataLoader(
            _TrainItems(self),
            batch_sampler=sampler,
            collate_fn=self._collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of the dev split for this process; without a dev split, no batches."""
        if "dev" not in self.eval_splits:
            return DataLoader(_EvalItems(_NoContexts()), batch_sampler=[], collate_fn=self._collate)
        if self.trainer is None:
            return self.eval_dataloader("dev")
        return self.eval_dataloader("dev", rank=self.trainer.global_rank, world_size=self.trainer.world_size)

    def null_dataloader(self, split: str, *, rank: int = 0, world_size: int = 1) -> DataLoader[Batch]:
        """As `eval_dataloader` with every input replaced by "N/A" (for PMI calibration); the same example numbers."""
        return self.eval_dataloader(split, rank=rank, world_size=world_size, null=True)

    def eval_dataloader(
        self, split: str, *, rank: int = 0, world_size: int = 1, null: bool = False
    ) -> DataLoader[Batch]:
        """Batches with every option of every query of a split, long contexts first; always the same batches.

        With several processes each gets every `world_size`-th batch, and all get the same number of batches.

        Raises:
            ConfigError: the split is unknown, or has fewer queries than there are processes.
        """
        if split not in self.eval_splits:
            raise ConfigError(f"split {split!r} is unknown; this data has {', '.join(self.eval_splits) or 'none'}")
        contexts = self.eval_contexts(split, null=null)
        config = self.loader_config
        batches = eval_batches(contexts, config.eval_batch_contexts, config.eval_batch_targets, world_size)
        return DataLoader(_EvalItems(contexts), batch_sampler=batches[rank::world_size], collate_fn=self._collate)


class _NoContexts(EvalContexts):
    def __len__(self) -> int:
        return 0


def eval_batches(
    contexts: EvalContexts, max_contexts: int, max_targets: int, world_size: int = 1
) -> list[list[EvalPart]]:
    """Cut a split into batches of at most `max_contexts` contexts and about `max_targets` targets.

    The number of batches is a multiple of `world_size` (sharded models need every process to run as often as the
    others), which is reached by halving the largest batches.

    Raises:
        ConfigError: there are fewer queries than processes.
    """
    batches: list[list[EvalPart]] = []
    current: list[EvalPart] = []
    targets = 0
    for part, size in _parts(contexts, max_targets):
        if current and (len(current) == max_contexts or targets + size > max_targets):
            batches.append(current)
            current, targets = [], 0
        current.append(part)
        targets += size
    if current:
        batches.append(current)
    while len(batches) % world_size:
        batches.sort(key=_num_queries, reverse=True)  # stable, so the same on every process
        if _num_queries(batches[0]) < 2:
            raise ConfigError(f"{len(batches)} evaluation queries are too few for {world_size} processes")
        batches.extend(_halves(batches.pop(0)))
    return batches


def _parts(contexts: EvalContexts, max_targets: int) -> Iterator[tuple[EvalPart, int]]:
    """Parts of contexts with at most `max_targets` targets (but at least one query), long contexts first."""
    for context in sorted(range(len(contexts)), key=lambda i: (-contexts.length(i), i)):
        start, size = 0, 0
        counts = contexts.targets(context)
        for query, count in enumerate(counts):
            if query > start and size + count > max_targets:
                yield EvalPart(context, start, query), size
                start, size = query, 0
            size += count
        yield EvalPart(context, start, len(counts)), size


def _num_queries(batch: Sequence[EvalPart]) -> int:
    return sum(part.stop - part.start for part in batch)


def _halves(batch: Sequence[EvalPart]) -> tuple[list[EvalPart], list[EvalPart]]:
    if len(batch) > 1:
        return list(batch[: len(batch) // 2]), list(batch[len(batch) // 2 :])
    context, start, stop = batch[0]
    middle = (start + stop) // 2
    return [EvalPart(context, start, middle)], [EvalPart(context, middle, stop)]
