"""Examples with a teacher's rationales: the two tasks of Distilling Step-by-Step (Hsieh et al. 2023, arXiv 2305.02301).

A training example is one context with a query for each task (`EncodedTarget.role` says which), an evaluation example
one with the label task alone. How rows are written is decided in writing.py, which rows are used in
row_selection.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from torch.utils.data import DataLoader

from promptcomp.batch import ANSWER, RATIONALE, EncodedContext, EncodedQuery
from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import ContextDataModule, Counts, ExampleInfo, PromptFormat, Shown
from promptcomp.datamodules.rationale.rationale_config import RationaleConfig
from promptcomp.datamodules.rationale.row_selection import TrainRow, split_rows, teacher_account, train_rows
from promptcomp.datamodules.rationale.writing import Writer
from promptcomp.datamodules.sampler import Draw, EvalContexts
from promptcomp.datamodules.sections import Reader, check_split
from promptcomp.datamodules.sources.records import Found, Problem, collecting, tell
from promptcomp.datamodules.tasks import RationaleRow, RationaleSource, TaskKind
from promptcomp.datamodules.tokens import same_options


class RationaleDataModule(ContextDataModule):
    """Examples as contexts with a label query and a rationale query."""

    answers_are_generated = True

    config: RationaleConfig
    source: RationaleSource

    def __init__(self, config: RationaleConfig, source: RationaleSource, reader: Reader) -> None:
        """
        Raises:
            ConfigError: the budgets do not fit the window, or the tokenizer cannot serve.
        """
        super().__init__(config, source, reader)
        self.writer = Writer(config, reader, self.cache)
        self._rows: dict[str, Sequence[RationaleRow]] = {}

    def shown(self, split: str, item: Draw | int, context: EncodedContext, query: EncodedQuery) -> Shown:
        """The task of the query beside the data's name."""
        return Shown(f"{self.data_name}, {'rationale' if query.targets[0].role == RATIONALE else 'label'}")

    def answer_of(self, text: str) -> str:
        """The label in a generated text."""
        return self.writer.answer_of(text)

    def check_rows(self, found: Found) -> None:
        """See the base class; how reading the teacher's texts went in each split comes as warnings."""
        if "train" in self.source.splits:
            self.num_train_items()
        for split in self.eval_splits:
            with collecting(found):
                self._check_labels(split, found)
        for split in self.source.splits if found is not None else ():
            for line in teacher_account(self.source.rows(split), self.config.metric):
                tell(Problem("data", None, f"{split}: {line}", "warning"), found)

    def _check_labels(self, split: str, found: Found) -> None:
        seen: set[tuple[str, ...]] = set()
        for row in self.rows(split):
            if self.config.targets != "rationale" and not row.label.strip():
                hint = "; data.dev_share=0 holds out none" if split == "dev" else ""
                missing = f"the label is missing, and {split} rows need one{hint}"
                tell(Problem.at(row.where or f"row {row.id}", missing), found)
            if self.config.in_one_target and self.config.separator in row.label:
                held = (
                    f"the label holds data.separator = {self.config.separator!r}; choose characters that no label has"
                )
                tell(Problem.at(row.where or f"row {row.id}", held), found)
            options = self.options(split, row)
            if options and options not in seen:
                seen.add(options)
                if message := same_options(options, self.writer.option_ids(options), self.tokenizer):
                    tell(Problem.at(row.where or f"row {row.id}", message), found)

    def count(self, split: str) -> Counts:
        """See the base class."""
        if split == "train":
            return Counts(split, rows=len(self._parts[0]), tasks=1, contexts=self.num_train_items())
        count = len(self.rows(split))
        return Counts(split, rows=count, tasks=1, contexts=count, asked=count)

    # ---- training

    @cached_property
    def _parts(self) -> tuple[Sequence[RationaleRow], Sequence[RationaleRow]]:
        return split_rows(self.config, self.source, self.seed)

    @cached_property
    def _train(self) -> tuple[list[TrainRow], list[str]]:
        return train_rows(self.config, self._parts[0], self.seed)

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

    def train_texts(self, draw: Draw) -> Iterable[str]:
        """See the base class."""
        item = self.training_rows[draw.index]
        return self.writer.all_texts(item.row, item.label, item.roles)

    def notes(self) -> list[str]:
        """Notes on the training rows: what was left out, and what was cut."""
        cut = [0, 0]
        for item in self.training_rows:
            if self.writer.may_lose(item.row):
                lost = self.writer.lost_tokens(item.row, item.label, item.roles)
                cut = [count + (tokens > 0) for count, tokens in zip(cut, lost, strict=True)]
        names = (f"inputs over {self.writer.input_budget} tokens", "labels or rationales over their budget")
        return self._train[1] + [f"{name}, cut: {n}" for n, name in zip(cut, names, strict=True) if n]

    # ---- evaluation

    def rows(self, split: str) -> Sequence[RationaleRow]:
        """The rows of an evaluation split.

        Raises:
            ConfigError: the split is unknown or empty.
        """
        check_split(split, self.eval_splits)
        if split not in self._rows:
            is_dev = split == "dev"
            rows = self._parts[1] if is_dev else self.source.rows(split)
            if self.config.targets == "rationale":  # one that nobody gave is no right answer
                rows = [row for row in rows if row.llm_rationale.strip()]
            found = rows[: self.config.max_dev_rows if is_dev else self.config.max_eval_rows]
            if not len(found):
                what = " with a rationale" if self.config.targets == "rationale" else ""
                raise ConfigError(f"the {split} split has no rows{what}")
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
        """The rows of an evaluation split as examples with the data set's own labels, or their rationales.

        Raises:
            ConfigError: the split is unknown or empty.
        """
        found = []
        for number, row in enumerate(self.rows(split)):
            options = self.options(split, row)
            label = row.llm_rationale if self.config.targets == "rationale" else row.label
            kind: TaskKind = "multi_choice" if options else "free_form"
            gold, shown = (options.index(label), options) if options else (0, (label,))
            found.append(ExampleInfo(number, self.data_name, kind, None, number, gold, shown, row.input, label))
        return found

    def eval_contexts(self, split: str) -> EvalContexts:
        """The rows of an evaluation split with the label task.

        Raises:
            ConfigError: the split is unknown.
        """
        return self._contexts(split, RATIONALE if self.config.targets == "rationale" else ANSWER)

    def rationale_dataloader(self, split: str, *, rank: int = 0, world_size: int = 1) -> DataLoader[EncodedContext]:
        """Batches of an evaluation split with the rationale task alone, to write or score rationales.

        Raises:
            ConfigError: the split is unknown, or has fewer rows than there are processes.
        """
        return self.contexts_dataloader(self._contexts(split, RATIONALE), rank=rank, world_size=world_size)

    def _contexts(self, split: str, role: int) -> EvalContexts:
        """The rows of a split with the task of a role."""
        rows, writer = self.rows(split), self.writer
        self.cache.add(text for row in rows for text in writer.all_texts(row, row.label, (role,)))

        def options(context: int) -> tuple[str, ...]:
            return self.options(split, rows[context]) if role == ANSWER else ()

        def encode(context: int) -> EncodedContext:
            return writer.encode(rows[context], rows[context].label, (role,), context, options(context))

        def length(context: int) -> int:
            encoded = encode(context)
            return len(encoded.ids) + len(encoded.queries[0].ids)

        return EvalContexts(
            len(rows), length, lambda context: (len(options(context)) or 1,), lambda part: encode(part.context)
        )

    # ---- text from outside

    def prompt_format(self) -> PromptFormat:
        """An input with the marker of what is asked; an answer ends with the end-of-sequence token."""
        config, end = self.config, self.writer.input_end
        marker = config.rationale_marker if config.targets == "rationale" else config.label_marker
        query = {"prefix": f"{marker} {{input}}{end}", "suffix": f"{{input}}{end} {marker}", "none": f"{{input}}{end}"}
        text = query[config.markers]
        return PromptFormat(text, text.replace("{input}", ""), self.end_ids)
