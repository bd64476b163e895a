"""A board as files (leaderboard.json, leaderboard.md, index.html) and on a terminal: the same cells everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from promptcomp.evaluation.formatting import METRIC_TITLES, bytes_text, flops_text, many, number_text, value_text
from promptcomp.files import write_atomic
from promptcomp.leaderboard.board import Block, Board, Known, Line
from promptcomp.plain import printable
from promptcomp.terminal import open_table
from promptcomp.webpage import web_page

NAMES = ("leaderboard.json", "leaderboard.md", "index.html")


def _known(found: Known, form: str = ".3f") -> str:
    return value_text(found.value, found.ci, form, form.replace("3", "2"))


def _plain(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _slots(line: Line) -> str:
    wanted = line.requested.split()[0]
    return f"{wanted} → {number_text(line.slots)}" if line.requested.split()[-1] != "bytes" else number_text(line.slots)


def _training(line: Line) -> str:
    if line.train_steps is None:
        return "-"
    seconds = "" if line.train_seconds is None else f", {line.train_seconds:,.0f} s"
    flops = "" if line.train_flops is None else f", {flops_text(line.train_flops)}"
    return f"{many(line.train_steps, 'step')}{seconds}{flops}"


def _rank(line: Line) -> str:
    if line.rank is not None:
        return str(line.rank)
    return {"query_aware": "sees query", "control": "control", "missing": "n/a"}.get(line.group, "")


def _name(line: Line) -> str:
    return (line.entered_with or line.row) + (" †" if line.trained_lm else "")


_PLACE: dict[str, Callable[[Line], str]] = {"": _rank, "row": _name}
_QUALITY: dict[str, Callable[[Line], str]] = {
    "score": lambda line: _known(line.score),
    "to full": lambda line: _known(line.gap, "+.3f"),
    "retained": lambda line: _known(line.retained, ".2f"),
    "KL": lambda line: _plain(line.kl),
    "top-1": lambda line: _plain(line.top1),
    "to best": lambda line: _known(line.minus_best, "+.3f"),
    "p (Holm)": lambda line: _plain(line.p, ".2g"),
}
_COST: dict[str, Callable[[Line], str]] = {
    "slots": _slots,
    "stored": lambda line: bytes_text(line.stored_bytes),
    "in use": lambda line: bytes_text(line.kv_bytes),
    "compressing": lambda line: flops_text(line.compress_flops),
    "training": _training,
    "rate": lambda line: _plain(line.rate, "g"),
    "queries to pay": lambda line: number_text(line.break_even),
}
COLUMNS = {**_PLACE, **_QUALITY, **_COST}
_IMPORTANT = ("score", "retained", "in use", "p (Holm)", "KL", "slots", "top-1")
"""Shown where there is no room for all."""


def cells(line: Line, columns: dict[str, Callable[[Line], str]] = COLUMNS) -> list[str]:
    """A line of a table."""
    return [of(line) for of in columns.values()]


def heading(block: Block) -> str:
    """`1/8 of the bytes (at most 24.0 KiB in use)`."""
    return block.title + (f" (at most {bytes_text(block.allowed_bytes)} in use)" if block.allowed_bytes else "")


def summary(board: Board) -> list[str]:
    """What is scored, and between which ends."""
    lower = ", lower is better" if board.lower_is_better else ""
    return [
        f"{METRIC_TITLES.get(board.metric, board.metric)}{lower}; {board.data}, split {board.split}, {board.lm}; "
        f"{board.num_contexts:,} contexts",
        f"no prompt {_known(board.no_prompt)}, full prompt {_known(board.full_prompt)}",
    ]


def floors(board: Board) -> Iterator[str]:
    """The quality floor, a sentence for each method."""
    for each in board.floors:
        found = "none of the budgets" if each.slots is None else many(each.slots, "slot")
        bounds = ", ".join(f"{slots}: {_plain(bound, '+.3f')}" for slots, bound in each.bounds.items())
        aware = ", sees the query" if each.query_aware else ""
        yield f"{each.method}{aware}: {found} (lower bounds {bounds})"


NOTES = (
    "Score, to full (score - full prompt), retained and to best: mean over seeds with 95 % intervals over contexts and "
    "seeds, both drawn with replacement, from the scores of contexts.",
    "p: paired t-test over contexts against the best row of the block (means over these seeds), corrected by Holm's "
    "method over the block; rows that see the query, and controls, are not ranked and not in the correction.",
    "KL: nats per gold token from the full prompt; top-1: share of gold tokens with the same likeliest token as there.",
    "Slots: requested → taken. In a block of bytes a row without a budget in bytes stands with the most slots whose "
    "bytes in use are within it, under that row's name. Stored: the memory as a file; in use: keys and values.",
    "Queries to pay: on one context, until compressing and reading the memory takes fewer FLOPs than a cached full "
    "prompt; training not counted.",
    "†: it has trained the LM's weights. To full, retained and the floor are to no prompt and full prompt of the LM as "
    "it was, as in all rows, and so with what training has taught; KL and top-1 are to the full prompt of its weights.",
)


def floor_text(board: Board) -> str:
    """What the floor asks."""
    return (
        f"Fewest slots that keep {board.floor:.0%} of what the full prompt gains over no prompt: the one-sided 95 % "
        "lower bound, paired over contexts, of (score - no prompt) - share x (full prompt - no prompt) is above 0 "
        "(non-inferiority)"
    )


def write_board(board: Board, folder: Path) -> Path:
    """Write leaderboard.json, leaderboard.md and index.html; the same board gives the same bytes.

    Returns:
        The page.

    Raises:
        ConfigError: a file cannot be written.
    """
    texts = (board.model_dump_json(indent=1) + "\n", _markdown(board), _page(board))
    for name, text in zip(NAMES, texts, strict=True):
        write_atomic(folder / name, text)
    return folder / NAMES[-1]


def _markdown(board: Board) -> str:
    lines = [f"# {board.title}", "", *(f"{text}  " for text in summary(board)), ""]
    for name, blocks in (("Equal slots", board.slots), ("Equal bytes", board.bytes)):
        for number, block in enumerate(blocks):
            lines += ([f"## {name}", ""] if not number else []) + [f"### {heading(block)}", ""]
            lines += [_row(list(COLUMNS)), _row(["---"] * len(COLUMNS))]
            lines += [_row(cells(line)) for line in block.lines]
            lines += ["", *(f"- {text}" for text in missing(block)), ""]
    lines += ["## Quality floor", "", f"{floor_text(board)}.", "", *(f"- {text}" for text in floors(board)), ""]
    lines += ["## How to read it", "", *(f"- {text}" for text in NOTES), ""]
    lines += ["## Commands", "", *(f"    {text}" for text in board.commands)]
    return "\n".join(lines) + "\n"


def missing(block: Block) -> list[str]:
    """Why rows of a block have no numbers, or not of all seeds."""
    return [f"{_name(line)}: {line.note}" for line in block.lines if line.note]


def _row(texts: list[str]) -> str:
    return "| " + " | ".join(printable(text).replace("|", "\\|") for text in texts) + " |"


def _page(board: Board) -> str:
    return web_page(
        "promptcomp.leaderboard", "board.html.j2", board=board, notes=NOTES, columns=list(COLUMNS),
        **{each.__name__: each for each in (cells, heading, summary, floors, floor_text, missing)},
    )  # fmt: skip


def print_board(board: Board, console: Console) -> None:
    """A table for each budget, with the columns for which there is room; the files have all."""
    console.print(Text(board.title, style="bold"))
    for text in summary(board):
        console.print(Text(text))
    columns = _fitting([line for block in (*board.slots, *board.bytes) for line in block.lines], console.width)
    for name, blocks in (("equal slots", board.slots), ("equal bytes", board.bytes)):
        for block in blocks:
            console.print(Text(f"\n{name}: {heading(block)}", style="bold"))
            table = open_table(left=[*_PLACE], right=[each for each in columns if each not in _PLACE])
            for line in block.lines:
                table.add_row(*map(Text, cells(line, columns)), style="" if line.group == "ranked" else "dim")
            console.print(table)
            for text in missing(block):
                console.print(Text(f"n/a or incomplete: {text}"))
    console.print(Text(f"\n{floor_text(board)}:", style="bold"))
    for text in floors(board):
        console.print(Text(f"  {text}"))
    if left_out := [name for name in COLUMNS if name not in columns]:
        console.print(Text(f"\nno room here, see {NAMES[1]}: {', '.join(left_out)}", style="dim"))


def _fitting(lines: Sequence[Line], width: int) -> dict[str, Callable[[Line], str]]:
    """The columns that fit beside each other, the more important ones first."""
    needed = {name: max([len(name), *(len(of(line)) for line in lines)]) + 2 for name, of in COLUMNS.items()}
    room, chosen = width + 2, set[str]()
    for name in dict.fromkeys((*_PLACE, *_IMPORTANT, *COLUMNS)):
        if name in _PLACE or needed[name] <= room:
            chosen.add(name)
            room -= needed[name]
    return {name: of for name, of in COLUMNS.items() if name in chosen}
