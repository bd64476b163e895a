"""predictions.jsonl: one line for every evaluated example; all of results.json's metrics follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, ValidationError, model_validator

from promptcomp.config import ConfigError, Measured
from promptcomp.errors import command
from promptcomp.files import read_text, write_atomic

ROWS = ("no_prompt", "method", "full_prompt")
"""What every example is scored with: nothing, the method's memory, and the whole prompt."""

TEXT_METRICS = ("exact_match", "equation", "rouge1", "rouge2", "rougeL", "rougeLsum", "agreement")
"""What generated texts are measured by (all 0-1): equality with the right answer but for white space; ROUGE F-measures
with stemming; equality with the text of the full-prompt row."""

UNSCORED = -1
"""The prediction when no option has a score; it counts as wrong."""


class Prediction(Measured):
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
    texts: dict[str, str | None] | None = None
    """What was generated under each row. This and the keys below are left out where nothing was generated."""
    reference: str | None = None
    """The right answer, which the texts are compared with."""
    instruction: str | None = None
    """The context as text."""
    input: str | None = None
    """What stands between the context and the answer."""
    metrics: dict[str, dict[str, float]] | None = None
    """Row -> metric of `TEXT_METRICS` -> value (0-1); `agreement` is missing where there is no full-prompt text."""
    unfinished: dict[str, bool] | None = None
    """Whether the text of a row reached the limit of new tokens before it ended."""

    @model_validator(mode="after")
    def _choices_are_options(self) -> Prediction:
        for index in (self.gold, *self.prediction.values()) if self.options else ():
            if index is not None and index >= len(self.options):
                raise ValueError(f"option {index} is chosen or right, and there are {len(self.options)}")
        return self

    @property
    def is_generated(self) -> bool:
        """Whether texts were generated for this example."""
        return self.texts is not None


_GENERATED_KEYS = {"texts", "reference", "instruction", "input", "metrics", "unfinished"}


def joined(members: Mapping[str, Prediction], context: int | None = None) -> Prediction:
    """One prediction whose rows are the methods of several runs on one example.

    Args:
        members: row -> the prediction of a run.
        context: number of the context instead of the first run's.
    """
    first = next(iter(members.values()))
    metrics = {row: p.metrics["method"] for row, p in members.items() if p.metrics and "method" in p.metrics}
    texts = {row: p.texts.get("method") if p.texts else None for row, p in members.items()}
    return first.model_copy(
        update={
            "context": first.context if context is None else context,
            "scores": {row: p.scores.get("method") for row, p in members.items()},
            "prediction": {row: p.prediction.get("method") for row, p in members.items()},
            "correct": {row: p.correct.get("method") for row, p in members.items()},
            "loss": {row: p.loss.get("method") for row, p in members.items()},
            "texts": texts if metrics else None,
            "metrics": metrics or None,
            "unfinished": None,
        }
    )


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write all predictions of a run, atomically.

    Raises:
        ConfigError: the file cannot be written.
    """
    write_atomic(path, "".join(f"{_line(prediction)}\n" for prediction in predictions))


def _line(prediction: Prediction) -> str:
    return prediction.model_dump_json(exclude=None if prediction.is_generated else _GENERATED_KEYS)


def read_predictions(path: Path) -> list[Prediction]:
    """Read what `write_predictions` wrote.

    Raises:
        ConfigError: the file is missing or unreadable, or a line is not a prediction (tells which).
    """
    predictions = []
    for number, line in enumerate(read_text(path, "predictions file").split("\n"), start=1):
        if not line:
            continue
        try:
            predictions.append(Prediction.model_validate_json(line))
        except ValidationError as error:
            reason = error.errors(include_url=False, include_input=False)[0]["msg"]
            anew = command("fit", "--resume", path.parent)
            raise ConfigError(
                f"{path}, line {number}: not a prediction ({reason}); `{anew}` writes a run's anew"
            ) from None
    return predictions
