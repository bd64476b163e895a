"""One call of `promptcomp judge`: what is to be judged, what it will cost, judging, and the result."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from promptcomp.chat import AskingEstimate, AskingSession, Prices, Writing, now
from promptcomp.files import write_atomic
from promptcomp.judge.judge_prompt import load_prompt
from promptcomp.judge.pairs import Matched, Pair, Side, choose, is_swapped, match, read_side
from promptcomp.judge.verdicts import Exchange, Judgement, JudgementHeader, open_judgements
from promptcomp.judge.win_rates import Malformed, SplitSummary, summarise

POOLED = "all splits"


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """Which texts are judged, and how."""

    a: Path
    b: Path
    judge: str
    """Identity of the judge: the endpoint's model, or `local:PATH`."""
    url: str | None = None
    row_a: str = "method"
    row_b: str = "method"
    splits: tuple[str, ...] = ()
    examples: int | None = None
    """Most examples of each split; None: all."""
    seed: int = 42
    prompt: Path | None = None
    """A judge prompt of one's own."""
    max_tokens: int = 300
    attempts: int = 3
    ask_identical: bool = False
    """Ask about identical answers too instead of counting them as ties."""
    retry_malformed: bool = False
    """Ask anew where an earlier call got no judgement that could be read."""
    output: Path | None = None


class JudgeSession(AskingSession[Judgement]):
    """Pairs, the record, and what is still to be asked. Use as a context manager.

    Raises:
        ConfigError: texts, prompt or record cannot be used.
    """

    name = "judge"
    marks = ("won", "lost", "ties", "unread")
    made = "judgements were made by this call"
    local_chat = True
    answer_tokens = 80

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings = settings
        side_a, side_b = read_side(settings.a, settings.row_a), read_side(settings.b, settings.row_b)
        self.name_a, self.name_b = _names(side_a, side_b)
        self.matched: Matched = match(side_a, side_b, settings.splits)
        prompt = load_prompt(settings.prompt)
        header = JudgementHeader(
            judge=settings.judge,
            prompt_sha256=prompt.sha256,
            max_tokens=settings.max_tokens,
            a=self.name_a,
            b=self.name_b,
            url=settings.url,
            created=now(),
        )
        self.writing = Writing(settings.max_tokens)
        self.pairs: list[tuple[Pair, Exchange | None]] = []
        for pair in choose(self.matched.pairs, settings.examples, settings.seed):
            swapped = is_swapped(settings.seed, pair.split, pair.example)
            exchange = Exchange(pair, swapped, prompt, header, settings.attempts)
            self.pairs.append((pair, None if pair.identical and not settings.ask_identical else exchange))
        self.record = open_judgements(settings.output or default_output(side_a, side_b), header)
        self.todo = [exchange for _, exchange in self.pairs if exchange is not None and self._is_open(exchange)]
        self.kept = sum(exchange is not None for _, exchange in self.pairs) - len(self.todo)
        """Pairs judged by earlier calls."""

    def _is_open(self, exchange: Exchange) -> bool:
        judgement = self.record.entries.get(exchange.key)
        return judgement is None or (judgement.choice is None and self.settings.retry_malformed)

    def estimate(self, prices: Prices) -> AskingEstimate:
        """Calls and tokens still to come; the most: every answer takes all attempts and all tokens."""
        calls = len(self.todo)
        prompt, completion = sum(exchange.prompt_tokens for exchange in self.todo), self.answer_tokens * calls
        cost = prices.cost(prompt, completion)
        return AskingEstimate(
            calls,
            cost,
            f"{calls:,} calls, about {prompt:,} prompt tokens and {completion:,} completion tokens (at most"
            f" {self.settings.max_tokens * self.settings.attempts * calls:,})"
            + ("" if cost is None else f", about {cost:,.2f} at the given prices"),
        )

    def marks_of(self, answer: Judgement) -> tuple[str]:
        return ({"a": "won", "b": "lost", "tie": "ties", None: "unread"}[answer.winner],)

    def summaries(self, malformed: Malformed) -> list[SplitSummary]:
        """One for each split, and one for all together when there are several."""
        splits = list(dict.fromkeys(pair.split for pair, _ in self.pairs))
        groups = [(split, [both for both in self.pairs if both[0].split == split]) for split in splits]
        if len(groups) > 1:
            groups.append((POOLED, self.pairs))
        judgements, seed = self.record.entries, self.settings.seed
        return [summarise(name, group, judgements, malformed, seed) for name, group in groups]

    def result(self, malformed: Malformed, prices: Prices) -> dict[str, Any]:
        """Everything that was found, for machines; the tokens are those of all judgements that were used."""
        used = [
            self.record.entries[exchange.key]
            for _, exchange in self.pairs
            if exchange is not None and exchange.key in self.record.entries
        ]
        prompt, completion = sum(j.prompt_tokens or 0 for j in used), sum(j.completion_tokens or 0 for j in used)
        return {
            "a": self.name_a,
            "b": self.name_b,
            "judge": self.settings.judge,
            "models": sorted({j.model for j in used if j.model}),
            "seed": self.settings.seed,
            "malformed_count_as": malformed,
            "splits": {s.split: s.model_dump(exclude={"split"}) for s in self.summaries(malformed)},
            "only_a": self.matched.only_a,
            "only_b": self.matched.only_b,
            "calls": sum(j.attempts for j in used),
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "uncounted": sum(j.attempts > 0 and j.prompt_tokens is None for j in used),
            "cost": prices.cost(prompt, completion),
            "cut": sum(j.cut for j in used),
            "judgements": str(self.record.path),
        }

    def write_result(self, malformed: Malformed, prices: Prices) -> Path:
        """Write the result beside the record.

        Raises:
            ConfigError: it cannot be written.
        """
        path = self.record.path.with_name(self.record.path.name.removesuffix(".jsonl") + ".summary.json")
        write_atomic(path, json.dumps(self.result(malformed, prices), indent=2) + "\n")
        return path


def default_output(side_a: Side, side_b: Side) -> Path:
    """Beside side a, named after both sides."""
    folder = side_a.path if side_a.path.is_dir() else side_a.path.parent
    names = [side.name.replace(":", ".") for side in (side_a, side_b)]
    return folder / f"judgements_{names[0]}_vs_{names[1]}.jsonl"


def _names(side_a: Side, side_b: Side) -> tuple[str, str]:
    """Names that differ: runs in different folders may have the same last part."""
    if side_a.name != side_b.name:
        return side_a.name, side_b.name
    long = [replace(side, name=str(side.path) + (f":{side.row}" if side.row else "")) for side in (side_a, side_b)]
    return long[0].name, long[1].name


def print_result(session: JudgeSession, result: dict[str, Any], console: Console) -> None:
    """The table and whatever a reader of it must know."""
    table = Table(title=f"{result['a']} against {result['b']}, judged by {result['judge']}", title_justify="left")
    for name in ("split", "judged", "win rate", "won", "lost", "ties", "unread", "first shown won"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, found in result["splits"].items():
        unread = found["malformed"] + found["refused"]
        table.add_row(
            split,
            str(found["count"]),
            _share(found["win_rate"], found["win_rate_ci"]),
            *(str(found[name]) for name in ("wins", "losses", "ties")),
            str(unread),
            _share(found["first_rate"], found["first_rate_ci"]),
        )
    console.print(table)
    for line in remarks(session, result):
        console.print(line, markup=False, highlight=False)


def remarks(session: JudgeSession, result: dict[str, Any]) -> list[str]:
    """Sentences about what is odd, what was used and where it is."""
    own = list(result["splits"].values())[-1]  # the only split, or all of them together
    lines = []
    if own["identical"]:
        lines.append(f"{own['identical']} pairs of identical answers are ties and were not asked about.")
    if own["malformed"]:
        cut = f" ({result['cut']} of them cut at --max-tokens)" if result["cut"] else ""
        way = "left out" if result["malformed_count_as"] == "drop" else "counted as ties"
        lines.append(f"{own['malformed']} malformed answers{cut} were {way}; --retry-malformed asks anew.")
    if own["refused"]:
        way = "left out" if result["malformed_count_as"] == "drop" else "counted as ties"
        lines.append(f"{own['refused']} refused requests were {way}; the record says why.")
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
        lines.append(f"The server did not tell the tokens of {result['uncounted']} judgements.")
    return [*lines, f"Judgements: {result['judgements']}"]


def _share(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if interval is None else f"{value:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]"
