"""One call of `promptcomp judge`: what is to be judged, what it will cost, judging, and the result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console

from promptcomp.chat.answer_file import AnswerFile, now
from promptcomp.chat.session import AskingSession, Prices, Writing
from promptcomp.config import ConfigError, Measured
from promptcomp.evaluation.bootstrap import RESAMPLES, context_weights, share_interval, wilson
from promptcomp.evaluation.formatting import value_text
from promptcomp.files import write_atomic
from promptcomp.judge import JudgeOptions
from promptcomp.judge.pairs import Matched, Pair, Side, choose, is_swapped, match, read_side
from promptcomp.judge.verdicts import Exchange, Judgement, JudgementHeader, load_prompt
from promptcomp.terminal import plain_table

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
    malformed: str,
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


POOLED = "all splits"


class JudgeSession(AskingSession[Judgement]):
    """Pairs, the record, and what is still to be asked. Use as a context manager.

    Args:
        options: which texts, and how.
        judge: who judges: the endpoint's model, or `local:PATH`.
        url: of the endpoint.

    Raises:
        ConfigError: texts, prompt or record cannot be used.
    """

    name = "judge"
    marks = ("won", "lost", "ties", "unread")
    made = "judgements were made by this call"
    local_chat = True
    answer_tokens = 80

    def __init__(self, options: JudgeOptions, judge: str, url: str | None = None) -> None:
        self.options, self._judge = options, judge
        side_a, side_b = read_side(options.a, options.row_a), read_side(options.b, options.row_b)
        for option, row, side in (("--row-a", options.row_a, side_a), ("--row-b", options.row_b, side_b)):
            if side.row is None and row != "method":
                raise ConfigError(
                    f"{option} {row}: {side.path} is a table of answers; leave it out, as rows are a run's"
                )
        self.name_a, self.name_b = side_a.name, side_b.name
        if self.name_a == self.name_b:  # runs in different folders may have the same last part
            self.name_a, self.name_b = (str(s.path) + (f":{s.row}" if s.row else "") for s in (side_a, side_b))
        self.matched: Matched = match(side_a, side_b, options.split or ())
        prompt = load_prompt(options.prompt)
        header = JudgementHeader(
            judge=judge,
            prompt_sha256=prompt.sha256,
            max_tokens=options.max_tokens,
            a=self.name_a,
            b=self.name_b,
            url=url,
            created=now(),
        )
        self.writing = Writing(options.max_tokens)
        self.pairs: list[tuple[Pair, Exchange | None]] = []
        for pair in choose(self.matched.pairs, options.examples, options.seed):
            swapped = is_swapped(options.seed, pair.split, pair.example)
            exchange = Exchange(pair, swapped, prompt, header, options.attempts)
            self.pairs.append((pair, None if pair.identical and not options.ask_identical else exchange))
        self.record = AnswerFile(options.output or default_output(side_a, side_b), header, Judgement)
        self.todo = [exchange for _, exchange in self.pairs if exchange is not None and self._is_open(exchange)]
        self.kept = sum(exchange is not None for _, exchange in self.pairs) - len(self.todo)
        """Pairs judged by earlier calls."""

    def _is_open(self, exchange: Exchange) -> bool:
        judgement = self.record.entries.get(exchange.key)
        return judgement is None or (judgement.choice is None and self.options.retry_malformed)

    def estimate(self, prices: Prices) -> tuple[str, float | None]:
        """Calls and tokens still to come; the most: every answer takes all attempts and all tokens."""
        calls = len(self.todo)
        prompt, completion = sum(exchange.prompt_tokens for exchange in self.todo), self.answer_tokens * calls
        most = self.options.max_tokens * self.options.attempts * calls
        cost = prices.cost(prompt, completion)
        price = "" if cost is None else f", about {cost:,.2f} at the given prices"
        tokens = f"about {prompt:,} prompt tokens and {completion:,} completion tokens (at most {most:,})"
        return f"{calls:,} calls, {tokens}{price}", cost

    def marks_of(self, answer: Judgement) -> tuple[str]:
        return ({"a": "won", "b": "lost", "tie": "ties", None: "unread"}[answer.winner],)

    def write(self, prices: Prices) -> dict[str, Any]:
        """Write the result beside the record and give it back; the tokens are those of all judgements that were used.

        Raises:
            ConfigError: it cannot be written.
        """
        entries, seed, malformed = self.record.entries, self.options.seed, self.options.malformed
        groups: dict[str, list[tuple[Pair, Exchange | None]]] = {}
        for both in self.pairs:
            groups.setdefault(both[0].split, []).append(both)
        if len(groups) > 1:
            groups[POOLED] = self.pairs
        splits = [summarise(name, group, entries, malformed, seed) for name, group in groups.items()]
        used = [entries[each.key] for _, each in self.pairs if each is not None and each.key in entries]
        result = {
            "a": self.name_a,
            "b": self.name_b,
            "judge": self._judge,
            "seed": seed,
            "malformed_count_as": malformed,
            "splits": {s.split: s.model_dump(exclude={"split"}) for s in splits},
            "only_a": self.matched.only_a,
            "only_b": self.matched.only_b,
            "calls": sum(j.attempts for j in used),
            **self.spent(used, prices),
            "uncounted": sum(j.attempts > 0 and j.prompt_tokens is None for j in used),
            "judgements": str(self.record.path),
        }
        path = self.record.path.with_name(self.record.path.name.removesuffix(".jsonl") + ".summary.json")
        write_atomic(path, json.dumps(result, indent=2) + "\n")
        return result


def default_output(side_a: Side, side_b: Side) -> Path:
    """Beside side a, named after both sides."""
    folder = side_a.path if side_a.path.is_dir() else side_a.path.parent
    names = [side.name.replace(":", ".") for side in (side_a, side_b)]
    return folder / f"judgements_{names[0]}_vs_{names[1]}.jsonl"


def print_result(session: JudgeSession, result: dict[str, Any], console: Console) -> None:
    """The table and whatever a reader of it must know."""
    right = ("judged", "win rate", "won", "lost", "ties", "unread", "first shown won")
    rows = [
        (
            split,
            str(found["count"]),
            value_text(found["win_rate"], found["win_rate_ci"], ".1%", ".1%"),
            *(str(found[name]) for name in ("wins", "losses", "ties")),
            str(found["malformed"] + found["refused"]),
            value_text(found["first_rate"], found["first_rate_ci"], ".1%", ".1%"),
        )
        for split, found in result["splits"].items()
    ]
    title = f"{result['a']} against {result['b']}, judged by {result['judge']}"
    console.print(plain_table(("split", *right), rows, right, title=title, box=box.HEAVY_HEAD, pad_edge=True))
    for line in notes(session, result):
        console.print(line, markup=False, highlight=False)


def notes(session: JudgeSession, result: dict[str, Any]) -> list[str]:
    """Sentences about what is odd, what was used and where it is."""
    own = list(result["splits"].values())[-1]  # the only split, or all of them together
    lines = []
    if own["identical"]:
        lines.append(f"{own['identical']} pairs of identical answers are ties and were not sent to the judge.")
    way = "left out" if result["malformed_count_as"] == "drop" else "counted as ties"
    if own["malformed"]:
        cut = f" ({result['cut']} of them cut at --max-tokens)" if result["cut"] else ""
        lines.append(f"{own['malformed']} malformed answers{cut} were {way}; --retry-malformed asks again.")
    if own["refused"]:
        lines.append(f"{own['refused']} refused requests were {way}; the file of judgements says why.")
    if own["missing"]:
        lines.append(f"{own['missing']} pairs are not judged yet.")
    low, high = own["first_rate_ci"] or (0.0, 1.0)
    if not low <= 0.5 <= high:
        lines.append("The judge prefers one position: the order is random, so the win rate is fair but closer to 50%.")
    if result["only_a"] or result["only_b"]:
        lines.append(f"Not compared: {result['only_a']} examples only in a, {result['only_b']} only in b.")
    cost = "" if result["cost"] is None else f", cost {result['cost']:,.4f}"
    lines.append(
        f"{result['calls']:,} answers in all ({session.kept:,} pairs kept from earlier),"
        f" {result['prompt_tokens']:,} prompt and {result['completion_tokens']:,} completion tokens{cost}."
    )
    if result["uncounted"]:
        lines.append(f"The server did not report the tokens of {result['uncounted']} judgements.")
    return [*lines, f"Judgements: {result['judgements']}"]
