"""What people see of asking a teacher: the estimate, a bar, the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from promptcomp.rationales.asking import Seen
from promptcomp.rationales.record import Completion

_MEANING = {
    "ok": "read as it stands",
    "repaired": "read, though cut or not quite in form",
    "empty": "no text",
    "no_marker": "the rationale does not end",
    "two_markers": "two conclusions",
    "empty_label": "no label",
    "out_of_set": "label is none of the options",
    "not_an_equation": "label has no value",
}


def estimate_text(estimate: tuple[int, int, int, float | None]) -> str:
    """The estimate in one sentence."""
    calls, prompt, most, cost = estimate
    price = "" if cost is None else f", at most about {cost:,.2f} at the given prices"
    return f"{calls:,} requests, about {prompt:,} prompt tokens and at most {most:,} new ones{price}"


@contextmanager
def progress(console: Console, total: int) -> Iterator[Seen]:
    """A bar; silent where no person reads."""
    columns = (TextColumn("[bold]rationales"), BarColumn(bar_width=24), TextColumn("{task.completed}/{task.total}"))
    rest = (TextColumn("{task.fields[state]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    cut = refused = 0
    with Progress(*columns, *rest, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, state="")

        def seen(completion: Completion) -> None:
            nonlocal cut, refused
            cut += completion.cut
            refused += completion.error is not None
            bar.update(task, advance=1, state=f"{cut} cut, {refused} refused")

        yield seen


def print_report(report: dict[str, Any], kept: int, console: Console) -> None:
    """What the teacher's texts came to, and where they are."""
    table = Table(title=f"{report['teacher']} on {report['rows']:,} rows of {report['split']}", title_justify="left")
    table.add_column("parsed")
    table.add_column("rows", justify="right")
    table.add_column("meaning")
    for status, count in report["parsed"].items():
        table.add_row(status, f"{count:,}", _MEANING[status])
    for name, meaning in (("refused", "the teacher could not be asked"), ("missing", "not asked yet")):
        if report[name]:
            table.add_row(name, f"{report[name]:,}", meaning)
    console.print(table)
    for line in _lines(report, kept):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(report: dict[str, Any], kept: int) -> list[str]:
    lines = []
    if report["teacher_accuracy"] is not None:
        low, high = report["teacher_accuracy_ci"]
        share = f"{report['teacher_accuracy']:.1%} [{low:.1%}, {high:.1%}]"
        lines.append(f"Teacher accuracy: {share} ({report['teacher_correct']:,} of {report['labelled']:,}).")
    if report["agreement"] is not None:
        lines.append(f"Of {report['samples']} samples {report['agreement']:.0%} vote for the label that was kept.")
    if report["cut"]:
        lines.append(f"{report['cut']:,} texts ended at the limit of tokens (--max-tokens).")
    cost = "" if report["cost"] is None else f", cost {report['cost']:,.4f}"
    tokens = f"{report['prompt_tokens']:,} prompt and {report['completion_tokens']:,} new tokens{cost}"
    lines.append(f"{tokens}; {kept:,} texts kept from earlier.")
    return [*lines, f"Rows: {report['output']}", f"Texts: {report['completions']}"]
