"""Which rows are trained on: the original's splits, subsets, filters, and counts of what was left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

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


_NO_LABEL = "left out: no label"
_WRONG_TEACHER = "with a wrong teacher label: filtered"
_UNEXPLAINED = "trained on without a rationale: the teacher gave none"


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
