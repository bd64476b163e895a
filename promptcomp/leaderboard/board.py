"""The board, from row files alone: blocks of equal budgets with intervals and paired tests; the quality floor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Literal

import numpy as np

from promptcomp.config import Measured
from promptcomp.errors import ConfigError
from promptcomp.evaluation.predictions import LOWER_IS_BETTER
from promptcomp.evaluation.results import Interval, finite
from promptcomp.leaderboard.board_row import BoardRow, RowBudget
from promptcomp.leaderboard.significance import Array, Drawn, drawn, holm, lower_bound, paired_p
from promptcomp.rivals.rival import share_text

Group = Literal["ranked", "query_aware", "control", "missing"]


class Known(Measured):
    """A value with its 95 % interval over contexts and seeds."""

    value: float | None = None
    ci: Interval | None = None


class Line(Measured):
    """A row of a block: the mean over its seeds."""

    row: str
    method: str
    title: str
    paper: str = ""
    group: Group
    rank: int | None = None
    seeds: int = 0
    requested: str
    """`16 slots`, `1/8 of the bytes`."""
    entered_with: str = ""
    """In a block of bytes: the row of slots that stands here."""
    score: Known = Known()
    gap: Known = Known()
    """Score - full prompt."""
    retained: Known = Known()
    kl: float | None = None
    top1: float | None = None
    minus_best: Known = Known()
    p: float | None = None
    """That the difference to the best is 0: paired t over contexts, Holm-corrected within the block."""
    slots: float | None = None
    stored_bytes: float | None = None
    kv_bytes: float | None = None
    compress_flops: float | None = None
    train_seconds: float | None = None
    train_steps: int | None = None
    train_flops: float | None = None
    break_even: int | None = None
    rate: float | None = None
    trained_lm: bool = False
    """It has trained the LM's weights: kl and top1 are to the full prompt of these; gap and retained, like those of all
    rows, are to the bounds of the LM as it was, where a row has them."""
    note: str = ""
    """Why there is nothing, or what is missing."""


class Block(Measured):
    """One budget."""

    title: str
    budget: RowBudget
    allowed_bytes: float | None = None
    lines: tuple[Line, ...]


class Floor(Measured):
    """The fewest slots with which a method keeps the floor."""

    method: str
    title: str
    query_aware: bool = False
    slots: int | None = None
    """None: none of the budgets."""
    bounds: dict[str, float | None]
    """Slots -> one-sided 95 % lower bound of (score - no prompt) - floor (full prompt - no prompt); above 0: kept."""


class Board(Measured):
    """A leaderboard (leaderboard.json)."""

    schema_version: int = 1
    title: str
    data: str
    lm: str
    split: str
    metric: str
    examples_sha256: str
    num_contexts: int
    lower_is_better: bool
    no_prompt: Known
    full_prompt: Known
    """Of the untrained LM, where a row has them."""
    floor: float
    slots: tuple[Block, ...]
    bytes: tuple[Block, ...]
    floors: tuple[Floor, ...]
    commands: tuple[str, ...]


class _Entry:
    """A row with all its seeds."""

    def __init__(self, rows: Sequence[BoardRow]) -> None:
        self.rows = rows
        self.done = [row for row in rows if not row.failure and row.contexts is not None]
        self.first = (self.done or rows)[0]  # a failed one knows no bounds
        self.scores, self.none, self.full = (self._table(name) for name in ("row", "no_prompt", "full_prompt"))
        self.weights = np.array(self.done[0].contexts.weights) if self.done else np.ones(0)  # type: ignore[union-attr]

    def _table(self, name: str) -> Array:
        """[seeds, contexts]."""
        return np.array([getattr(row.contexts, name) for row in self.done], dtype=np.float64)

    def mean(self, name: str) -> float | None:
        values = [value for row in self.done if (value := getattr(row, name)) is not None]
        return _short(fmean(values)) if values else None

    @property
    def sign(self) -> float:
        """-1 where lower is better."""
        return -1.0 if self.first.metric in LOWER_IS_BETTER else 1.0

    @property
    def is_complete(self) -> bool:
        """Whether there are scores, all finite."""
        return bool(self.done) and bool(np.isfinite(self.scores).all())

    @property
    def has_gap(self) -> bool:
        """Whether the full prompt is better than none, so that a share of it can be kept."""
        return bool(self.done) and self.sign * float(((self.full - self.none).mean(0) * self.weights).sum()) > 0

    @property
    def note(self) -> str:
        """What has failed."""
        told = {row.seed: row.failure for row in self.rows if row.failure}
        if not self.done:
            return next(iter(told.values()), "")
        return "; ".join(f"seed {seed}: {failure}" for seed, failure in told.items())


def build_board(rows: Sequence[BoardRow], floor: float) -> Board:
    """The board of rows that belong together (see `read_rows`).

    Raises:
        ConfigError: the rows have different contexts, or none has numbers.
    """
    entries: dict[str, list[BoardRow]] = {}
    known: BoardRow | None = None
    for row in rows:
        entries.setdefault(row.row, []).append(row)
        if row.failure or row.contexts is None:
            continue
        known = known or row
        if row.contexts.weights != known.contexts.weights:  # type: ignore[union-attr]
            files = [f"rows/{each.row}/{each.seed}.json" for each in (row, known)]
            raise ConfigError(f"{files[0]}: its contexts are not those of {files[1]}; leave it out")
    found = {name: _Entry(own) for name, own in entries.items()}
    scored = [entry for entry in found.values() if entry.is_complete]
    if not scored:
        raise ConfigError("no row has numbers: " + next((entry.note for entry in found.values()), ""))
    usual = scored[0]
    untrained = next((each for each in scored if each.first.bounds == "untrained"), usual)
    for entry in scored:
        if entry.first.bounds == "trained" and untrained.first.bounds == "untrained":
            bounds = (each.mean(0) for each in (untrained.none, untrained.full))
            entry.none, entry.full = (np.broadcast_to(each, entry.scores.shape) for each in bounds)
    data, lm, split, metric, sha = usual.first.track
    return Board(
        title=next((row.board for row in rows if row.board), "Leaderboard"),
        data=data,
        lm=lm,
        split=split,
        metric=metric,
        examples_sha256=sha,
        num_contexts=len(usual.weights),
        lower_is_better=usual.sign < 0,
        no_prompt=_known(drawn(untrained.none, untrained.weights)),
        full_prompt=_known(drawn(untrained.full, untrained.weights)),
        floor=floor,
        slots=tuple(_slot_blocks(found)),
        bytes=tuple(_byte_blocks(found)),
        floors=tuple(_floors(found, floor)),
        commands=tuple(sorted({row.command for row in rows if row.command})),
    )


def _budgets(found: dict[str, _Entry], kind: Literal["slots", "bytes"]) -> list[RowBudget]:
    firsts = [entry.first for entry in found.values()]
    amounts = {first.budget.requested for first in firsts if first.budget.kind == kind}
    if kind == "bytes":
        amounts |= {share for first in firsts for share in first.shares}
    return [RowBudget(kind=kind, requested=amount) for amount in sorted(amounts, reverse=kind == "bytes")]


def _slot_blocks(found: dict[str, _Entry]) -> Iterator[Block]:
    for budget in _budgets(found, "slots"):
        members = [entry for entry in found.values() if entry.first.budget == budget]
        title = f"{budget.requested:g} slot{'' if budget.requested == 1 else 's'}"
        lines = [_line(entry, title) for entry in members]
        yield Block(title=title, budget=budget, lines=_ranked(lines, members))


def _byte_blocks(found: dict[str, _Entry]) -> Iterator[Block]:
    """What has a budget in bytes, and every other method with the most slots whose bytes in use are within it."""
    for budget in _budgets(found, "bytes"):
        allowed = next((size * budget.requested for e in found.values() if (size := e.mean("context_bytes"))), None)
        title = share_text(budget.requested)
        members = [entry for entry in found.values() if entry.first.budget == budget]
        lines = [_line(entry, title) for entry in members]
        own = {entry.first.method for entry in members}
        by_method: dict[str, list[_Entry]] = {}
        for entry in found.values():
            if entry.first.budget.kind == "slots" and entry.first.method not in own:
                by_method.setdefault(entry.first.method, []).append(entry)
        for method, entries in by_method.items():
            entered, line = _within(entries, allowed, title, f"{method}-{budget.text}")
            members.append(entered)
            lines.append(line)
        yield Block(title=title, budget=budget, allowed_bytes=_short(allowed), lines=_ranked(lines, members))


def _within(entries: list[_Entry], allowed: float | None, title: str, name: str) -> tuple[_Entry, Line]:
    known = [(size, entry) for entry in entries if (size := entry.mean("kv_bytes")) is not None]
    fitting = [(size, entry) for size, entry in known if allowed is not None and size <= allowed]
    if fitting:
        entry = max(fitting, key=lambda each: each[1].first.budget.requested)[1]
        return entry, _line(entry, title).model_copy(update={"row": name, "entered_with": entry.first.row})
    entry = entries[0]
    note = entry.note or "its bytes in use are not known"
    if known and allowed is not None:
        size, entry = min(known, key=lambda each: each[0])
        note = f"{entry.first.row}, its smallest, has {size:,.0f} bytes in use, and {allowed:,.0f} are allowed"
    line = _line(entry, title)
    return entry, Line(row=name, method=line.method, title=line.title, paper=line.paper, group="missing",
                       requested=title, note=note)  # fmt: skip


def _line(entry: _Entry, requested: str) -> Line:
    first = entry.first
    kind: Group = "control" if first.is_control else "query_aware" if first.query_aware else "ranked"
    base = Line(row=first.row, method=first.method, title=first.title, paper=first.paper, requested=requested,
                group=kind if entry.is_complete else "missing", note=entry.note, seeds=len(entry.done))  # fmt: skip
    if not entry.is_complete:
        return base if base.note else base.model_copy(update={"note": "its scores are not finite"})
    score, none, full = (drawn(each, entry.weights) for each in (entry.scores, entry.none, entry.full))
    gap = full.values - none.values
    retained = (score.values - none.values) / np.where(gap == 0, 1.0, gap)
    retained[np.sign(gap) != entry.sign] = np.nan  # where the full prompt is no better than none, nothing can be kept
    names = ("kl", "top1", "slots", "stored_bytes", "kv_bytes", "compress_flops", "train_seconds", "train_flops")
    return base.model_copy(
        update={
            "score": _known(score),
            "gap": _known(Drawn(score.values - full.values, score.num_contexts)),
            "retained": _known(Drawn(retained, score.num_contexts)),
            **{name: entry.mean(name) for name in names},
            "train_steps": entry.done[0].train_steps,
            "break_even": max((row.break_even for row in entry.done if row.break_even is not None), default=None),
            "rate": first.rate,
            "trained_lm": first.bounds == "trained",
        }
    )


def _ranked(lines: list[Line], members: list[_Entry]) -> tuple[Line, ...]:
    """Best first; then rows that see the query, controls, and what has no numbers. Differences are to the best of those
    that do not see the query; the correction is over these."""
    pairs = list(zip(lines, members, strict=True))
    pairs.sort(key=lambda pair: (-pair[1].sign * (pair[0].score.value or 0.0), pair[0].row))
    apart = [pair for pair in pairs if pair[0].group in ("query_aware", "control")]
    ranked = [(line, entry) for line, entry in pairs if line.group == "ranked"]
    best = ranked[0][1] if ranked else None
    done, values = dict[str, Line](), dict[str, float]()
    for rank, (line, entry) in enumerate([*ranked, *apart]):
        update: dict[str, object] = {"rank": rank + 1} if line.group == "ranked" else {}
        if best is not None and entry is not best:
            own, theirs = drawn(entry.scores, entry.weights), drawn(best.scores, best.weights)
            update["minus_best"] = _known(Drawn(own.values - theirs.values, own.num_contexts))
            p = paired_p(entry.scores.mean(0) - best.scores.mean(0), entry.weights)
            if line.group == "ranked" and p is not None:
                values[line.row] = p
        done[line.row] = line.model_copy(update=update)
    for row, p in zip(values, holm(list(values.values())), strict=True):
        done[row] = done[row].model_copy(update={"p": _short(p)})
    groups = ("ranked", "query_aware", "control")
    ordered = [line for group in groups for line in done.values() if line.group == group]
    return (*ordered, *sorted((line for line in lines if line.group == "missing"), key=lambda line: line.row))


def _floors(found: dict[str, _Entry], floor: float) -> Iterator[Floor]:
    by_method: dict[str, list[_Entry]] = {}
    for entry in found.values():
        if entry.first.budget.kind == "slots" and not entry.first.is_control:
            by_method.setdefault(entry.first.method, []).append(entry)
    made = []
    for method, entries in by_method.items():
        bounds: dict[str, float | None] = {}
        for entry in sorted(entries, key=lambda entry: entry.first.budget.requested):
            bound = None
            if entry.has_gap:
                own = entry.sign * ((entry.scores - entry.none) - floor * (entry.full - entry.none))
                bound = lower_bound(own.mean(0), entry.weights) if np.isfinite(own).all() else None
            bounds[f"{entry.first.budget.requested:g}"] = _short(bound)
        kept = next((int(slots) for slots, bound in bounds.items() if bound is not None and bound > 0), None)
        first = entries[0].first
        made.append(Floor(method=method, title=first.title, query_aware=first.query_aware, slots=kept, bounds=bounds))
    yield from sorted(made, key=lambda each: (each.query_aware, each.slots is None, each.slots or 0, each.method))


def _known(found: Drawn) -> Known:
    ci = found.ci
    return Known(value=_short(float(found.values[0])), ci=None if ci is None else (_short(ci[0]), _short(ci[1])))


def _short(value: float | None) -> float:
    """Six digits: what arithmetic of another machine may round otherwise is not written."""
    return None if finite(value) is None else float(f"{value:.6g}")  # type: ignore[return-value]
