"""Rationales from a teacher: few-shot chain-of-thought prompts, a file of completions, rows for training.

Nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option


@dataclass(frozen=True, slots=True)
class RationaleOptions:
    """What is to be explained, and how."""

    split: Annotated[str, Option(help="The split of the data.")] = "train"
    template: Annotated[str | None, Option(help="Shipped template or YAML file; default: the data format's.")] = None
    rows: Annotated[int | None, Option("--rows", "-n", min=1, help="Only the first N rows.")] = None
    samples: Annotated[int, Option(min=1, help="Answers for each row; the majority's label is kept.")] = 1
    temperature: Annotated[float | None, Option(min=0, help="0: greedy; default: 0, or 0.7 for several samples.")] = (
        None
    )
    max_tokens: Annotated[int | None, Option(min=1, help="Token limit of an answer; default: the template's.")] = None
    seed: Annotated[int, Option(help="Seed of the samples.")] = 0
    retry_refused: Annotated[
        bool, Option("--retry-refused", help="Send requests again that an earlier call left refused.")
    ] = False
    output: Annotated[
        Path | None, Option("--output", "-o", help="Rows (JSONL); default: rationales/DATA-SPLIT-TEACHER.jsonl.")
    ] = None
