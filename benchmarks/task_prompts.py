"""Cartridges of BIG-Bench Hard's few-shot prompts, and their rivals: how near an LM stays to itself behind the prompt.

Run: python benchmarks/task_prompts.py BBH WORK --lm smollm2, where BBH is the folder of BIG-Bench Hard with cot-prompts
and tasks. A prompt takes its first 128 questions; a quarter of them is held out. WORK keeps all that is finished: a run
that was stopped goes on, and other prompts (--tasks) or numbers of slots (--slots) may be made later.
WORK/task_prompts.json gets the figures of all prompts that are there; printed are their medians.
docs/results/task_prompts.json is such a file.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

import promptcomp

TASKS = (
    "sports_understanding", "object_counting", "date_understanding", "snarks",
    "navigate", "web_of_lies", "disambiguation_qa", "formal_fallacies",
)  # fmt: skip
"""Chosen before any was tried, for their lengths: 207 to 1,204 tokens of SmolLM2."""
SECTION = "docs/results.md#real-models-cartridges-of-task-prompts"
SLOTS = (64, 16, 4)
QUESTIONS = 128
QUERY = "\n\nQ: {input}\nA: Let's think step by step."


def main() -> None:
    """Make what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bbh", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--lm", default="smollm2")
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--slots", nargs="*", type=int, default=SLOTS)
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    for task in given.tasks:
        work = given.work / task
        work.mkdir(parents=True, exist_ok=True)
        done = work / "rows.json"
        before = json.loads(done.read_text()) if done.exists() else []
        rows = [row for row in before if row["slots"] not in given.slots]
        prompt, shots, questions = read(given.bbh, task)
        made = promptcomp.distill(
            given.lm, prompt, slots=given.slots, questions=questions, beside=shots, output=work / "memory.safetensors",
            force=True, verbose=True, rivals=True, steps=given.steps, template="plain", query=QUERY,
        )  # fmt: skip
        for slots, each in made.items():
            for name, row in each.info.held_out.items():
                about = {"task": task, "tokens": each.info.source_tokens, "slots": slots, "what": kind_of(name)}
                took = {"seconds": each.info.cost["seconds"]} if name == "cartridge" else {}
                rows.append(
                    about | {key: float(f"{value:.4g}") for key, value in (row | took).items() if key != "slots"}
                )
        done.write_text(json.dumps(rows))
    figures = [row for path in sorted(given.work.glob("*/rows.json")) for row in json.loads(path.read_text())]
    rows = cells(figures)
    head = {
        "section": SECTION,
        "command": f"python benchmarks/task_prompts.py BBH WORK --lm {given.lm} --steps {given.steps}",
        "lm": Path(given.lm).name,
        "questions": QUESTIONS,
    }
    lists = [
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in found) + "\n ]"
        for name, found in (("rows", rows), ("figures", figures))
    ]
    text = ",\n".join([json.dumps(head, indent=1)[:-2], *lists])
    (given.work / "task_prompts.json").write_text(f"{text}\n}}\n")
    lines = [f"| {' | '.join(line)} |" for line in (rows[0], *(row.values() for row in rows))]
    print("\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]))


def read(bbh: Path, task: str) -> tuple[str, dict[str, str], list[str]]:
    """The prompt without its warning to crawlers, its first one and two examples, and the questions."""
    whole = (bbh / "cot-prompts" / f"{task}.txt").read_text(encoding="utf-8").split("-----\n", 1)[-1].strip()
    parts = whole.split("\n\nQ: ")
    shots = {name: "\n\nQ: ".join(parts[: number + 1]) for number, name in ((1, "one shot"), (2, "two shots"))}
    rows = json.loads((bbh / "tasks" / f"{task}.json").read_text(encoding="utf-8"))["examples"]
    return whole, shots, [row["input"] for row in rows[:QUESTIONS]]


def kind_of(row: str) -> str:
    """The name of a row without its number of slots."""
    return re.sub(r"(first|last) \d+ tokens", r"\1 tokens", re.sub(r",? ?\b\d+ slots", "", row)).replace(" ()", "")


def cells(figures: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A table's rows: every prompt with every number of slots, and the medians over the prompts. Shots, rivals and the
    cache of 4 bits with the share of the distance that they close."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for row in figures:
        found.setdefault((row["slots"], row["task"]), {})[row["what"]] = row
    lines = []
    for slots in sorted({slots for slots, _ in found}, reverse=True):
        own = {task: rows for (number, task), rows in found.items() if number == slots}
        numbers: list[list[float]] = []
        for task, rows in own.items():
            cartridge = rows.pop("cartridge")
            rivals = [row for row in rows.values() if 0 < row["bytes"] <= cartridge["bytes"]]
            best = max(rivals, key=lambda row: row["gap_closed"])
            numbers.append([
                cartridge["tokens"], rows["no context"]["kl"], cartridge["kl"], cartridge["top1"], cartridge["exact"],
                cartridge["gap_closed"], best["gap_closed"],
                *(rows[what]["gap_closed"] for what in ("one shot", "two shots", "quantised cache (4 bits)")),
            ])  # fmt: skip
            lines.append(_line(task, slots, numbers[-1], f" ({best['what']})"))
        medians = [statistics.median(row) for row in zip(*numbers, strict=True)]
        lines.append(_line(f"**median of {len(own)}**", slots, medians, ""))
    return lines


def _line(name: str, slots: int, numbers: list[float], rival: str) -> dict[str, str]:
    tokens, none, kl, top1, exact, gap, best, one, two, bits = numbers
    return {
        "prompt": name, "tokens": f"{tokens:.0f}", "slots": str(slots), "KL: no context": f"{none:.3f}",
        "cartridge": f"{kl:.3f}", "top-1": f"{top1:.3f}", "same answer": f"{exact:.2f}", "gap closed": f"**{gap:.3f}**",
        "best rival of at most its bytes": f"{best:.3f}{rival}", "one shot": f"{one:.3f}", "two shots": f"{two:.3f}",
        "4-bit cache": f"{bits:.3f}",
    }  # fmt: skip


if __name__ == "__main__":
    main()
