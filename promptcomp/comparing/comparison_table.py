"""A comparison for people (Rich), spreadsheets (CSV), pages (Markdown) and programs (JSON)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from promptcomp.comparing.comparison import Comparison, ComparisonRow, SplitComparison
from promptcomp.evaluation.formatting import METRIC_TITLES, bytes_text, value_text
from promptcomp.evaluation.results import Interval
from promptcomp.terminal import open_table

WIDE = 110
"""Console columns from which bounds and sizes are shown too."""


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print one table for each split; the console's width decides how much detail is shown."""
    for split in comparison.splits:
        console.print(_split_table(comparison, split, console.width >= WIDE))
        for text in _notes(split):
            console.print(Text(text, style="italic"))
        console.print()
    for note in comparison.of_all:
        console.print(Text(note, style="italic"))


def to_csv(comparison: Comparison) -> str:
    """One line for each run and split, numbers in full precision, empty where there is none."""
    found = records(comparison)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return out.getvalue()


def to_markdown(comparison: Comparison) -> str:
    """One table for each split."""
    parts = []
    for split in comparison.splits:
        head, rows = _cells(comparison, split, detail=2)
        lines = [f"### {_title(split)}", "", _line(head), _line([*["---"] * 3, *["---:"] * (len(head) - 3)])]
        lines += [_line(row) for row in rows]
        parts.append("\n".join([*lines, "", *(f"- {note}" for note in _notes(split))]).rstrip())
    parts += [f"- {note}" for note in comparison.of_all]
    return "\n\n".join(parts) + "\n"


def to_json(comparison: Comparison) -> str:
    """Everything the comparison holds, as one JSON object."""
    found = records(comparison)
    splits = [
        {
            "split": split.split,
            "metric": split.metric,
            "count": split.count,
            "same_examples": split.same_examples,
            "same_bounds": split.same_bounds,
            "rows": [record for record in found if record["split"] == split.split],
            "seed_means": [asdict(mean) for mean in split.seed_means],
            "notes": list(split.notes),
        }
        for split in comparison.splits
    ]
    tree = {"baseline": comparison.runs[0].label, "splits": splits, "notes": list(comparison.of_all)}
    return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Comparison], str]] = {"csv": to_csv, "markdown": to_markdown, "json": to_json}
"""Renderings that do not depend on a terminal."""


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """A flat record for each run and split."""
    return [_record(split, row) for split in comparison.splits for row in split.rows]


def _record(split: SplitComparison, row: ComparisonRow) -> dict[str, Any]:
    results = row.run.results
    return {
        "split": split.split,
        "metric": split.metric,
        "rank": row.rank,
        "run": row.run.label,
        "method": results.method,
        "data": results.data,
        "lm": results.lm,
        "seed": results.seed,
        "value": row.method,
        **_bounds("value", row.method_ci),
        "delta": row.delta,
        **_bounds("delta", row.delta_ci),
        "no_prompt": row.no_prompt,
        "full_prompt": row.full_prompt,
        "bounds": results.bounds,
        "retained": row.retained,
        **_bounds("retained", row.retained_ci),
        "no_headroom": row.no_headroom,
        "compression": results.size.compression,
        "memory_bytes": results.size.memory_bytes,
        "memory_kv_bytes": results.size.memory_kv_bytes,
        "context_bytes": results.size.context_bytes,
        "flops_ratio": results.cost.flops_ratio,
    }


def _bounds(name: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = interval if interval is not None else (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _split_table(comparison: Comparison, split: SplitComparison, wide: bool) -> Table:
    head, rows = _cells(comparison, split, detail=int(wide))
    table = open_table(_title(split))
    for column in head:
        justify: Literal["left", "right"] = "left" if column in ("run", "method") else "right"
        table.add_column(column, justify=justify, no_wrap=column != "run", overflow="fold")
    for cells, row in zip(rows, split.rows, strict=True):
        table.add_row(*cells, style="bold" if row.rank == 1 else "")
    return table


def _cells(comparison: Comparison, split: SplitComparison, detail: int) -> tuple[list[str], list[list[str]]]:
    """Head and body of a split's table: 0 for a narrow terminal, 1 for a wide one, 2 for a page."""
    score = METRIC_TITLES.get(split.metric, split.metric)
    head = [("#", 0), ("run", 0), ("method", 1), (score, 0), ("delta", 0), ("no prompt", 1), ("full prompt", 1)]
    head += [("retained", 0), ("ratio", 0), ("stored", 2), ("KV in use", 2)]
    shown = [level <= detail for _, level in head]
    body = []
    for row in split.rows:
        results = row.run.results
        cells = [
            "-" if row.rank is None else str(row.rank),
            row.run.label,
            results.title or results.method,
            value_text(row.method, row.method_ci),
            _delta_text(comparison, row),
            value_text(row.no_prompt, None),
            value_text(row.full_prompt, None),
            "no headroom" if row.no_headroom else value_text(row.retained, row.retained_ci if detail > 1 else None, 2),
            "-" if results.size.compression is None else f"{results.size.compression:.1f}x",
            bytes_text(results.size.memory_bytes),
            bytes_text(results.size.memory_kv_bytes),
        ]
        body.append([cell for cell, wanted in zip(cells, shown, strict=True) if wanted])
    return [title for (title, _), wanted in zip(head, shown, strict=True) if wanted], body


def _delta_text(comparison: Comparison, row: ComparisonRow) -> str:
    if row.run is comparison.runs[0]:
        return "baseline"
    if row.delta is None:
        return "-"
    text = f"{row.delta:+.3f}"
    return text if row.delta_ci is None else f"{text} [{row.delta_ci[0]:+.2f}, {row.delta_ci[1]:+.2f}]"


def _notes(split: SplitComparison) -> list[str]:
    """Means over seeds, then what else there is to say."""
    lines = []
    for mean in split.seed_means:
        text = f"mean of {len(mean.runs)} seeds ({', '.join(mean.runs)}): {mean.value:.3f} ± {mean.value_std:.3f}"
        kept = "" if mean.retained is None else f", retained {mean.retained:.3f} ± {mean.retained_std:.3f}"
        lines.append(text + kept)
    return [*lines, *split.notes]


def _title(split: SplitComparison) -> str:
    lower = ", lower is better" if split.metric == "loss" else ""
    ranked = "best first" if split.same_examples else "different test examples, not ranked"
    return f"{split.split}: {split.count:,} examples, {ranked}{lower}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
