"""The bench as tables for people; 80 columns are enough."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from promptcomp.bench.measurements import WAYS, Bench, Record, Spread
from promptcomp.evaluation.formatting import bytes_text, flops_text, ms_text, number_text
from promptcomp.plotting import COLOURS, GREY, LINES, drawing, save
from promptcomp.terminal import open_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


WIDE = 100


def print_bench(bench: Bench, console: Console) -> None:
    """All lengths, the skipped ones in words, and how to read the numbers."""
    weights = "trained weights" if bench.trained else "untrained weights"
    console.print(
        Text.assemble(
            (bench.method, "bold"),
            f" on {bench.lm} ({weights}), {bench.dtype}, {bench.device}, "
            f"{bench.threads} thread(s); query {bench.query_tokens} tokens, answer {bench.new_tokens} tokens",
        ),
        highlight=False,
    )
    for tokens in bench.lengths:
        for table in (
            _serving_table(bench, tokens, console.width >= WIDE),
            _making_table(bench, tokens, console.width >= WIDE),
            _break_even_table(bench, tokens),
        ):
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


def _serving_table(bench: Bench, tokens: int, wide: bool) -> Table:
    """One query behind the prompt, in each way."""
    columns = ("FLOPs", *(["counted"] if wide else []), "first token", "tokens/s", "kept")
    table = _table(f"{tokens:,} prompt tokens: one query", ("way",), (*columns, *(["KV in use"] if wide else [])))
    for rows in bench.batch_sizes:
        for number, record in enumerate(bench.at(tokens, rows)):
            head = [str(rows) if number == 0 else "", WAYS[record.way]]
            style = "bold" if record.way == "compressed" else ""
            if record.not_possible:
                table.add_row(*head, "not possible", style="dim")
                continue
            speed = record.tokens_per_second
            cells = [
                flops_text(record.first_token_flops),
                *([flops_text(record.first_token_flops_counted)] if wide else []),
                _ms(record.first_token_ms),
                "-" if speed is None else number_text(round(speed.median)),
                bytes_text(record.held_bytes),
                *([bytes_text(record.kv_bytes)] if wide else []),
            ]
            table.add_row(*head, *cells, style=style)
    reasons = {r.not_possible for r in bench.records if r.not_possible}
    table.caption = "; ".join(f"not possible: {reason}" for reason in sorted(reasons)) or None
    table.caption_justify = "left"
    return table


def _making_table(bench: Bench, tokens: int, wide: bool) -> Table:
    """What is done once for the prompt."""
    columns = ("FLOPs", *(["counted"] if wide else []), "time", "file", "loading it")
    table = _table("made once for a prompt", ("what",), columns)
    for rows in bench.batch_sizes:
        made = [r for r in bench.at(tokens, rows) if r.making is not None]
        for number, record in enumerate(made):
            making = record.making
            assert making is not None
            table.add_row(
                str(rows) if number == 0 else "",
                WAYS[record.way],
                flops_text(making.flops),
                *([flops_text(making.flops_counted)] if wide else []),
                _ms(making.ms),
                bytes_text(making.file_bytes),
                "-" if making.load_ms is None else ms_text(making.load_ms.median),
                style="bold" if record.way == "compressed" else "",
            )
    return table


def _break_even_table(bench: Bench, tokens: int) -> Table:
    """Uses of the prompt from which compressing pays."""
    columns = ("first token,\nFLOPs", "\ntime", "answer,\nFLOPs", "\ntime")
    table = _table("compressing pays from this number of queries on", ("way", "against"), columns)
    for rows in bench.batch_sizes:
        head = str(rows)
        for record in bench.at(tokens, rows):
            way = WAYS[record.way]
            for rival, verdicts in record.break_even.items():
                keys = ("first_token_flops", "first_token_seconds", "answer_flops", "answer_seconds")
                table.add_row(head, way, WAYS[rival], *(verdicts[key].text for key in keys))
                head = way = ""
    return table


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = open_table(title, right=["batch"], show_edge=True)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _ms(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    share = (spread.high - spread.low) / 2 / spread.median if spread.median else 0.0
    return f"{ms_text(spread.median)} ±{share:.0%}"


_COLOURS = dict(zip(WAYS, (GREY, *COLOURS), strict=False))


def plot(bench: Bench, folder: Path) -> list[Path]:
    """Write bench.png and bench.svg; matplotlib must be there."""
    with drawing():
        return save(_draw(bench), folder, "bench")


def _draw(bench: Bench) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4))
    times, kept = figure.subplots(1, 2)
    for number, rows in enumerate(bench.batch_sizes):
        for way, title in WAYS.items():
            records = [r for r in bench.records if (r.way, r.batch_size) == (way, rows) and not r.not_possible]
            if not records:
                continue
            style = {"color": _COLOURS[way], "linestyle": LINES[number % len(LINES)], "marker": "."}
            lengths = [record.prompt_tokens for record in records]
            label = title if len(bench.batch_sizes) == 1 else f"{title}, batch {rows}"
            times.plot(lengths, [_first_token(record) for record in records], label=label, **style)
            if number == 0 and way != "no_cache":
                kept.plot(lengths, [record.held_bytes / 2**20 for record in records], label=title, **style)
    for axes, name in ((times, "ms to the first token"), (kept, "MiB kept for one prompt")):
        axes.set_xlabel("prompt tokens")
        axes.set_ylabel(name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.legend()
    figure.suptitle(f"{bench.method} on {bench.lm}, {bench.dtype}, {bench.device}")
    return figure


def _first_token(record: Record) -> float:
    assert record.first_token_ms is not None
    return record.first_token_ms.median
