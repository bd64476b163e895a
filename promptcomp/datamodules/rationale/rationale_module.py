"""Examples with a teacher's rationales: the two tasks of Distilling Step-by-Step (Hsieh et al. 2023, arXiv 2305.02301).

A training example is one context with a query for each task (`EncodedTarget.role` says which), an evaluation example
one with the label task alone. How rows are written is decided in writing.py. Which rows are trained on (the original's
splits, subsets, filters, and counts of what was left out) stands at the end.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch.utils.data import DataLoader

from promptcomp.batch import ANSWER, RATIONALE, EncodedContext, EncodedQuery
from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import ContextDataModule, Counts, ExampleInfo, PromptFormat, Shown
from promptcomp.datamodules.rationale.rationale_config import RationaleConfig
from promptcomp.datamodules.rationale.writing import Writer
from promptcomp.datamodules.sampler import Draw, EvalContexts
from promptcomp.datamodules.sections import Reader, check_split
from promptcomp.datamodules.sources.records import Found, Problem, collecting, tell
from promptcomp.datamodules.tasks import RationaleRow, RationaleSource, TaskKind
from promptcomp.datamodules.tokens import same_options
from promptcomp.evaluation.texts import agree

_SUBSET_STREAM, _SEED_STREAM, _SHUFFLE_STREAM = 21, 22, 23
_NO_LABEL = "left out: no label"
_WRONG_TEACHER = "with a wrong teacher label: filtered"
_UNEXPLAINED = "trained on without a rationale: the teacher gave none"


@dataclass(frozen=True, slots=True)
class TrainRow:
    """A row to train on: with which label, and which tasks."""

    row: RationaleRow
    label: str
    roles: tuple[int, ...]


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

    def rationale_dataloader(self, split: str) -> DataLoader[EncodedContext]:
        """Batches of an evaluation split with the rationale task alone, to write or score rationales.

        Raises:
            ConfigError: the split is unknown.
        """
        return self.contexts_dataloader(self._contexts(split, RATIONALE))

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


def teacher_account(rows: Sequence[RationaleRow], metric: str) -> list[str]:
    """How often the teacher was right about some rows, and how reading its texts went, in words."""
    found = []
    if judged := [row for row in rows if row.label.strip() and row.teacher]:
        right = sum(agree(row.llm_label, row.label, metric) for row in judged)
        found.append(f"teacher labels: {right} of {len(judged)} right ({right / len(judged):.2%})")
    statuses = Counter(row.parse_status for row in rows)
    read = statuses.pop("ok", 0)
    if statuses:
        counts = ", ".join(f"{status} {count}" for status, count in sorted(statuses.items()))
        found.append(f"teacher texts that were not read cleanly: {counts} (ok {read})")
    return found


def reference_split(count: int, test_size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places (kept, split off) of the original's random splits (`train_test_split` of Hugging Face datasets).

    The first `ceil(test_size * count)` places of `numpy.random.default_rng(seed).permutation(count)` are split off.
    """
    order = np.random.default_rng(seed).permutation(count)
    border = math.ceil(test_size * count)
    return order[border:], order[:border]


def split_rows(
    config: RationaleConfig, source: RationaleSource, seed: int
) -> tuple[Sequence[RationaleRow], Sequence[RationaleRow]]:
    """The rows to train on, before filters, and the dev rows (none with `dev_share` 0 and no dev split)."""
    rows = source.rows("train")
    if config.subset == "reference":
        rows = rows if config.train_count is None else rows[: config.train_count]
        if config.train_share < 1:
            kept, _ = reference_split(len(rows), 1 - config.train_share, seed)
            rows = [rows[int(i)] for i in kept]
    if "dev" in source.splits:
        train, dev = rows, source.rows("dev")
    elif config.dev_share:
        kept, split_off = reference_split(len(rows), config.dev_share, 0)
        train, dev = [rows[int(i)] for i in kept], [rows[int(i)] for i in split_off]
    else:
        train, dev = rows, ()
    if not len(train):
        raise ConfigError(f"data.dev_share = {config.dev_share} leaves none of {len(rows)} rows to train on")
    return train, dev


def choose_rows(config: RationaleConfig, rows: Sequence[RationaleRow], seed: int) -> Sequence[RationaleRow]:
    """The subset to train on; smaller subsets of one seed are part of larger ones."""
    if config.subset == "reference" or (config.train_count is None and config.train_share == 1):
        return rows
    count = min(len(rows), config.train_count or len(rows))
    count = max(1, round(config.train_share * count))
    key = (config.subset_seed, _SUBSET_STREAM) if config.subset == "fixed" else (seed, _SEED_STREAM)
    order = np.random.default_rng(key).permutation(len(rows))
    return [rows[int(i)] for i in order[:count]]


def train_rows(config: RationaleConfig, rows: Sequence[RationaleRow], seed: int) -> tuple[list[TrainRow], list[str]]:
    """What is trained on of the rows of the train part, and an account of the rest in words.

    Raises:
        ConfigError: nothing is left.
    """
    chosen = choose_rows(config, rows, seed)
    if config.shuffle_rationales:
        chosen = shuffled(chosen, config.subset_seed)
    odd = Counter[str]()
    found = [item for row in chosen if (item := _train_row(config, row, odd)) is not None]
    account = teacher_account(rows, config.metric)
    account += [f"rows {what}: {odd[what]}" for what in (_NO_LABEL, _WRONG_TEACHER, _UNEXPLAINED) if odd[what]]
    account.append(f"training rows: {len(found)} of {len(rows)}")
    if not found:
        raise ConfigError(f"of {len(chosen)} rows none is left to train on: {'; '.join(account)}")
    return found, account


def shuffled(rows: Sequence[RationaleRow], seed: int) -> list[RationaleRow]:
    """The rows, each that has a rationale with that of another such row."""
    result = list(rows)
    places = [i for i, row in enumerate(rows) if row.llm_rationale.strip()]
    order = np.random.default_rng((seed, _SHUFFLE_STREAM)).permutation(len(places))
    for here, there in zip(order, np.roll(order, 1), strict=True):
        result[places[here]] = replace(result[places[here]], llm_rationale=rows[places[there]].llm_rationale)
    return result


def _train_row(config: RationaleConfig, row: RationaleRow, odd: Counter[str]) -> TrainRow | None:
    label = row.llm_label if config.label_source == "teacher" else row.label
    blanks_count = config.blank_targets == "train"
    if config.rationale_filter != "all" and not agree(row.llm_label, row.label, config.metric):
        odd[_WRONG_TEACHER] += 1
        if config.rationale_filter == "teacher_correct_rows":
            return None
        row = replace(row, llm_rationale="")
        explained = False
    else:
        explained = blanks_count or bool(row.llm_rationale.strip())
        odd[_UNEXPLAINED] += config.uses_rationales and not explained
    labelled = blanks_count or bool(label.strip())
    if not labelled:
        odd[_NO_LABEL] += 1
    tasks = {"rationale": (RATIONALE,), "label_and_rationale": (ANSWER, RATIONALE)}.get(config.targets, (ANSWER,))
    roles = tuple(role for role in tasks if (labelled if role == ANSWER else explained))
    return TrainRow(row, label, roles) if roles else None
