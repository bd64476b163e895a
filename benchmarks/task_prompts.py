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
        work, rows = given.work / task, []
        work.mkdir(parents=True, exist_ok=True)
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
        (work / "rows.json").write_text(json.dumps(rows))
    rows = [row for path in sorted(given.work.glob("*/rows.json")) for row in json.loads(path.read_text())]
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    words = f"python benchmarks/task_prompts.py BBH WORK --lm {given.lm} --steps {given.steps}"
    head = json.dumps(
        {"section": SECTION, "command": words, "lm": Path(given.lm).name, "questions": QUESTIONS}, indent=1
    )
    (given.work / "task_prompts.json").write_text(head[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n')
    print(table(rows))


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


def table(rows: list[dict[str, Any]]) -> str:
    """Medians over the prompts (in brackets the worst) in Markdown, for each number of slots."""
    lines = [f"{len({row['task'] for row in rows})} prompts: median [worst]"]
    for slots in dict.fromkeys(row["slots"] for row in rows):
        lines += ["", f"| {slots} slots | KL gap closed | top-1 agreement | same answer | bytes |", "|---" * 5 + "|"]
        for what in dict.fromkeys(row["what"] for row in rows):
            own = [row for row in rows if (row["slots"], row["what"]) == (slots, what)]
            cells = [_median([row[key] for row in own]) for key in ("gap_closed", "top1", "exact")]
            size = statistics.median(row["bytes"] for row in own) / 2**20
            lines.append(f"| {what} | {' | '.join(cells)} | {size:.2f} MiB |")
    return "\n".join(lines)


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} [{min(values):.3f}]"


if __name__ == "__main__":
    main()
