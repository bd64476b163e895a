"""A curve as CSV and as a table for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from promptcomp.curve.summary import Cell, Curve, Reached
from promptcomp.evaluation.seeds import Mean


def points_csv(curve: Curve) -> str:
    """One line for each run."""
    header = ("method", "size", "parameters", "fraction", "seed", "split", "metric", "value", "steps", "run")
    lines = []
    for p in curve.points:
        where = [p.method, p.size, curve.parameters.get(p.size), p.fraction, p.seed]
        lines.append([*where, curve.split, curve.metric, p.value, p.steps, p.run])
    return _csv(header, lines)


def summary_csv(curve: Curve) -> str:
    """One line for each method, size and share; the columns of the differences are empty for the baselines."""
    header = ["method", "size", "parameters", "fraction", "rows", "seeds", "metric", "mean", "low", "high", "std"]
    for baseline in curve.baselines:
        header += [f"minus_{baseline}", f"minus_{baseline}_low", f"minus_{baseline}_high"]
    return _csv(header, (_summary_line(curve, cell) for cell in curve.cells))


def _summary_line(curve: Curve, cell: Cell) -> Sequence[Any]:
    parameters = curve.parameters.get(cell.size)
    start = [cell.method, cell.size, parameters, cell.fraction, cell.rows, cell.value.seeds, curve.metric]
    line = [*start, *_numbers(cell.value), cell.value.std]
    for baseline in curve.baselines:
        line += _numbers(cell.against.get(baseline))
    return line


def _numbers(mean: Mean | None) -> list[float | None]:
    if mean is None:
        return [None, None, None]
    return [mean.mean, *(mean.ci or (None, None))]


def _csv(header: Iterable[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if value is None else value for value in line] for line in lines)
    return text.getvalue()


def print_curve(curve: Curve, console: Console) -> None:
    """The table and what it says."""
    over = "one seed" if curve.seeds == 1 else f"mean over {curve.seeds} seeds, 95 % intervals"
    title = f"{curve.metric} on {curve.data} {curve.split}, {over}"
    table = Table(title=title, title_justify="left")
    many_sizes = len(curve.sizes) > 1
    if many_sizes:
        table.add_column("size")
        table.add_column("parameters", justify="right")
    table.add_column("share", justify="right")
    table.add_column("rows", justify="right")
    for name in (curve.method, *curve.baselines, *(f"minus {baseline}" for baseline in curve.baselines)):
        table.add_column(name, justify="right")
    cells = {(cell.method, cell.size, cell.fraction): cell for cell in curve.cells}
    for size in curve.sizes:
        for fraction in curve.fractions:
            found = [cells.get((name, size, fraction)) for name in (curve.method, *curve.baselines)]
            own, rows = found[0], next((cell.rows for cell in found if cell is not None), None)
            differences = [own.against.get(name) if own is not None else None for name in curve.baselines]
            start = [size, f"{curve.parameters.get(size) or 0:,}"] if many_sizes else []
            shown = [_shown(cell.value if cell is not None else None) for cell in found]
            differing = [_shown(mean, sign="+") for mean in differences]
            table.add_row(*start, f"{fraction:g}", "-" if rows is None else str(rows), *shown, *differing)
    console.print(table)
    for line in remarks(curve):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def remarks(curve: Curve) -> list[str]:
    """Sentences: where the baselines are reached, and what is missing."""
    lines = [_reached_text(curve, found) for found in curve.reached]
    if curve.seeds == 1 and curve.reached:
        lines.append("One seed has no interval: use --seeds 3 or more before believing a difference.")
    return [*lines, *(f"missing: {text}" for text in curve.missing)]


def _reached_text(curve: Curve, found: Reached) -> str:
    who = f"{found.size}: {curve.method}" if found.size else curve.method
    target = f"{found.baseline} with share {found.target_fraction:g} ({_shown(found.target)})"
    if found.fraction is None:
        text = f"{who} does not reach {target} at any share that was run"
    else:
        share = f"{'at most ' if found.at_most else 'about '}{found.fraction:.3g}"
        text = f"{who} reaches {target} with a share of {share} (first run that does: {found.first:g})"
    if found.ci is not None:
        low, high = found.ci
        end = "never" if high is None else f"{high:.3g}"
        text += f"; 95 % over draws of seeds: {low:.3g} to {end}"
    elif found.resampled is not None:
        text += f"; reached in {found.resampled:.0%} of the draws of seeds"
    return text + "."


def _shown(mean: Mean | None, sign: str = "") -> str:
    if mean is None:
        return "-"
    value = f"{mean.mean:{sign}.3f}"
    return value if mean.ci is None else f"{value} [{mean.ci[0]:{sign}.3f}, {mean.ci[1]:{sign}.3f}]"
