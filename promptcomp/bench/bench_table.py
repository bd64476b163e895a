"""The bench as tables for people; 80 columns are enough."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from promptcomp.bench.measurements import WAYS, Bench, Spread
from promptcomp.evaluation.formatting import bytes_text, flops_text, ms_text, number_text

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
        console.print()
        console.print(length_tables(bench, tokens, console.width))
    for line in bench.skipped:
        console.print(f"\nskipped: {line}", highlight=False)
    console.print(
        "\nFLOPs of one query, times of the whole batch (median ± half the quartile range).\n"
        "unclear: the times of one use do not differ by more than their quartiles.",
        style="dim",
        highlight=False,
    )


def length_tables(bench: Bench, tokens: int, width: int) -> RenderableType:
    """Serving, making and break-even at one prompt length."""
    parts: list[RenderableType] = [
        serving_table(bench, tokens, width),
        Text(),
        making_table(bench, tokens, width),
        Text(),
    ]
    return Group(*parts, break_even_table(bench, tokens))


def serving_table(bench: Bench, tokens: int, width: int) -> Table:
    """One query behind the prompt, in each way."""
    table = _table(f"{tokens:,} prompt tokens: one query", "batch", "way")
    wide = width >= WIDE
    for column in ("FLOPs", *(["counted"] if wide else []), "first token", "tokens/s", "kept"):
        table.add_column(column, justify="right", no_wrap=True)
    if wide:
        table.add_column("KV in use", justify="right", no_wrap=True)
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


def making_table(bench: Bench, tokens: int, width: int) -> Table:
    """What is done once for the prompt."""
    table = _table("made once for a prompt", "batch", "what")
    for column in ("FLOPs", *(["counted"] if width >= WIDE else []), "time", "file", "loading it"):
        table.add_column(column, justify="right", no_wrap=True)
    for rows in bench.batch_sizes:
        made = [r for r in bench.at(tokens, rows) if r.making is not None]
        for number, record in enumerate(made):
            making = record.making
            assert making is not None
            table.add_row(
                str(rows) if number == 0 else "",
                WAYS[record.way],
                flops_text(making.flops),
                *([flops_text(making.flops_counted)] if width >= WIDE else []),
                _ms(making.ms),
                bytes_text(making.file_bytes),
                "-" if making.load_ms is None else ms_text(making.load_ms.median),
                style="bold" if record.way == "compressed" else "",
            )
    return table


def break_even_table(bench: Bench, tokens: int) -> Table:
    """Uses of the prompt from which compressing pays."""
    table = _table("compressing pays from this number of queries on", "batch", "way", "against")
    for column in ("first token,\nFLOPs", "\ntime", "answer,\nFLOPs", "\ntime"):
        table.add_column(column, justify="right", no_wrap=True)
    for rows in bench.batch_sizes:
        head = str(rows)
        for record in bench.at(tokens, rows):
            way = WAYS[record.way]
            for rival, verdicts in record.break_even.items():
                keys = ("first_token_flops", "first_token_seconds", "answer_flops", "answer_seconds")
                table.add_row(head, way, WAYS[rival], *(verdicts[key].text for key in keys))
                head = way = ""
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in columns:
        table.add_column(column, justify="right" if column == "batch" else "left", no_wrap=True)
    return table


def _ms(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    share = (spread.high - spread.low) / 2 / spread.median if spread.median else 0.0
    return f"{ms_text(spread.median)} ±{share:.0%}"
