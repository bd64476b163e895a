"""Results of the bench: one record for each way of serving, prompt length and batch size; files, tables, picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from promptcomp.config import flat
from promptcomp.evaluation.flops import break_even
from promptcomp.evaluation.formatting import bytes_text, flops_text, many, ms_text
from promptcomp.plain import csv_text
from promptcomp.plotting import COLOURS, GREY, LINES, drawing, panels, save
from promptcomp.terminal import open_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Way = Literal["no_cache", "prefix_cache", "compressed", "compressed_cached"]
WAYS: dict[Way, str] = {
    "no_cache": "no cache",
    "prefix_cache": "prefix cache",
    "compressed": "compressed",
    "compressed_cached": "compressed+KV",
}
"""Titles: the prompt read anew with every query; its whole KV (T5: encoder output) kept; the method's memory; for
methods that make vectors, the KV of those vectors kept."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of warm runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high)

    def overlaps(self, other: Spread) -> bool:
        """Whether the interquartile ranges of the two overlap."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Uses of a prompt between which compressing costs no more than the alternative; see flops.break_even."""

    first: int | None
    last: int | None
    sure: bool = True
    """False: the two times of one use lie within each other's quartiles."""

    @property
    def text(self) -> str:
        """ "never", "3", "1 to 7"; "unclear" when the difference is within the spread."""
        if not self.sure:
            return "unclear"
        if self.first is None:
            return "never"
        return f"{self.first:,}" if self.last is None else f"{self.first:,} to {self.last:,}"


@dataclass(slots=True)
class Making:
    """The cost of compressing or caching a prompt once: FLOPs, milliseconds, and the file of the memory."""

    flops: float
    flops_counted: float
    ms: Spread
    file_bytes: int | None = None
    load_ms: Spread | None = None


@dataclass(slots=True)
class Timing:
    """One way of serving at one length and batch size; FLOPs and bytes are of one query or prompt."""

    way: Way
    prompt_tokens: int
    batch_size: int
    not_possible: str = ""
    """Why this way does not exist here; the rest is then empty."""
    positions: float = 0.0
    """Positions of the prompt that are kept."""
    held_bytes: float = 0.0
    """Kept for one prompt between two queries."""
    kv_bytes: float = 0.0
    """Keys and values of the prompt's positions while an answer is made."""
    first_token_flops: float = 0.0
    first_token_flops_counted: float = 0.0
    answer_flops: float = 0.0
    first_token_ms: Spread | None = None
    """Of the whole batch."""
    answer_ms: Spread | None = None
    """Of the whole batch, to its last new token."""
    tokens_per_second: Spread | None = None
    """Of the whole batch, after the first token."""
    making: Making | None = None
    break_even: dict[Way, dict[str, BreakEven]] = field(default_factory=dict)
    """Rival ("no_cache", "prefix_cache") -> "first_token_flops", "first_token_seconds", "answer_flops",
    "answer_seconds". The rival's cache is made once too, and that counts on its side."""


@dataclass(slots=True)
class Bench:
    """All records and the conditions they were measured under."""

    method: str
    lm: str
    trained: bool
    """False: random weights (the cost is the same)."""
    device: str
    dtype: str
    threads: int
    query_tokens: int
    new_tokens: int
    repeats: int
    seed: int
    version: str
    records: list[Timing] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Lengths that were not measured, in words."""

    @property
    def lengths(self) -> list[int]:
        """The prompt lengths that were measured."""
        return sorted({record.prompt_tokens for record in self.records})

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes."""
        return sorted({record.batch_size for record in self.records})

    def at(self, prompt_tokens: int) -> list[Timing]:
        """The ways of serving at one length."""
        return [record for record in self.records if record.prompt_tokens == prompt_tokens]


def add_break_even(records: Iterable[Timing]) -> None:
    """Fill in `break_even` of the compressed ways from the other ways at the same point."""
    found = {record.way: record for record in records if not record.not_possible}
    rivals = {way: found[way] for way in WAYS if way in found and not way.startswith("compressed")}
    for way in found.keys() - rivals.keys():
        found[way].break_even |= {name: _against(found[way], rival) for name, rival in rivals.items()}


def _against(ours: Timing, theirs: Timing) -> dict[str, BreakEven]:
    verdicts = {}
    for key in ("first_token_flops", "answer_flops"):
        once = [0.0 if r.making is None else r.making.flops for r in (ours, theirs)]
        verdicts[key] = BreakEven(*break_even(once[0], getattr(ours, key), once[1], getattr(theirs, key)))
    for key in ("first_token", "answer"):
        mine, other = getattr(ours, f"{key}_ms"), getattr(theirs, f"{key}_ms")
        once = [0.0 if r.making is None else r.making.ms.median for r in (ours, theirs)]
        each = [spread.median / r.batch_size for spread, r in ((mine, ours), (other, theirs))]
        span = break_even(once[0], each[0], once[1], each[1])
        verdicts[f"{key}_seconds"] = BreakEven(*span, sure=not mine.overlaps(other))
    return verdicts


def as_json(bench: Bench) -> str:
    """The whole bench as one JSON document."""
    return json.dumps(asdict(bench), indent=1)


def as_csv(bench: Bench) -> str:
    """One line for each record, nested names joined by dots."""
    flattened = [flat(asdict(record)) for record in bench.records]
    rows = [{name: value for name, value in row.items() if value not in (None, {})} for row in flattened]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ([bench.method, bench.lm, *map(row.get, columns)] for row in rows)
    return csv_text(["method", "lm", *columns], lines)


WIDE = 100


def print_bench(bench: Bench, console: Console) -> None:
    """All lengths, the skipped ones in words, and how to read the numbers."""
    weights = "trained weights" if bench.trained else "untrained weights"
    console.print(
        Text.assemble(
            (bench.method, "bold"),
            f" on {bench.lm} ({weights}), {bench.dtype}, {bench.device}, "
            f"{many(bench.threads, 'thread')}; query {many(bench.query_tokens, 'token')}, "
            f"answer {many(bench.new_tokens, 'token')}",
        ),
        highlight=False,
    )
    reasons, wide = {r.not_possible for r in bench.records if r.not_possible}, console.width >= WIDE
    for tokens in bench.lengths:
        serving = _cost_table(bench, tokens, wide, f"{tokens:,} prompt tokens: one query", "way", _SERVING)
        serving.caption = "; ".join(f"not possible: {reason}" for reason in sorted(reasons)) or None
        serving.caption_justify = "left"
        making = _cost_table(bench, tokens, wide, "made once for a prompt", "what", _MAKING, attrgetter("making"))
        for table in (serving, making, _break_even_table(bench, tokens)):
            console.print()
            console.print(table)
    for line in bench.skipped:
        console.print(f"\nskipped: {line}", highlight=False)
    console.print(
        "\nFLOPs of one query, times of the whole batch (median ± half the quartile range).\n"
        "unclear: the times of one use do not differ by more than their quartiles.",
        style="dim",
        highlight=False,
    )


_SERVING: dict[str, Callable[[Timing], str]] = {
    "FLOPs": lambda record: flops_text(record.first_token_flops),
    "counted": lambda record: flops_text(record.first_token_flops_counted),
    "first token": lambda record: _ms(record.first_token_ms),
    "tokens/s": lambda record: "-" if (speed := record.tokens_per_second) is None else f"{round(speed.median):,}",
    "kept": lambda record: bytes_text(record.held_bytes),
    "KV in use": lambda record: bytes_text(record.kv_bytes),
}
_MAKING: dict[str, Callable[[Making], str]] = {
    "FLOPs": lambda making: flops_text(making.flops),
    "counted": lambda making: flops_text(making.flops_counted),
    "time": lambda making: _ms(making.ms),
    "file": lambda making: bytes_text(making.file_bytes),
    "loading it": lambda making: ms_text(making.load_ms.median if making.load_ms else None),
}
_ONLY_WIDE = ("counted", "KV in use")


def _cost_table(
    bench: Bench, tokens: int, wide: bool, title: str, head: str, columns: Mapping[str, Callable[[Any], str]],
    of: Callable[[Timing], Any] = lambda record: record,
) -> Table:  # fmt: skip
    """What columns say `of` each record that has it, in each way."""
    shown = {name: text for name, text in columns.items() if wide or name not in _ONLY_WIDE}
    table = _table(title, (head,), tuple(shown))
    for first, record in _numbered(bench, [each for each in bench.at(tokens) if of(each) is not None]):
        cells = ["not possible"] if record.not_possible else [text(of(record)) for text in shown.values()]
        style = "dim" if record.not_possible else "bold" if record.way == "compressed" else ""
        table.add_row(first, WAYS[record.way], *cells, style=style)
    return table


def _numbered(bench: Bench, records: Sequence[Timing]) -> Iterator[tuple[str, Timing]]:
    """Records by batch size, which the first of each has beside it."""
    for rows in bench.batch_sizes:
        for number, record in enumerate(r for r in records if r.batch_size == rows):
            yield "" if number else str(rows), record


def _break_even_table(bench: Bench, tokens: int) -> Table:
    """Uses of the prompt from which compressing pays."""
    columns = ("first token,\nFLOPs", "\ntime", "answer,\nFLOPs", "\ntime")
    table = _table("compressing pays from this number of queries on", ("way", "against"), columns)
    keys = ("first_token_flops", "first_token_seconds", "answer_flops", "answer_seconds")
    for head, record in _numbered(bench, [r for r in bench.at(tokens) if r.break_even]):
        for number, (rival, verdicts) in enumerate(record.break_even.items()):
            first = ("", "") if number else (head, WAYS[record.way])
            table.add_row(*first, WAYS[rival], *(verdicts[key].text for key in keys))
    return table


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = open_table(title, right=["batch"], show_edge=True)
    for name in (*left, *right):
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    return table


def _ms(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    share = (spread.high - spread.low) / 2 / spread.median if spread.median else 0.0
    return f"{ms_text(spread.median)} ±{share:.0%}"


_COLOURS = dict(zip(WAYS, (GREY, *COLOURS), strict=False))


def plot(bench: Bench, folder: Path) -> list[Path]:
    """Write bench.png and bench.svg."""
    with drawing():
        return save(_draw(bench), folder, "bench")


def _draw(bench: Bench) -> Figure:
    figure, (times, kept) = panels(2, 2, size=(10, 4))
    for number, rows in enumerate(bench.batch_sizes):
        for way, title in WAYS.items():
            records = [r for r in bench.records if (r.way, r.batch_size) == (way, rows)]
            found = [
                (r.prompt_tokens, r.first_token_ms.median, r.held_bytes / 2**20) for r in records if r.first_token_ms
            ]
            if not found:
                continue
            style: dict[str, Any] = {"color": _COLOURS[way], "linestyle": LINES[number % len(LINES)], "marker": "."}
            lengths, first, held = zip(*found, strict=True)
            label = title if len(bench.batch_sizes) == 1 else f"{title}, batch {rows}"
            times.plot(lengths, first, label=label, **style)
            if number == 0 and way != "no_cache":
                kept.plot(lengths, held, label=title, **style)
    for axes, name in ((times, "ms to the first token"), (kept, "MiB kept for one prompt")):
        axes.set_xlabel("prompt tokens")
        axes.set_ylabel(name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.legend()
    figure.suptitle(f"{bench.method} on {bench.lm}, {bench.dtype}, {bench.device}")
    return figure
