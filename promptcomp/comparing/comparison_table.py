"""A comparison as a table (Rich), CSV, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from promptcomp.comparing.comparison import Comparison, ComparisonRow, SplitComparison
from promptcomp.evaluation.formatting import METRIC_TITLES, bytes_text, many, value_text
from promptcomp.evaluation.predictions import LOWER_IS_BETTER
from promptcomp.evaluation.results import Interval
from promptcomp.plain import csv_text
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


def page_tables(comparison: Comparison) -> list[dict[str, Any]]:
    """The tables for a page: title, columns, rows and notes of each split."""
    tables = []
    for split in comparison.splits:
        columns, rows = _cells(comparison, split, detail=2)
        tables.append({"title": _title(split), "columns": columns, "rows": rows, "notes": _notes(split)})
    return [*tables[:-1], *({**each, "notes": [*each["notes"], *comparison.of_all]} for each in tables[-1:])]


def to_csv(comparison: Comparison) -> str:
    """One line for each run and split, numbers in full precision, empty where there is none."""
    found = records(comparison)
    return csv_text(list(found[0]), (list(record.values()) for record in found))


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
    return dict(zip((f"{name}_low", f"{name}_high"), interval or (None, None), strict=True))


def _split_table(comparison: Comparison, split: SplitComparison, wide: bool) -> Table:
    head, rows = _cells(comparison, split, detail=int(wide))
    table = open_table(_title(split))
    for name in head:
        right = name not in ("run", "method")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "run", overflow="fold")
    for cells, row in zip(rows, split.rows, strict=True):
        table.add_row(*cells, style="bold" if row.rank == 1 else "")
    return table


def _cells(comparison: Comparison, split: SplitComparison, detail: int) -> tuple[list[str], list[list[str]]]:
    """Head and body of a split's table: 0 for a narrow terminal, 1 for a wide one, 2 for a page."""
    head: list[str] = []
    body = []
    for row in split.rows:
        results, retained_ci = row.run.results, row.retained_ci if detail > 1 else None
        compression, delta = results.size.compression, value_text(row.delta, row.delta_ci, "+.3f", "+.2f")
        cells = [
            (0, "#", "-" if row.rank is None else str(row.rank)),
            (0, "run", row.run.label),
            (1, "method", results.title or results.method),
            (0, METRIC_TITLES.get(split.metric, split.metric), value_text(row.method, row.method_ci)),
            (0, "delta", "baseline" if row.run is comparison.runs[0] else delta),
            (1, "no prompt", value_text(row.no_prompt, None)),
            (1, "full prompt", value_text(row.full_prompt, None)),
            (0, "retained", "no headroom" if row.no_headroom else value_text(row.retained, retained_ci, ".2f")),
            (0, "ratio", "-" if compression is None else f"{compression:.1f}x"),
            (2, "stored", bytes_text(results.size.memory_bytes)),
            (2, "KV in use", bytes_text(results.size.memory_kv_bytes)),
        ]
        head = [name for level, name, _ in cells if level <= detail]
        body.append([text for level, _, text in cells if level <= detail])
    return head, body


def _notes(split: SplitComparison) -> list[str]:
    """Means over seeds, then what else there is to say."""
    lines = []
    for mean in split.seed_means:
        text = f"mean of {len(mean.runs)} seeds ({', '.join(mean.runs)}): {mean.value:.3f} ± {mean.value_std:.3f}"
        kept = "" if mean.retained is None else f", retained {mean.retained:.3f} ± {mean.retained_std:.3f}"
        lines.append(text + kept)
    return [*lines, *split.notes]


def _title(split: SplitComparison) -> str:
    lower = ", lower is better" if split.metric in LOWER_IS_BETTER else ""
    ranked = "best first" if split.same_examples else "different test examples, not ranked"
    return f"{split.split}: {many(split.count, 'example')}, {ranked}{lower}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
