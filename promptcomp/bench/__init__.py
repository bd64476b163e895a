"""What a prompt costs: FLOPs, bytes and milliseconds of serving it whole, cached or compressed.

Nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from promptcomp.errors import ConfigError
from promptcomp.files import check_file

_DIGITS = 7
"""A number with so many is a mistake."""


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


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How hard to ask a server, and for what."""

    server: Annotated[str | None, Option(help="Measure an OpenAI-compatible server instead: http://HOST:PORT/v1.")] = (
        None
    )
    model: Annotated[str | None, Option(help="With --server: the LM's name there.")] = None
    text: Annotated[
        Path | None, Option("--text", help="With --server: a UTF-8 file with the prompt, sent whole with each query.")
    ] = None
    compressed: Annotated[
        str | None, Option(help="With --server: the model behind the compressed prompt, or a .json file of a request.")
    ] = None
    cached: Annotated[
        str | None,
        Option(help="With --server: the model that has read the whole prompt; default: the text, always the same."),
    ] = None
    queries: Annotated[Path | None, Option(help="With --server: queries, as 'generate' reads them.")] = None
    concurrency: Annotated[str, Option(help="With --server: requests at a time.")] = "1,8,32"
    requests: Annotated[int, Option(min=1, help="With --server: requests of a measurement.")] = 32
    rounds: Annotated[int, Option(min=1, help="With --server: measurements of each kind, in a new order each.")] = 3
    completions: Annotated[
        bool, Option("--completions", help="With --server: ask /completions and not /chat/completions.")
    ] = False
    ignore_eos: Annotated[
        bool, Option(help="With --server: have all answers --new-tokens long, where the server can.")
    ] = True
    api_key_env: Annotated[str, Option(help="With --server: environment variable of its key.")] = "OPENAI_API_KEY"

    def loads(self) -> tuple[int, ...]:
        """Requests at a time, after a look at all options.

        Raises:
            ConfigError: names the option with a mistake.
        """
        if self.text is None and self.compressed is None:
            raise ConfigError("--server: nothing to ask it; give --text FILE, --compressed MODEL, or both")
        if self.model is None and (self.text is not None or self.cached is not None):
            raise ConfigError("--server: name the LM with --model, as the server's /v1/models has it")
        for file, what in ((self.text, "prompt"), (self.queries, "file")):
            if file is not None:
                check_file(file, what)
        return _numbers(self.concurrency, "--concurrency")


def _numbers(text: str, option: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and len(word) < _DIGITS and int(word) > 0 for word in words):
        raise ConfigError(f"{option} {text!r}: give whole numbers of at least 1 (and below a million), as in 64,256")
    return tuple(dict.fromkeys(int(word) for word in words))
