"""A sweep over shares of the training data in words and tables, for the terminal and the page."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from promptcomp.sweeps.views.efficiency import Efficiency, Reached
from promptcomp.sweeps.views.numbers import plain_line
from promptcomp.sweeps.views.wording import mean_text


def heading(found: Efficiency) -> str:
    """What the table shows: `exact_match (test) against the share of the training data`."""
    where = f" ({found.split})" if found.split else ""
    return f"{found.metric.replace('_', ' ')}{where} against the share of the training data"


def columns(found: Efficiency) -> list[str]:
    """Names of the columns of `cells`."""
    return [*_places(found), *found.methods, *(f"minus {name}" for name in found.baselines)]


def _places(found: Efficiency) -> list[str]:
    """The columns that say which row it is."""
    known = any(count is not None for count in found.sizes.values())
    return [*(("size", *(("parameters",) if known else ())) if len(found.sizes) > 1 else ()), "share"]


def cells(found: Efficiency) -> list[list[str]]:
    """A line for each size and share: the methods' means, then the differences to the baselines, which have a sign."""
    lines = []
    for row in found.rows:
        place = {"size": row.size, "parameters": _count(found.sizes[row.size]), "share": f"{row.share:g}"}
        means = [mean_text(row.values.get(name)) for name in found.methods]
        minus = [mean_text(row.minus.get(name), sign="+") for name in found.baselines]
        lines.append([*(place[name] for name in _places(found)), *means, *minus])
    return lines


def _count(parameters: int | None) -> str:
    return "-" if parameters is None else f"{parameters:,}"


def print_efficiency(found: Efficiency, console: Console) -> None:
    """The table and what it says; where there is no room for both, differences have a table of their own."""
    lines = [columns(found), *cells(found)]
    console.print(Text(heading(found)))
    if sum(max(map(len, column)) + 2 for column in zip(*lines, strict=True)) <= console.width + 2:
        console.print(_table(lines))
    else:
        start, end = len(_places(found)), len(_places(found)) + len(found.methods)
        console.print(_table([line[:end] for line in lines]))
        if found.baselines:
            console.print()
            console.print(_table([[*line[:start], *line[end:]] for line in lines]))
    for sentence in sentences(found):
        console.print(Text(plain_line(sentence)))


def _table(lines: list[list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in lines[0]:
        table.add_column(Text(plain_line(name)), justify="left" if name == "size" else "right", overflow="fold")
    for line in lines[1:]:
        table.add_row(*(Text(plain_line(text)) for text in line))
    return table


def sentences(found: Efficiency) -> list[str]:
    """Where the baselines are reached, and what is missing."""
    return [*(_reached(found, each) for each in found.reached), *(f"missing: {text}" for text in found.missing)]


def _reached(found: Efficiency, each: Reached) -> str:
    who = f"{each.size}: {found.method}" if each.size else found.method
    target = f"the score of {each.baseline} with share {each.target_share:g} ({mean_text(each.target)})"
    if each.share is None:
        text = f"{who} does not reach {target} at any share that was run"
    else:
        share = f"{'at most' if each.at_most else 'about'} {each.share:.3g}"
        text = f"{who} reaches {target} at a share of {share} (first share run that does: {each.first:g})"
    if each.ci is not None:
        low, high = each.ci
        text += f"; 95 % over draws of seeds: {low:.3g} to {'never' if high is None else f'{high:.3g}'}"
    elif each.resampled is not None:
        text += f"; reached in {each.resampled:.0%} of the draws of seeds"
    return text + "."
