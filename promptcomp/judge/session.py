"""One call of `promptcomp judge`: what is to be judged, what it will cost, judging, and the result."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from promptcomp.endpoints import AskingSession, ChatClient, Prices
from promptcomp.files import write_atomic
from promptcomp.judge.asking import ANSWER_TOKENS, LocalModel, Seen, ask_endpoint, ask_local
from promptcomp.judge.exchange import Exchange
from promptcomp.judge.pairs import Matched, Pair, choose, is_swapped, match
from promptcomp.judge.prompt import load_prompt
from promptcomp.judge.record import Header, Judgement, Record
from promptcomp.judge.sources import Side, read_side
from promptcomp.judge.summary import Malformed, SplitSummary, summarise

POOLED = "all splits"


@dataclass(frozen=True, slots=True)
class Comparison:
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


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the judge will be asked, before it is."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    """If answers are as short as they should be."""
    most_completion_tokens: int
    """If every answer takes all attempts and all tokens."""
    cost: float | None


class Session(AskingSession[Exchange, Judgement]):
    """Pairs, the record, and what is still to be asked. Use as a context manager.

    Raises:
        ConfigError: texts, prompt or record cannot be used.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        side_a, side_b = read_side(comparison.a, comparison.row_a), read_side(comparison.b, comparison.row_b)
        self.name_a, self.name_b = _names(side_a, side_b)
        self.matched: Matched = match(side_a, side_b, comparison.splits)
        prompt = load_prompt(comparison.prompt)
        header = Header(
            judge=comparison.judge,
            prompt_sha256=prompt.sha256,
            max_tokens=comparison.max_tokens,
            a=self.name_a,
            b=self.name_b,
            url=comparison.url,
        )
        self.pairs: list[tuple[Pair, Exchange | None]] = []
        for pair in choose(self.matched.pairs, comparison.examples, comparison.seed):
            swapped = is_swapped(comparison.seed, pair.split, pair.example)
            exchange = Exchange(pair, swapped, prompt, header, comparison.attempts)
            self.pairs.append((pair, None if pair.identical and not comparison.ask_identical else exchange))
        self.record: Record = Record(comparison.output or default_output(side_a, side_b), header)
        self.todo = [exchange for _, exchange in self.pairs if exchange is not None and self._is_open(exchange)]
        self.kept = sum(exchange is not None for _, exchange in self.pairs) - len(self.todo)
        """Pairs judged by earlier calls."""

    def _is_open(self, exchange: Exchange) -> bool:
        judgement = self.record.entries.get(exchange.key)
        return judgement is None or (judgement.choice is None and self.comparison.retry_malformed)

    def estimate(self, prices: Prices) -> Estimate:
        """Calls and tokens still to come, by a rule of thumb of four bytes for a token."""
        prompt = sum(exchange.prompt_tokens for exchange in self.todo)
        completion = ANSWER_TOKENS * len(self.todo)
        most = self.comparison.max_tokens * self.comparison.attempts * len(self.todo)
        return Estimate(len(self.todo), prompt, completion, most, prices.cost(prompt, completion))

    async def _ask(self, client: ChatClient, concurrency: int, seen: Seen) -> None:
        await ask_endpoint(self.todo, client, self.record, concurrency, self.comparison.max_tokens, seen)

    def ask_local(self, model: LocalModel, batch_size: int, seen: Seen) -> None:
        """Have a local model judge what is left.

        Raises:
            AskingStopped: a person stopped it; what was judged is kept.
        """
        ask_local(self.todo, model, self.record, batch_size, self.comparison.max_tokens, seen)

    def summaries(self, malformed: Malformed) -> list[SplitSummary]:
        """One for each split, and one for all together when there are several."""
        splits = list(dict.fromkeys(pair.split for pair, _ in self.pairs))
        groups = [(split, [both for both in self.pairs if both[0].split == split]) for split in splits]
        if len(groups) > 1:
            groups.append((POOLED, self.pairs))
        judgements, seed = self.record.entries, self.comparison.seed
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
            "judge": self.comparison.judge,
            "models": sorted({j.model for j in used if j.model}),
            "seed": self.comparison.seed,
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
