"""From instruction rows to token ids within budgets.

Context, query and target have separate budgets, so a long instruction never displaces what follows it. A piece over
its budget loses the end of its text, never what the template writes behind it ("Output:").
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from promptcomp.config import ConfigError
from promptcomp.datamodules.instruction.templates import Template
from promptcomp.datamodules.tasks import InstructionRow
from promptcomp.datamodules.tokens import TokenCache

_CHUNK = 4096  # rows that are tokenised in one call
_MAX_CHARACTERS = 64  # characters to a token that a cut text may have: longer texts need no exact search


@dataclass(frozen=True, slots=True)
class LongRows:
    """How many rows of a split are over a budget."""

    split: str
    rows: int
    """Rows that were looked at, the whole split or a part of it."""
    long: tuple[int, ...]
    """Places of the rows with a piece over its budget."""
    contexts: int
    """Rows whose context is too long; a row may count here and below."""
    queries: int
    targets: int

    def describe(self, too_long: str) -> str:
        """One sentence."""
        pieces = {"instruction": self.contexts, "input": self.queries, "output": self.targets}
        which = ", ".join(f"{count} by their {name}" for name, count in pieces.items() if count)
        done = {"cut": "cut on the right", "skip": "left out", "error": "refused"}[too_long]
        rows = f"{len(self.long)} of the {self.rows} rows checked"
        return f"{self.split}: {rows} are over a token budget ({which}) and are {done}"


class InstructionEncoder:
    """Writes and tokenises rows within the budgets of one split."""

    def __init__(self, template: Template, cache: TokenCache, limits: tuple[int, int, int]) -> None:
        """
        Args:
            template: What is written around the texts.
            cache: Tokenises; splits may share it.
            limits: Maximum number of tokens of context, query and target.

        Raises:
            ConfigError: the template alone is over a budget, or a query without an input has no token.
        """
        self.template, self.cache = template, cache
        self._limits = limits
        self._cut: dict[tuple[str, str], tuple[int, ...]] = {}
        closing = len(template.end_ids) if template.closes_query else 0
        self._context_room = limits[0] - len(template.context_end)
        self._query_room = limits[1] - closing
        empty = min(len(cache(template.query_text(""))), len(cache(template.query.replace("{input}", ""))))
        if len(cache(template.empty_query)) + closing == 0:
            raise ConfigError("data.template.empty_query: it has no token, but an answer must follow at least one")
        fixed = (
            len(cache(template.context_text(""))) + len(template.context_end),
            max(len(cache(template.empty_query)), empty) + closing,
            0,
        )
        names = ("max_context_tokens", "max_query_tokens")
        for name, needed, limit in zip(names, fixed, limits, strict=False):
            if needed > limit:
                raise ConfigError(f"data.{name} = {limit}: the template alone needs {needed} tokens")

    def context(self, instruction: str) -> tuple[int, ...]:
        """Ids of a context."""
        ids = self._fit("context", instruction, self.template.context_text, self._context_room)
        return (*ids, *self.template.context_end)

    def query(self, input_text: str) -> tuple[int, ...]:
        """Ids of a query; an input without a token is none."""
        closing = self.template.end_ids if self.template.closes_query else ()
        ids = self._fit("query", input_text, self.template.query_text, self._query_room)
        return (*(ids or self.cache(self.template.empty_query)), *closing)

    def target(self, output: str) -> tuple[int, ...]:
        """Ids of a target: the output and its end; an output over the budget has no end to learn."""
        ids = (*self.cache(self.template.output_text(output)), *self.template.end_ids)
        return ids[: self._limits[2]]

    def add(self, rows: Iterable[InstructionRow]) -> None:
        """Tokenise everything in the rows in one call."""
        self.cache.add(self.texts(rows))

    def texts(self, rows: Iterable[InstructionRow]) -> Iterator[str]:
        """Everything in the rows that is tokenised."""
        template = self.template
        for row in rows:
            yield template.context_text(row.instruction)
            yield template.query_text(row.input)
            yield template.output_text(row.output)

    def over_budget(self, row: InstructionRow) -> tuple[bool, bool, bool]:
        """Whether context, query and target of a row are too long."""
        template, cache = self.template, self.cache
        return (
            len(cache(template.context_text(row.instruction))) > self._context_room,
            len(cache(template.query_text(row.input))) > self._query_room,
            len(cache(template.output_text(row.output))) + len(template.end_ids) > self._limits[2],
        )

    def _fit(self, piece: str, text: str, write: Callable[[str], str], budget: int) -> tuple[int, ...]:
        ids = self.cache(write(text))
        if len(ids) <= budget:
            return tuple(ids)
        if (piece, text) not in self._cut:
            self._cut[piece, text] = tuple(self._longest(text, write, budget))
        return self._cut[piece, text]

    def _longest(self, text: str, write: Callable[[str], str], budget: int) -> array[int]:
        """Ids of the longest beginning of a text that fits, found by halving."""
        fits, too_long = 1, min(len(text), budget * _MAX_CHARACTERS) + 1
        found = self.cache.once(write(text[:1]))
        if len(found) > budget:  # not even one character: what the template writes is all that is left
            return self.cache.once(write(""))[:budget]
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            ids = self.cache.once(write(text[:middle]))
            if len(ids) <= budget:
                fits, found = middle, ids
            else:
                too_long = middle
        return found


def find_long_rows(split: str, rows: Sequence[InstructionRow], encoder: InstructionEncoder) -> LongRows:
    """Look for rows over a budget; what is tokenised on the way stays in the encoder's cache."""
    long: list[int] = []
    counts = [0, 0, 0]
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        encoder.add(chunk)
        for place, row in enumerate(chunk, start):
            over = encoder.over_budget(row)
            if any(over):
                long.append(place)
                counts = [count + flag for count, flag in zip(counts, over, strict=True)]
    return LongRows(split, len(rows), tuple(long), *counts)
