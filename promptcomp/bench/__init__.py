"""What a prompt costs: FLOPs, bytes and milliseconds of serving it whole, cached or compressed.

Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from promptcomp.errors import ConfigError

if TYPE_CHECKING:
    from promptcomp.experiment import Experiment


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


def subject_experiment(
    run: Path | None,
    overrides: Sequence[str] = (),
    *,
    method: str | None = None,
    config: Path | None = None,
    lm: str | None = None,
    slots: int | None = None,
) -> Experiment:
    """What is measured: a finished run (with overrides), a shipped experiment or a file.

    Args:
        run: the run.
        overrides: changes of the configuration, KEY=VALUE.
        method: instead of a run, a shipped experiment,
        config: or a file.
        lm: with those, an LM of this architecture with random weights.
        slots: method.num_slots.

    Raises:
        ConfigError: options that contradict each other, or anything wrong that is seen without torch.
    """
    if run is not None:
        if method or config or lm or slots:
            raise ConfigError(
                "a run directory brings its own method and LM; leave --method, --config, --lm, --slots out"
            )
        from promptcomp.run.configured import trained_experiment

        experiment = trained_experiment(run, overrides)
    elif method is None and config is None:
        raise ConfigError("give a run directory, or --method NAME or --config FILE (with --lm PATH for random weights)")
    else:
        from promptcomp.experiment import load

        own = [*([] if lm is None else [f"lm.path={lm}"]), *([] if slots is None else [f"method.num_slots={slots}"])]
        experiment = load(method, config, [*own, *overrides])
    if lm is None:
        experiment.check()
    else:
        experiment.lm.check_place()
    return experiment


def _numbers(text: str, option: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"{option} {text!r}: give whole numbers of at least 1, for example 64,256")
    return tuple(dict.fromkeys(int(word) for word in words))
