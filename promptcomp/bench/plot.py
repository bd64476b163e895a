"""Time to the first token and bytes kept over the prompt's length (matplotlib, the extra "plots")."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from promptcomp.bench.measurements import WAYS, Bench, Record
from promptcomp.plotting import COLOURS, GREY, LINES, drawing, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
