"""Examples with a teacher's rationales: the two tasks of Distilling Step-by-Step (Hsieh et al. 2023, arXiv 2305.02301).

A training example is one context with a query for each task (`EncodedTarget.role` says which), an evaluation example
one with the label task alone. How rows are written is decided in writing.py, which rows are used in
row_selection.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from promptcomp.batch import ANSWER, RATIONALE, EncodedContext
from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import ContextDataModule, Counts, ExampleInfo, PromptFormat
from promptcomp.datamodules.rationale.rationale_config import RationaleConfig
from promptcomp.datamodules.rationale.row_selection import Account, TrainRow, split_rows, train_rows
from promptcomp.datamodules.rationale.writing import Writer
from promptcomp.datamodules.sampler import Draw, EvalContexts, EvalPart
from promptcomp.datamodules.sources.records import Found, Problem, collecting, has_errors, tell
from promptcomp.datamodules.tasks import RationaleRow, RationaleSource, TaskKind
from promptcomp.datamodules.tokens import same_options
from promptcomp.evaluation.predictions import MetricName


class RationaleDataModule(ContextDataModule):
    """Examples as contexts with a label query and a rationale query."""

    answers_are_generated = True

    def __init__(
        self,
        config: RationaleConfig,
        source: RationaleSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        batch_size: int,
        window: int | None = None,
        query_in_encoder: bool = False,
    ) -> None:
        """
        Args:
            config: Options of rationale data.
            source: Lists the rows.
            tokenizer: The LM's tokenizer.
            seed: The run's seed; it draws the subset with `subset` "per_seed" and "reference".
            batch_size: Examples of one micro-batch over all processes.
            window: Most positions the LM can read; None: no limit.
            query_in_encoder: Whether an encoder reads the queries; nothing then stands between an input and its answer.

        Raises:
            ConfigError: the budgets do not fit the window, or the tokenizer cannot serve.
        """
        super().__init__(config, tokenizer, seed=seed, batch_size=batch_size)
        self.config = config
        self.source = source
        self.writer = Writer(config, tokenizer, window, query_in_encoder=query_in_encoder)
        has_dev = "dev" in source.splits or (config.dev_share > 0 and "train" in source.splits)
        tests = tuple(split for split in source.splits if split not in ("train", "dev"))
        self.eval_splits = (("dev",) if has_dev else ()) + tests
        self._rows: dict[str, Sequence[RationaleRow]] = {}

    @property
    def task_names(self) -> tuple[str, ...]:
        """All rows belong to one task."""
        return (self.data_name,)

    @property
    def headline(self) -> MetricName:
        """As configured."""
        return self.config.metric

    @property
    def data_name(self) -> str:
        """Name of the data section."""
        return str(type(self.config).model_fields["name"].default)

    def answer_of(self, text: str) -> str:
        """The label in a generated text."""
        return self.writer.answer_of(text)

    def check(self, found: Found = None) -> None:
        """See the base class; how reading the teacher's texts went in each split comes as warnings."""
        self.source.check(found)
        if has_errors(found):
            return
        if "train" in self.source.splits:
            self.num_train_items()
        for split in self.eval_splits:
            with collecting(found):
                self._check_options(split, found)
        for split in self.source.splits if found is not None else ():
            for line in Account.of(self.source.rows(split), self.config.metric).lines(of_training=False):
                tell(Problem("data", None, f"{split}: {line}", "warning"), found)

    def _check_options(self, split: str, found: Found) -> None:
        seen: set[tuple[str, ...]] = set()
        for row in self.rows(split):
            options = self.options(split, row)
            if options and options not in seen:
                seen.add(options)
                if message := same_options(options, self.writer.option_ids(options), self.tokenizer):
                    tell(Problem.at(row.where or f"row {row.id}", message), found)

    def counts(self, split: str, *, with_tokens: bool = False) -> Counts:
        """See the base class."""
        if split == "train":
            tokens = self.train_tokens() if with_tokens else None
            return Counts(split, rows=self.account.rows, tasks=1, contexts=self.num_train_items(), tokens=tokens)
        count = len(self.rows(split))
        tokens = self.eval_tokens(split) if with_tokens else None
        return Counts(split, rows=count, tasks=1, contexts=count, asked=count, tokens=tokens)

    # ---- training

    @cached_property
    def _parts(self) -> tuple[Sequence[RationaleRow], Sequence[RationaleRow]]:
        return split_rows(self.config, self.source, self.seed)

    @cached_property
    def _train(self) -> tuple[list[TrainRow], Account]:
        return train_rows(self.config, self._parts[0], self.seed)

    @property
    def account(self) -> Account:
        """What became of the training rows."""
        return self._train[1]

    @property
    def training_rows(self) -> Sequence[TrainRow]:
        """The rows that are trained on, with their labels and tasks; `Draw.index` counts them."""
        return self._train[0]

    def num_train_items(self) -> int:
        """Training rows; none where there is no train split."""
        return len(self.training_rows) if "train" in self.source.splits else 0

    def train_context(self, draw: Draw) -> EncodedContext:
        """The row of a draw."""
        item = self.training_rows[draw.index]
        return self.writer.encode(item.row, item.label, item.roles)

    def train_lengths(self, draws: Sequence[Draw]) -> Sequence[int]:
        """Tokens of each drawn row: its context, and its queries with their targets, each padded to the longest."""
        items = [self.training_rows[draw.index] for draw in draws]
        self.writer.cache.add(
            text for item in items for text in self.writer.all_texts(item.row, item.label, item.roles)
        )
        return [_length(self.writer.encode(item.row, item.label, item.roles)) for item in items]

    def notes(self) -> list[str]:
        """What a person should know about the training rows: what was left out, and what was cut."""
        cut = [0, 0]
        for item in self.training_rows:
            if self.writer.may_lose(item.row):
                lost = self.writer.lost_tokens(item.row, item.label, item.roles)
                cut = [count + (tokens > 0) for count, tokens in zip(cut, lost, strict=True)]
        names = (f"inputs over {self.writer.input_budget} tokens", "labels or rationales over their budget")
        return self.account.lines() + [f"{name}, cut: {n}" for n, name in zip(cut, names, strict=True) if n]

    # ---- evaluation

    def rows(self, split: str) -> Sequence[RationaleRow]:
        """The rows of an evaluation split.

        Raises:
            ConfigError: the split is unknown or empty.
        """
        self.check_split(split, self.eval_splits)
        if split not in self._rows:
            is_dev = split == "dev"
            rows = self._parts[1] if is_dev else self.source.rows(split)
            found = rows[: self.config.max_dev_rows if is_dev else self.config.max_eval_rows]
            if not len(found):
                raise ConfigError(f"the {split} split has no rows")
            self._rows[split] = found
        return self._rows[split]

    def options(self, split: str, row: RationaleRow) -> tuple[str, ...]:
        """The labels that a row of a split is answered from; empty where its answer is generated."""
        config = self.config
        scored = config.scored_splits == "all" or (config.scored_splits == "dev" and split == "dev")
        if not scored or config.in_one_target or config.targets == "rationale":
            return ()
        options = tuple(dict.fromkeys(row.options))
        return options if len(options) > 1 and row.label in options else ()

    def examples(self, split: str) -> Sequence[ExampleInfo]:
        """The rows of an evaluation split as examples with the data set's own labels.

        Raises:
            ConfigError: the split is unknown or empty.
        """
        return [self._info(split, row, number) for number, row in enumerate(self.rows(split))]

    def _info(self, split: str, row: RationaleRow, number: int) -> ExampleInfo:
        options = self.options(split, row)
        kind: TaskKind = "multi_choice" if options else "free_form"
        gold = options.index(row.label) if options else 0
        return ExampleInfo(
            number, self.data_name, kind, None, number, gold, options or (row.label,), row.input, row.label
        )

    def eval_contexts(self, split: str, *, null: bool = False) -> EvalContexts:
        """The rows of an evaluation split with the label task.

        Raises:
            ConfigError: `null` was asked for, which has no meaning here, or the split is unknown.
        """
        if null:
            raise ConfigError("calibration 'pmi' is for in-context-learning data; rationale data has none")
        return _RationaleContexts(self, split, RATIONALE if self.config.targets == "rationale" else ANSWER)

    def rationale_dataloader(self, split: str, *, rank: int = 0, world_size: int = 1) -> DataLoader[EncodedContext]:
        """Batches of an evaluation split with the rationale task alone, to write or score rationales.

        Raises:
            ConfigError: the split is unknown, or has fewer rows than there are processes.
        """
        return self.contexts_dataloader(_RationaleContexts(self, split, RATIONALE), rank=rank, world_size=world_size)

    # ---- text from outside

    def prompt_format(self) -> PromptFormat:
        """An input with the marker of the label task; an answer ends with the end-of-sequence token."""
        marker, end = self.config.label_marker, self.writer.input_end
        query = {"prefix": f"{marker} {{input}}{end}", "suffix": f"{{input}}{end} {marker}", "none": f"{{input}}{end}"}
        text = query[self.config.markers]
        assert self.tokenizer.eos_token_id is not None
        return PromptFormat(text, text.replace("{input}", ""), (self.tokenizer.eos_token_id,))

    def context_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of the text itself."""
        return tuple(self.writer.cache(text))


class _RationaleContexts(EvalContexts):
    def __init__(self, module: RationaleDataModule, split: str, role: int) -> None:
        self._module, self._role, self._split = module, role, split
        self._rows = module.rows(split)
        module.writer.cache.add(text for row in self._rows for text in module.writer.all_texts(row, row.label, (role,)))

    def __len__(self) -> int:
        return len(self._rows)

    def length(self, context: int) -> int:
        encoded = self._encode(context)
        return len(encoded.ids) + len(encoded.queries[0].ids)

    def targets(self, context: int) -> Sequence[int]:
        return (len(self._options(context)) or 1,)

    def encode(self, part: EvalPart) -> EncodedContext:
        return self._encode(part.context)

    def _options(self, context: int) -> tuple[str, ...]:
        return self._module.options(self._split, self._rows[context]) if self._role == ANSWER else ()

    def _encode(self, context: int) -> EncodedContext:
        row, writer = self._rows[context], self._module.writer
        options = self._options(context)
        if options:
            return writer.encode_options(row, options, context)
        return writer.encode(row, row.label, (self._role,), context)


def _length(context: EncodedContext) -> int:
    longest = max(len(query.ids) + len(query.targets[0].ids) for query in context.queries)
    return len(context.ids) + len(context.queries) * longest
