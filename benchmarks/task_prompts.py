"""Cartridges of BIG-Bench Hard's few-shot prompts, and their rivals: how near an LM stays to itself behind the prompt.

Run: python benchmarks/task_prompts.py BBH WORK --lm smollm2, where BBH is the folder of BIG-Bench Hard with cot-prompts
and tasks. A prompt takes its first 128 questions; a quarter of them is held out. WORK keeps all that is finished: a run
that was stopped goes on, and other prompts may be made beside it (--tasks). WORK/task_prompts.json gets the figures of
all prompts that are there; printed are their medians. docs/results/task_prompts.json is such a file.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import promptcomp

TASKS = (
    "sports_understanding", "object_counting", "date_understanding", "snarks",
    "navigate", "web_of_lies", "disambiguation_qa", "formal_fallacies",
)  # fmt: skip
"""Chosen before any was tried, for their lengths: 207 to 1,204 tokens of SmolLM2."""
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
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    for task in given.tasks:
        work, found = given.work / task, {}
        work.mkdir(parents=True, exist_ok=True)
        prompt, shots, questions = read(given.bbh, task)
        made = promptcomp.distill(
            given.lm, prompt, slots=SLOTS, questions=questions, beside=shots, output=work / "memory.safetensors",
            force=True, verbose=True, rivals=True, steps=given.steps, template="plain", query=QUERY,
        )  # fmt: skip
        for slots, each in made.items():
            found[slots] = {"cost": each.info.cost, "rows": each.info.held_out}
        tokens = made[SLOTS[0]].info.source_tokens
        (work / "found.json").write_text(json.dumps({"task": task, "tokens": tokens, "slots": found}, indent=1))
    prompts = [json.loads(path.read_text()) for path in sorted(given.work.glob("*/found.json"))]
    (given.work / "task_prompts.json").write_text(json.dumps(prompts, indent=1) + "\n")
    print(table(prompts))


def read(bbh: Path, task: str) -> tuple[str, dict[str, str], list[str]]:
    """The prompt without its warning to crawlers, its first one and two examples, and the questions."""
    whole = (bbh / "cot-prompts" / f"{task}.txt").read_text(encoding="utf-8").split("-----\n", 1)[-1].strip()
    parts = whole.split("\n\nQ: ")
    shots = {name: "\n\nQ: ".join(parts[: number + 1]) for number, name in ((1, "one shot"), (2, "two shots"))}
    rows = json.loads((bbh / "tasks" / f"{task}.json").read_text(encoding="utf-8"))["examples"]
    return whole, shots, [row["input"] for row in rows[:QUESTIONS]]


def kind_of(row: str) -> str:
    """The name of a row without its number of slots."""
    return re.sub(r",? ?\b\d+ slots|(?<=first|.last) \d+(?= tokens)", "", row).replace("()", "").strip()


def medians(prompts: Iterable[Mapping[str, Any]], slots: int, measure: str) -> dict[str, list[float]]:
    """Kind of row -> the measure of every prompt."""
    found: dict[str, list[float]] = {}
    for prompt in prompts:
        for row, figures in prompt["slots"][str(slots)]["rows"].items():
            found.setdefault(kind_of(row), []).append(figures[measure])
    return found


def table(prompts: list[dict[str, Any]]) -> str:
    """Medians over the prompts (in brackets the least) in Markdown, for each number of slots."""
    lines = [f"{len(prompts)} prompts: median [least]"]
    for slots in SLOTS:
        lines += [
            "",
            f"| {slots} slots | KL gap closed | top-1 agreement | same answer | bytes |",
            "|---|---|---|---|---|",
        ]
        measures = {name: medians(prompts, slots, name) for name in ("gap_closed", "top1", "exact", "bytes")}
        for row in measures["gap_closed"]:
            cells = [_cell(measures[name][row], name) for name in measures]
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float], measure: str) -> str:
    middle = statistics.median(values)
    if measure == "bytes":
        return f"{middle / 2**20:.2f} MiB"
    return f"{middle:.3f} [{min(values):.3f}]"


if __name__ == "__main__":
    main()
