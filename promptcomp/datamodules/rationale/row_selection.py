"""Which rows are trained on: the original's splits, subsets, filters, and an account of what was left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from promptcomp.batch import ANSWER, RATIONALE
from promptcomp.config import ConfigError
from promptcomp.datamodules.rationale.rationale_config import RationaleConfig
from promptcomp.datamodules.tasks import RationaleRow, RationaleSource
from promptcomp.evaluation.texts import same_label, same_value

_SUBSET_STREAM, _SEED_STREAM, _SHUFFLE_STREAM = 21, 22, 23


@dataclass(frozen=True, slots=True)
class TrainRow:
    """A row to train on: with which label, and which tasks."""

    row: RationaleRow
    label: str
    roles: tuple[int, ...]


@dataclass(slots=True)
class Account:
    """What became of the training rows."""

    rows: int = 0
    """Rows in the train part, before anything is left out."""
    statuses: Counter[str] = field(default_factory=Counter)
    """How reading the teacher's text went, for these rows."""
    teacher_correct: int = 0
    """Rows whose teacher label is right."""
    judged: int = 0
    """Rows that a teacher answered and that have a label of their own."""
    chosen: int = 0
    """Rows in the subset."""
    used: int = 0
    """Rows that are trained on."""
    without_label: int = 0
    """Rows of the subset left out because they have no label."""
    teacher_wrong: int = 0
    """Rows of the subset whose row or rationale is left out because the teacher's label is wrong."""
    without_rationale: int = 0
    """Rows that are trained on without a rationale, as the teacher gave none (or it could not be read)."""

    @classmethod
    def of(cls, rows: Sequence[RationaleRow], metric: str) -> Self:
        """An account of what the teacher wrote about some rows."""
        account = cls(rows=len(rows), statuses=Counter(row.parse_status for row in rows))
        for row in rows:
            if row.label.strip() and row.teacher:
                account.judged += 1
                account.teacher_correct += agree(row.llm_label, row.label, metric)
        return account

    def lines(self, *, of_training: bool = True) -> list[str]:
        """The account in words; `of_training`: with what is trained on."""
        found = []
        if self.judged:
            share = self.teacher_correct / self.judged
            found.append(f"teacher labels: {self.teacher_correct} of {self.judged} right ({share:.2%})")
        failed = {status: count for status, count in self.statuses.items() if status != "ok"}
        if failed:
            counts = ", ".join(f"{status} {count}" for status, count in sorted(failed.items()))
            found.append(f"teacher texts that were not read cleanly: {counts} (ok {self.statuses['ok']})")
        for count, what in (
            (self.without_label, "left out: no label"),
            (self.teacher_wrong, "with a wrong teacher label: filtered"),
            (self.without_rationale, "trained on without a rationale: the teacher gave none"),
        ):
            if count:
                found.append(f"rows {what}: {count}")
        if of_training:
            found.append(f"training rows: {self.used} of {self.rows}")
        return found


def agree(one: str, other: str, metric: str) -> bool:
    """Whether two labels agree: by value ("equation") or as text, case and blanks aside."""
    if metric == "equation":
        return same_value(one, other)
    return same_label(one.casefold(), other.casefold())


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


def train_rows(config: RationaleConfig, rows: Sequence[RationaleRow], seed: int) -> tuple[list[TrainRow], Account]:
    """What is trained on of the rows of the train part, and an account of the rest.

    Raises:
        ConfigError: nothing is left.
    """
    account = Account.of(rows, config.metric)
    chosen = choose_rows(config, rows, seed)
    account.chosen = len(chosen)
    if config.shuffle_rationales:
        chosen = shuffled(chosen, config.subset_seed)
    found = [item for row in chosen if (item := _train_row(config, row, account)) is not None]
    account.used = len(found)
    if not found:
        raise ConfigError(f"of {account.chosen} rows none is left to train on: {'; '.join(account.lines())}")
    return found, account


def shuffled(rows: Sequence[RationaleRow], seed: int) -> list[RationaleRow]:
    """The rows, each that has a rationale with that of another such row."""
    result = list(rows)
    places = [i for i, row in enumerate(rows) if row.llm_rationale.strip()]
    order = np.random.default_rng((seed, _SHUFFLE_STREAM)).permutation(len(places))
    for here, there in zip(order, np.roll(order, 1), strict=True):
        result[places[here]] = replace(result[places[here]], llm_rationale=rows[places[there]].llm_rationale)
    return result


def _train_row(config: RationaleConfig, row: RationaleRow, account: Account) -> TrainRow | None:
    label = row.llm_label if config.label_source == "teacher" else row.label
    blanks_count = config.blank_targets == "train"
    if config.rationale_filter != "all" and not agree(row.llm_label, row.label, config.metric):
        account.teacher_wrong += 1
        if config.rationale_filter == "teacher_correct_rows":
            return None
        row = replace(row, llm_rationale="")
        explained = False
    else:
        explained = blanks_count or bool(row.llm_rationale.strip())
        account.without_rationale += config.uses_rationales and not explained
    labelled = blanks_count or bool(label.strip())
    if not labelled:
        account.without_label += 1
    if config.targets == "rationale":
        roles: tuple[int, ...] = (RATIONALE,) if explained else ()
    elif config.targets == "label_and_rationale":
        roles = (*((ANSWER,) if labelled else ()), *((RATIONALE,) if explained else ()))
    else:
        roles = (ANSWER,) if labelled else ()
    return TrainRow(row, label, roles) if roles else None
