"""What the judgements say: win rates with intervals, and how much the order of the answers mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from promptcomp.config import Measured
from promptcomp.evaluation.bootstrap import RESAMPLES, context_weights, share_interval, wilson
from promptcomp.judge.pairs import Pair
from promptcomp.judge.verdicts import Exchange, Judgement

Malformed = Literal["drop", "tie"]

Interval = tuple[float, float]


class SplitSummary(Measured):
    """Side a against side b on one split (or on all)."""

    split: str
    count: int
    """Examples that the win rate is over."""
    win_rate: float | None
    """(wins + ties / 2) / count of side a; null: nothing counted."""
    win_rate_ci: Interval | None
    """95%, bootstrap over examples (over contexts where they share instructions)."""
    wins: int
    losses: int
    ties: int
    """Those of identical answers included."""
    identical: int
    """Pairs with the same answer twice: ties that nobody was asked about."""
    malformed: int
    """Judgements that could not be read after all attempts."""
    refused: int
    """Requests that the endpoint refused."""
    missing: int
    """Pairs that are not judged yet."""
    first_rate: float | None
    """How often the answer shown first won, of those that were decided; without bias near one half."""
    first_rate_ci: Interval | None
    """95%, Wilson."""
    win_rate_shown_first: float | None
    """Win rate of side a where it was shown first."""
    win_rate_shown_second: float | None


def summarise(
    split: str,
    pairs: Sequence[tuple[Pair, Exchange | None]],
    judgements: Mapping[str, Judgement],
    malformed: Malformed,
    seed: int,
) -> SplitSummary:
    """Sum up one split.

    Args:
        split: its name.
        pairs: with each pair its exchange; None: identical answers, a tie without asking.
        judgements: by key.
        malformed: drop: unread and refused judgements count for nothing; tie: they count as ties.
        seed: of the bootstrap.
    """
    rows = [(pair, exchange, judgements.get(exchange.key) if exchange else None) for pair, exchange in pairs]
    read = [(p, e, j) for p, e, j in rows if e is not None and j is not None and j.choice is not None]
    unread = [(p, j) for p, _, j in rows if j is not None and j.choice is None]
    same = [p for p, e, _ in rows if e is None]
    scored = [(p, _score(e, j)) for p, e, j in read] + [(p, 0.5) for p in same]
    if malformed == "tie":
        scored += [(p, 0.5) for p, _ in unread]
    decided = [j.choice == "A" for _, _, j in read if j.choice != "tie"]
    values = [score for _, score in scored]
    return SplitSummary(
        split=split,
        count=len(scored),
        win_rate=_mean(values),
        win_rate_ci=_interval(scored, seed),
        wins=sum(value == 1.0 for value in values),
        losses=sum(value == 0.0 for value in values),
        ties=sum(_score(e, j) == 0.5 for _, e, j in read) + len(same),
        identical=len(same),
        malformed=sum(j.error is None for _, j in unread),
        refused=sum(j.error is not None for _, j in unread),
        missing=sum(e is not None and j is None for _, e, j in rows),
        first_rate=_mean(decided),
        first_rate_ci=wilson(sum(decided), len(decided)),
        win_rate_shown_first=_mean([_score(e, j) for _, e, j in read if not e.swapped]),
        win_rate_shown_second=_mean([_score(e, j) for _, e, j in read if e.swapped]),
    )


def _score(exchange: Exchange, judgement: Judgement) -> float:
    """1: side a won, 0: side b, one half: a tie."""
    if judgement.choice == "tie":
        return 0.5
    return float((judgement.choice == "A") != exchange.swapped)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _interval(scored: Sequence[tuple[Pair, float]], seed: int) -> Interval | None:
    """Percentile bootstrap over contexts; Wilson over contexts where every resample would be the same."""
    contexts: dict[tuple[str, str], int] = {}
    unit = [contexts.setdefault((pair.split, pair.context), len(contexts)) for pair, _ in scored]
    if len(contexts) < 2:
        return None
    values = np.array([value for _, value in scored])
    sums = np.bincount(unit, weights=values, minlength=len(contexts))
    counts = np.bincount(unit, minlength=len(contexts))
    drawn = [weights @ sums / (weights @ counts) for weights in context_weights(len(contexts), RESAMPLES, seed)]
    return share_interval(np.concatenate([[values.mean()], *drawn]), len(contexts))
