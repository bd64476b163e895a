"""Cartridges of many texts, made one by one in a folder, and their table: of task_prompts.py and documents.py."""

from __future__ import annotations

import json
import re
import statistics
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recorded import write

import promptcomp

Figures = list[dict[str, Any]]
"""A row for everything that the LM was read behind: its text, slots and name, and what `distill` has measured."""


class Text(NamedTuple):
    """A text and what its cartridges are made with."""

    name: str
    text: str
    budgets: Mapping[str, int]
    """Numbers of slots by what the table calls them."""
    beside: dict[str, str]
    questions: list[str] | None = None


def make(texts: Iterable[Text], work: Path, lm: str, kind: str, **settings: Any) -> None:
    """Make what is missing. WORK/NAME has what is finished and what has begun, and `rows.json`.

    Args:
        texts: with those of their budgets that are wanted.
        work: folder that keeps everything.
        lm: of the cartridges.
        kind: what a text is called in the figures, "task" for example.
        settings: of `promptcomp.distill`.
    """
    for text in texts:
        place = work / text.name
        place.mkdir(parents=True, exist_ok=True)
        done = place / "rows.json"
        before: Figures = json.loads(done.read_text()) if done.exists() else []
        rows = [row for row in before if row["slots"] not in text.budgets.values()]
        made = promptcomp.distill(
            lm, text.text, slots=list(text.budgets.values()), questions=text.questions, beside=text.beside,
            output=place / "memory.safetensors", force=True, verbose=True, rivals=True, **settings,
        )  # fmt: skip
        for budget, slots in text.budgets.items():
            info = made[slots].info
            about = {kind: text.name, "tokens": info.source_tokens, "slots": slots}
            if budget != str(slots):
                about["budget"] = budget
            for name, row in info.held_out.items():
                took = {"seconds": info.cost["seconds"]} if name == "cartridge" else {}
                figures = {key: float(f"{value:.4g}") for key, value in (row | took).items() if key != "slots"}
                rows.append(about | {"what": _kind_of(name)} | figures)
        done.write_text(json.dumps(rows))


def report(
    work: Path, script: str, given: Namespace, section: str, kind: str, name: str, beside: Sequence[str]
) -> None:
    """The figures of all that was made in a folder, in WORK/SCRIPT.json, and their table on the terminal."""
    figures = [row for path in sorted(work.glob("*/rows.json")) for row in json.loads(path.read_text())]
    command = f"python benchmarks/{script}.py ... --lm {given.lm} --steps {given.steps} --dtype {given.dtype}"
    head = {"section": section, "command": command, "lm": Path(given.lm).name}
    write(work / f"{script}.json", head, cells(figures, kind, name, beside), figures=figures)


def cells(figures: Figures, kind: str, name: str, beside: Sequence[str]) -> list[dict[str, str]]:
    """A table's rows: every text with every budget, largest first, and the medians over the texts. Rivals, what stands
    beside, and the cache of 4 bits with the share of the distance that they close."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in figures:
        found.setdefault((str(row.get("budget", row["slots"])), row[kind]), {})[row["what"]] = row
    lines = []
    for budget in dict.fromkeys(budget for budget, _ in sorted(found, key=_size, reverse=True)):
        numbers: list[list[float]] = []
        for text, rows in ((text, rows) for (each, text), rows in found.items() if each == budget):
            cartridge = rows.pop("cartridge")
            rivals = [row for row in rows.values() if 0 < row["bytes"] <= cartridge["bytes"]]
            best = max(rivals, key=lambda row: row["gap_closed"])
            numbers.append([
                cartridge["tokens"], cartridge["slots"], rows["no context"]["kl"], cartridge["kl"], cartridge["top1"],
                cartridge["exact"], cartridge["gap_closed"], best["gap_closed"],
                *(rows[what]["gap_closed"] for what in (*beside, "quantised cache (4 bits)")),
            ])  # fmt: skip
            lines.append(_line(name, text, budget, numbers[-1], f" ({best['what']})", beside))
        medians = [statistics.median(row) for row in zip(*numbers, strict=True)]
        lines.append(_line(name, f"**median of {len(numbers)}**", budget, medians, "", beside))
    return lines


def _size(key: tuple[str, str]) -> float:
    over, _, below = key[0].partition("/")
    return float(over) / float(below or 1)


def _kind_of(row: str) -> str:
    """The name of a row without its number of slots."""
    return re.sub(r"(first|last) \d+ tokens", r"\1 tokens", re.sub(r",? ?\b\d+ slots", "", row)).replace(" ()", "")


def _line(
    name: str, text: str, budget: str, numbers: Sequence[float], rival: str, beside: Sequence[str]
) -> dict[str, str]:
    tokens, slots, none, kl, top1, exact, gap, best, *others, bits = numbers
    shown = budget if "/" not in budget else f"{budget} ({slots:.0f})"
    return {
        name: text, "tokens": f"{tokens:.0f}", "slots": shown, "KL: no context": f"{none:.3f}",
        "cartridge": f"{kl:.3f}", "top-1": f"{top1:.3f}", "same answer": f"{exact:.2f}", "gap closed": f"**{gap:.3f}**",
        "best rival of at most its bytes": f"{best:.3f}{rival}",
        **{what: f"{value:.3f}" for what, value in zip(beside, others, strict=True)}, "4-bit cache": f"{bits:.3f}",
    }  # fmt: skip
