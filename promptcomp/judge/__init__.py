"""Pairwise judging of generated texts by a language model. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

_SIDE = "A run directory, a folder with predictions.jsonl, or a JSONL/CSV file with id, instruction, input, text."


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """Which texts are judged, and how."""

    a: Annotated[Path, Argument(metavar="A", help=f"The side whose win rate is computed. {_SIDE}")]
    b: Annotated[Path, Argument(metavar="B", help="The other side, likewise.")]
    row_a: Annotated[str, Option(help="Row of a run: method, full_prompt, no_prompt, or a rival's.")] = "method"
    row_b: Annotated[str, Option(help="The same for B.")] = "method"
    split: Annotated[list[str] | None, Option(help="Only this split; may be repeated.")] = None
    examples: Annotated[int | None, Option(min=1, help="Maximum number of examples of each split.")] = None
    seed: Annotated[int, Option(min=0, help="Seed of the order of answers and of the choice of examples.")] = 42
    prompt: Annotated[Path | None, Option(help="A judge prompt of your own (docs/judge.md).")] = None
    max_tokens: Annotated[int, Option(min=1, help="Maximum number of tokens of the judge's reply.")] = 300
    attempts: Annotated[int, Option(min=1, help="Maximum number of attempts to get valid JSON.")] = 3
    malformed: Annotated[str, Option(help="Replies that cannot be parsed: drop, or count as a tie (tie).")] = "drop"
    retry_malformed: Annotated[
        bool, Option("--retry-malformed", help="Judge again pairs whose earlier reply could not be parsed.")
    ] = False
    ask_identical: Annotated[
        bool, Option("--ask-identical", help="Judge identical answers too; otherwise they are ties without a call.")
    ] = False
    output: Annotated[
        Path | None, Option("--output", "-o", help="File of judgements; default: in A, named after both sides.")
    ] = None
