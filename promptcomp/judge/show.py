"""What people see of judging: the estimate, a bar, the table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from promptcomp.judge.asking import Seen
from promptcomp.judge.record import Judgement
from promptcomp.judge.session import Estimate, Session


def estimate_text(estimate: Estimate) -> str:
    """The estimate in one sentence."""
    cost = "" if estimate.cost is None else f", about {estimate.cost:,.2f} at the given prices"
    return (
        f"{estimate.calls:,} calls, about {estimate.prompt_tokens:,} prompt tokens and"
        f" {estimate.completion_tokens:,} completion tokens (at most {estimate.most_completion_tokens:,}){cost}"
    )


@contextmanager
def progress(console: Console, total: int) -> Iterator[Seen]:
    """A bar with the running score; silent where no person reads."""
    wins = losses = ties = unread = 0
    columns = (TextColumn("[bold]judge[/bold]"), BarColumn(bar_width=24), TextColumn("{task.completed}/{task.total}"))
    rest = (TextColumn("{task.fields[score]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *rest, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, score="")

        def seen(judgement: Judgement) -> None:
            nonlocal wins, losses, ties, unread
            wins += judgement.winner == "a"
            losses += judgement.winner == "b"
            ties += judgement.winner == "tie"
            unread += judgement.winner is None
            bar.update(task, advance=1, score=f"{wins} won, {losses} lost, {ties} ties, {unread} unread")

        yield seen


def print_result(session: Session, result: dict[str, Any], console: Console) -> None:
    """The table and whatever a reader of it must know."""
    table = Table(title=f"{result['a']} against {result['b']}, judged by {result['judge']}", title_justify="left")
    for name in ("split", "judged", "win rate", "won", "lost", "ties", "unread", "first shown won"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, found in result["splits"].items():
        unread = found["malformed"] + found["refused"]
        table.add_row(
            split,
            str(found["count"]),
            _share(found["win_rate"], found["win_rate_ci"]),
            *(str(found[name]) for name in ("wins", "losses", "ties")),
            str(unread),
            _share(found["first_rate"], found["first_rate_ci"]),
        )
    console.print(table)
    for line in remarks(session, result):
        console.print(line, markup=False, highlight=False)


def remarks(session: Session, result: dict[str, Any]) -> list[str]:
    """Sentences about what is odd, what was used and where it is."""
    own = list(result["splits"].values())[-1]  # the only split, or all of them together
    lines = []
    if own["identical"]:
        lines.append(f"{own['identical']} pairs of identical answers are ties and were not asked about.")
    if own["malformed"]:
        cut = f" ({result['cut']} of them cut at --max-tokens)" if result["cut"] else ""
        way = "left out" if result["malformed_count_as"] == "drop" else "counted as ties"
        lines.append(f"{own['malformed']} malformed answers{cut} were {way}; --retry-malformed asks anew.")
    if own["refused"]:
        way = "left out" if result["malformed_count_as"] == "drop" else "counted as ties"
        lines.append(f"{own['refused']} refused requests were {way}; the record says why.")
    if own["missing"]:
        lines.append(f"{own['missing']} pairs are not judged yet.")
    low, high = own["first_rate_ci"] or (0.0, 1.0)
    if not low <= 0.5 <= high:
        lines.append("The judge prefers one position: the order is random, so the win rate is fair but closer to 50%.")
    if result["only_a"] or result["only_b"]:
        lines.append(f"Not compared: {result['only_a']} examples only in a, {result['only_b']} only in b.")
    cost = "" if result["cost"] is None else f", cost {result['cost']:,.4f}"
    lines.append(
        f"{result['calls']:,} answers in all ({session.kept:,} pairs kept from earlier),"
        f" {result['prompt_tokens']:,} prompt and {result['completion_tokens']:,} completion tokens{cost}."
    )
    if result["uncounted"]:
        lines.append(f"The server did not tell the tokens of {result['uncounted']} judgements.")
    return [*lines, f"Judgements: {result['judgements']}"]


def _share(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if interval is None else f"{value:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]"
