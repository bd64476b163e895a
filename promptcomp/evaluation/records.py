"""predictions.jsonl: one line for every evaluated example; all of results.json's metrics follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, ValidationError

from promptcomp.config import Config, ConfigError
from promptcomp.evaluation.files import read_text, write_atomic

ROWS = ("no_prompt", "method", "full_prompt")
"""What every example is scored with: nothing, the method's memory, and the whole prompt."""

UNSCORED = -1
"""The prediction when no option has a score; it counts as wrong."""


class Prediction(Config):
    """One example of one split with the scores of its options under each row of `ROWS`.

    The dictionaries are keyed by row; `None` says that the row does not apply to this run.
    """

    model_config = ConfigDict(extra="ignore")

    split: str
    """Split that the example belongs to."""
    example: int
    """Number of the example within its split (stable over runs and methods)."""
    task: str
    """Name of the task."""
    kind: Literal["classification", "multi_choice", "free_form"]
    """Free-form examples have a loss but no choice."""
    seed: int | None
    """Data seed of the demonstrations, where the task has several."""
    context: int
    """Which examples share their context; the unit of the bootstrap."""
    gold: int
    """Index of the right option."""
    options: tuple[str, ...]
    """Option texts; empty for a free-form example."""
    scores: dict[str, tuple[float | None, ...] | None]
    """What the choice is made by: log probability per token in nats (calibrated if PMI); null: nothing was scored."""
    prediction: dict[str, int | None]
    """Index of the chosen option; -1: no option could be scored (counts as wrong)."""
    correct: dict[str, bool | None]
    """Whether the choice is the gold option."""
    loss: dict[str, float | None]
    """Negative log probability per token of the gold target in nats, never calibrated."""
    gold_tokens: int
    """Tokens of the gold target."""


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write all predictions of a run, atomically.

    Raises:
        ConfigError: the file cannot be written.
    """
    write_atomic(path, "".join(f"{prediction.model_dump_json()}\n" for prediction in predictions))


def read_predictions(path: Path) -> list[Prediction]:
    """Read what `write_predictions` wrote.

    Raises:
        ConfigError: the file is missing or unreadable, or a line is not a prediction (tells which).
    """
    predictions = []
    for number, line in enumerate(read_text(path, "predictions file").splitlines(), start=1):
        try:
            predictions.append(Prediction.model_validate_json(line))
        except ValidationError as error:
            reason = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise ConfigError(
                f"{path}, line {number}: not a prediction ({reason}); write it anew with `promptcomp evaluate`"
            ) from None
    return predictions
