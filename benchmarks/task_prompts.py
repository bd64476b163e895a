"""Cartridges of BIG-Bench Hard's few-shot prompts, and their rivals: how near an LM stays to itself behind the prompt.

Run: python benchmarks/task_prompts.py BBH WORK --lm smollm2, where BBH is the folder of BIG-Bench Hard with cot-prompts
and tasks. A prompt takes the first --questions of its task, 32 of them held out. WORK keeps all that is finished: a run
that was stopped goes on, and other prompts (--tasks) or numbers of slots (--slots) may be made later.
WORK/task_prompts.json gets the figures of all prompts that are there; printed are their medians.
docs/results/task_prompts.json is such a file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cartridge_tables import Text, make, report

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
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--dtype", default="float32", help="of the LM's weights: float32, or bfloat16")
    given = parser.parse_args()
    texts = (prompt_of(given.bbh, task, given.slots, given.questions) for task in given.tasks)
    make(texts, given.work, given.lm, "task", steps=given.steps, dtype=given.dtype, template="plain", query=QUERY)
    report(given.work, "task_prompts", given, SECTION, "task", "prompt", ("one shot", "two shots"))


def prompt_of(bbh: Path, task: str, slots: list[int], questions: int = QUESTIONS) -> Text:
    """The prompt without its warning to crawlers, its first one and two examples, and the questions."""
    whole = (bbh / "cot-prompts" / f"{task}.txt").read_text(encoding="utf-8").split("-----\n", 1)[-1].strip()
    parts = whole.split("\n\nQ: ")
    shots = {name: "\n\nQ: ".join(parts[: number + 1]) for number, name in ((1, "one shot"), (2, "two shots"))}
    rows = json.loads((bbh / "tasks" / f"{task}.json").read_text(encoding="utf-8"))["examples"]
    asked = [row["input"] for row in rows[:questions]]
    return Text(task, whole, {str(number): number for number in slots}, shots, asked)


if __name__ == "__main__":
    main()
