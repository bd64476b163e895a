"""The base of all datamodules: example records and loaders.

A datamodule says which training items there are, encodes one item, and lists the contexts of an evaluation split. This
file turns that into loaders: training through `StepSampler`, evaluation in batches that depend on the data alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from promptcomp.batch import Batch, EncodedContext, EncodedQuery, collate
from promptcomp.config import ConfigError
from promptcomp.datamodules.sampler import Draw, EvalContexts, EvalPart, StepSampler, eval_batches
from promptcomp.datamodules.sections import DataConfig, Reader, check_split, tested
from promptcomp.datamodules.sources.records import Found, Problem, collecting, has_errors
from promptcomp.datamodules.tasks import Source
from promptcomp.datamodules.tokens import TokenCache
from promptcomp.evaluation.formatting import many
from promptcomp.evaluation.predictions import ExampleInfo, MetricName
from promptcomp.language_model import text_of
from promptcomp.language_model.blending import Blend

Trims = bool | Literal["left", "right"]
_LOOKED_AT = 32  # items of a split that are looked at for unknown tokens
_COUNTED = 2000  # contexts of a split that are written to count tokens


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """The format of queries that a user types after a compressed prompt; the file of the prompt holds it too."""

    query: str
    """Template of a query, with `{input}` where its text goes."""
    empty_query: str
    """What stands for a query without text."""
    stop_ids: tuple[int, ...]
    """Tokens that end an answer."""
    trims: Trims = False
    """Whether a query's text loses the white space around it, or on which side."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What one split holds."""

    split: str
    rows: int | None
    """None: they are generated and have no number."""
    tasks: int
    """Tasks; sources of instruction rows."""
    contexts: int
    """Different contexts; in training the items of an epoch."""
    shown: int | None = None
    """Demonstrations in all contexts; None: contexts are drawn anew, or hold no demonstrations."""
    asked: int | None = None
    """Queries of all contexts."""
    tokens: tuple[int, int] | None = None
    """Tokens of the contexts that were looked at with their queries and right answers, and how many those were."""

    def __str__(self) -> str:
        parts = [] if self.rows is None else [many(self.rows, "row")]
        parts += [many(self.tasks, "task"), many(self.contexts, "context")]
        parts += [] if self.shown is None else [f"{many(self.shown, 'demonstration')} shown"]
        parts += [] if self.asked is None else [f"{self.asked:,} {'query' if self.asked == 1 else 'queries'} asked"]
        if self.tokens is not None:
            tokens, contexts = self.tokens
            of = "" if contexts == self.contexts else f" in the first {contexts:,} contexts"
            parts.append(f"{many(tokens, 'token')}{of}")
        return f"{self.split}: {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Shown:
    """Where a context that is shown comes from, and how it was cut."""

    task: str
    seed: int | None = None
    borders: Sequence[int] | None = None
    """Number of its tokens after each demonstration; None: it is one piece."""
    dropped: int = 0
    """Demonstrations that did not fit the budget."""
    cut_tokens: int = 0
    """Tokens cut from demonstrations by the per-example cap and the budget."""


class _Items(Dataset[EncodedContext]):
    def __init__(self, encode: Callable[[Any], EncodedContext]) -> None:
        self._encode = encode

    def __getitem__(self, item: Draw | EvalPart) -> EncodedContext:
        return self._encode(item)


class StepLoader:
    """Micro-batches of a loader; the first one of every optimiser step carries the others of the step.

    A loss that is a mean over the tokens of the whole step needs their number before the first backward pass.
    """

    def __init__(self, batches: Iterable[Batch], micro_batches: int) -> None:
        self._batches = batches
        self._micro_batches = micro_batches

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._batches)
        for first in batches:
            others = tuple(next(batches) for _ in range(self._micro_batches - 1))
            yield replace(first, siblings=others)
            yield from others


class ContextDataModule(L.LightningDataModule):
    """Loaders over contexts with queries. Subclasses give the items; see the module docstring.

    Attributes:
        eval_splits: Splits that `eval_dataloader` and `examples` accept ("dev" and the test splits).
    """

    config: DataConfig
    answers_are_generated: ClassVar[bool] = False
    """Whether evaluation generates answers by default (instructions), or only scores."""

    def __init__(self, config: DataConfig, source: Source, reader: Reader) -> None:
        """
        Args:
            config: The section.
            source: Lists the rows.
            reader: The LM's tokenizer (without a padding token 0 pads: padding is masked), and how it reads. Its seed
                decides the order and the draws of training, not of evaluation.
        """
        super().__init__()
        self.config, self.source = config, source
        self.eval_splits = config.eval_splits(source.splits)
        self.tokenizer = reader.tokenizer
        self.seed = reader.seed
        self.batch_size = reader.batch_size
        self.cache = TokenCache(reader.tokenizer)
        end = reader.tokenizer.eos_token_id
        self.end_ids: tuple[int, ...] = () if end is None else (end,)
        """The tokenizer's end-of-sequence token, if it has one."""

    @property
    def data_name(self) -> str:
        """Name of the data section."""
        return str(getattr(self.config, "name", type(self.config).__name__))

    @property
    def headline(self) -> MetricName:
        """The metric that results of this data are summed up by: as configured, or the loss."""
        found: MetricName = getattr(self.config, "metric", "loss")
        return found

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks that `Batch.context.task` counts; unless overridden, all rows belong to one."""
        return (self.data_name,)

    def draw_blend(self, seed: int) -> Blend | None:
        """Which words are mixed in the training step of this seed; None: none. Sources that mix any have a method of
        this name."""
        draw = getattr(self.source, "draw_blend", None)
        return None if draw is None else draw(self.tokenizer, seed)

    @abstractmethod
    def num_train_items(self) -> int:
        """Items in one epoch."""

    @abstractmethod
    def train_context(self, draw: Draw) -> EncodedContext:
        """The training item of a draw, a pure function of (seed, draw)."""

    @abstractmethod
    def train_texts(self, draw: Draw) -> Iterable[str]:
        """Everything of a draw that is tokenised; the texts of many draws are tokenised in one call."""

    def train_lengths(self, draws: Sequence[Draw]) -> Sequence[int]:
        """Tokens of each draw: its context, and its queries with their targets padded to the longest."""
        self.cache.add(text for draw in draws for text in self.train_texts(draw))
        asks = self.config.asks  # the order of training decides what is asked, and must not depend on answers
        target = None if asks is None else asks.max_new_tokens
        return [_padded_tokens(self.train_context(draw), target) for draw in draws]

    def with_targets(self, split: str, context: EncodedContext) -> EncodedContext:
        """An encoded context as loaders give it: with other targets where they are not those of the rows."""
        return context

    @abstractmethod
    def eval_contexts(self, split: str) -> EvalContexts:
        """The contexts of an evaluation split."""

    @abstractmethod
    def examples(self, split: str) -> Sequence[ExampleInfo]:
        """The examples of an evaluation split; example i is at place i."""

    @abstractmethod
    def prompt_format(self) -> PromptFormat:
        """The format of queries after a compressed prompt."""

    def context_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a prompt (an instruction, demonstrations) given as text, as training would have written it."""
        return tuple(self.cache(text))

    def check(self, found: Found = None) -> None:
        """Read all of the data and find what is wrong with it: the one check of `fit`, its dry run and `data validate`.

        Args:
            found: Collects errors and warnings; None: the first error is raised.

        Raises:
            ConfigError: something is wrong (what is not collected).
        """
        self.source.check(found)
        if not has_errors(found):
            self.check_rows(found)
        if found is not None and not has_errors(found):
            found += [Problem("data", None, text, "warning") for text in self.unknown()]

    @abstractmethod
    def check_rows(self, found: Found) -> None:
        """Find what is wrong with good rows for this LM, or with all of them together; see `check`."""

    def problems(self) -> list[Problem]:
        """Everything that is wrong or odd, in the order of the files; see `check`."""
        found: list[Problem] = []
        with collecting(found):
            self.check(found)
        return found

    @abstractmethod
    def count(self, split: str) -> Counts:
        """How much a split holds, without its tokens."""

    @property
    def test_splits(self) -> tuple[str, ...]:
        """Splits that are evaluated after training: all but dev, or dev where there is no other."""
        return tested(self.eval_splits)

    def all_counts(self, *, with_tokens: bool = False) -> list[Counts]:
        """How much every split holds; `with_tokens` writes its contexts (the first `_COUNTED` of them)."""
        splits = (*(["train"] if self.num_train_items() else []), *self.eval_splits)
        found = [self.count(split) for split in splits]
        return [replace(each, tokens=self._tokens(each.split)) for each in found] if with_tokens else found

    def _tokens(self, split: str) -> tuple[int, int]:
        """Tokens of the first contexts of a split with the right answers, and how many were looked at."""
        gold: Sequence[int] | None = None
        if split == "train":
            looked_at = min(self.num_train_items(), _COUNTED)
            encoded = (self.train_context(Draw(number, number)) for number in range(looked_at))
        else:
            contexts, gold = self.eval_contexts(split), [example.gold for example in self.examples(split)]
            looked_at = min(len(contexts), _COUNTED)
            encoded = (contexts.whole(number) for number in range(looked_at))
        return sum(_tokens(each, gold) for each in encoded), looked_at

    def shown(self, split: str, item: Draw | int, context: EncodedContext, query: EncodedQuery) -> Shown:
        """What `data show` says of a query beside its tokens; `item`: a draw of training, or the context's number."""
        return Shown(dict(enumerate(self.task_names)).get(context.task, ""))

    def notes(self) -> list[str]:
        """Notes on the training data, such as rows that are left out or cut."""
        return []

    def unknown(self) -> list[str]:
        """A sentence for every split of which the LM's tokenizer does not know many tokens or cannot write answers."""
        items, texts, said = self.num_train_items(), dict[str, list[str]](), dict[str, str | None]()
        if items:
            draws = range(0, items, max(1, items // _LOOKED_AT))
            texts["train"] = [text for i in draws for text in self.train_texts(Draw(i, i))]
        for split in self.eval_splits:
            examples = self.examples(split)
            some = [examples[i] for i in range(0, len(examples), max(1, len(examples) // _LOOKED_AT))]
            texts[split] = [text for each in some for text in (each.instruction, each.input, each.output)]
            if self.answers_are_generated:
                said[split] = self.cache.rewritten([each.output for each in some if len(each.options) < 2])
        found = ((split, self.cache.unknown(read) or said.get(split)) for split, read in texts.items())
        return [f"{split}: {sentence}" for split, sentence in found if sentence]

    def answer_of(self, text: str) -> str:
        """The answer in a generated text (where something else may stand around it)."""
        return text.strip()

    def written(self, ids: Sequence[int]) -> str:
        """The answer in generated tokens."""
        return self.answer_of(text_of(self.tokenizer, ids))

    def train_sampler(
        self,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_step: int | Callable[[], int] = 0,
        micro_batches: int = 1,
    ) -> StepSampler:
        """The order of training; see `StepSampler`."""
        config = self.config
        return StepSampler(
            self.num_train_items(),
            self.batch_size * micro_batches,
            self.seed,
            rank=rank,
            world_size=world_size,
            start_step=start_step,
            window=config.length_window,
            lengths_of=self.train_lengths,
            max_tokens=config.max_batch_tokens,
            micro_batches=micro_batches,
        )

    @property
    def _process(self) -> dict[str, int]:
        """Rank and number of processes of the attached trainer."""
        trainer = self.trainer
        return {} if trainer is None else {"rank": trainer.global_rank, "world_size": trainer.world_size}

    def train_dataloader(self) -> DataLoader[EncodedContext] | StepLoader:
        """Endless batches for this process, from the trainer's current step on.

        The trainer needs `use_distributed_sampler=False`: the sampler divides the work itself.
        """
        trainer, workers = self.trainer, self.config.num_workers
        micro_batches = 1 if trainer is None else trainer.accumulate_grad_batches
        start: int | Callable[[], int] = 0 if trainer is None else lambda: trainer.global_step
        sampler = self.train_sampler(**self._process, start_step=start, micro_batches=micro_batches)
        loader = DataLoader(
            _Items(lambda draw: self.with_targets("train", self.train_context(draw))),
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers else None,  # workers share the rows and the token cache
            pin_memory=torch.cuda.is_available(),
        )
        return loader if micro_batches == 1 else StepLoader(loader, micro_batches)

    def has_options(self, split: str) -> bool:
        """Whether a split has examples to choose an option in; without any, there is a loss and no accuracy."""
        return any(len(example.options) > 1 for example in self.examples(split))

    def val_dataloader(self) -> DataLoader[EncodedContext]:
        """Batches of the dev split for this process.

        Raises:
            ConfigError: there is no dev split (the trainer then needs `limit_val_batches=0`).
        """
        return self.eval_dataloader("dev", **self._process)

    def null_dataloader(self, split: str) -> DataLoader[EncodedContext]:
        """As `eval_dataloader` with every input replaced by "N/A" (for PMI calibration); the same example numbers.

        Raises:
            ConfigError: the examples have no options.
        """
        raise ConfigError(f"calibration 'pmi' needs examples with options; data {self.data_name!r} has none")

    def eval_dataloader(self, split: str, *, rank: int = 0, world_size: int = 1) -> DataLoader[EncodedContext]:
        """Batches with every option of every query of a split, long contexts first; always the same batches.

        With several processes each gets every `world_size`-th batch, and all get the same number of batches.

        Raises:
            ConfigError: the split is unknown, or has fewer queries than there are processes.
        """
        check_split(split, self.eval_splits)
        found = self.eval_contexts(split)
        encode = found.encode
        asked = replace(found, encode=lambda part: self.with_targets(split, encode(part)))
        return self.contexts_dataloader(asked, rank=rank, world_size=world_size)

    def contexts_dataloader(
        self, contexts: EvalContexts, *, rank: int = 0, world_size: int = 1
    ) -> DataLoader[EncodedContext]:
        """Batches of evaluation contexts, long ones first; see `eval_dataloader`.

        Raises:
            ConfigError: there are fewer queries than processes.
        """
        config = self.config
        batches = eval_batches(contexts, config.eval_batch_contexts, config.eval_batch_targets, world_size)
        return DataLoader(_Items(contexts.encode), batch_sampler=batches[rank::world_size], collate_fn=collate)


def _tokens(context: EncodedContext, gold: Sequence[int] | None) -> int:
    """Tokens of a context with its queries and their right answers; `gold`: the right option of each example."""
    found = len(context.ids)
    for query in context.queries:
        for target in query.targets:
            if gold is None or target.choice == gold[query.example]:
                found += len(target.ids) + len(query.ids)
    return found


def _padded_tokens(context: EncodedContext, target: int | None) -> int:
    """`target`: tokens of each target, instead of its own."""
    own = (len(query.targets[0].ids) if target is None else target for query in context.queries)
    longest = max(len(query.ids) + length for query, length in zip(context.queries, own, strict=True))
    return len(context.ids) + len(context.queries) * longest
