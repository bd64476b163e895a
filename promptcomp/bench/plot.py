"""Time to the first token and bytes kept over the prompt's length (matplotlib, the extra "plots")."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from promptcomp.bench.results import WAYS, Bench, Record
from promptcomp.files import replacing

MISSING = 'no plot: matplotlib is not installed; pip install "promptcomp[plots]"'
FILES = ("bench.png", "bench.svg")
_COLOURS = {
    "no_cache": "tab:gray",
    "prefix_cache": "tab:blue",
    "compressed": "tab:red",
    "compressed_cached": "tab:orange",
}
_LINES = ("-", "--", ":", "-.")


def can_plot() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def plot(bench: Bench, folder: Path) -> list[Path]:
    """Write the plot as PNG and SVG; matplotlib must be there."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    times, kept = figure.subplots(1, 2)
    for number, rows in enumerate(bench.batch_sizes):
        for way, title in WAYS.items():
            records = [r for r in bench.records if (r.way, r.batch_size) == (way, rows) and not r.not_possible]
            if not records:
                continue
            style = {"color": _COLOURS[way], "linestyle": _LINES[number % len(_LINES)], "marker": "."}
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
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(f"{bench.method} on {bench.lm}, {bench.dtype}, {bench.device}")
    paths = [folder / name for name in FILES]
    for path in paths:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=150)
    return paths


def _first_token(record: Record) -> float:
    assert record.first_token_ms is not None
    return record.first_token_ms.median
