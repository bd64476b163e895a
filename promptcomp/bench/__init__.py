"""What a prompt costs: FLOPs, bytes and milliseconds of serving it whole, cached or compressed.

Nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typer import Option

from promptcomp.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What to measure, and how."""

    lengths: Annotated[str, Option(help="Prompt lengths in tokens.")] = "64,256,1024,2048"
    batch_sizes: Annotated[str, Option(help="Queries at a time, each with a different prompt.")] = "1,8"
    new_tokens: Annotated[int, Option(min=1, help="Tokens of an answer.")] = 32
    repeats: Annotated[int, Option(min=3, help="Repetitions of each measurement after a warm-up.")] = 9
    seconds: Annotated[float, Option(min=0, help="Seconds for a measurement; slow ones are repeated less often.")] = (
        30.0
    )
    seed: Annotated[int, Option(help="Seed of the order of the measurements.")] = 0
    device: Annotated[str, Option(help="auto, cpu or cuda.")] = "auto"

    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Lengths and batch sizes.

        Raises:
            ConfigError: not numbers; names the option.
        """
        return _numbers(self.lengths, "--lengths"), _numbers(self.batch_sizes, "--batch-sizes")


def _numbers(text: str, option: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"{option} {text!r}: give whole numbers of at least 1, for example 64,256")
    return tuple(dict.fromkeys(int(word) for word in words))
