"""From log probabilities of options to predictions.

The score of an option is its mean log probability per token (MEND, arXiv 2403.06914; MetaICL). PMI (MetaICL's
calibration) subtracts the score of the same option with the input replaced by "N/A". The highest score wins, the first
on ties. A score that is not a number never wins: the original code let an empty 0/0 option win silently.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from promptcomp.evaluation.labels import same_label
from promptcomp.evaluation.predictions import ROWS, UNSCORED, Prediction


class ExampleLike(Protocol):
    """What the evaluation must know of an example; the datamodules' ExampleInfo has it."""

    @property
    def number(self) -> int: ...
    @property
    def task(self) -> str: ...
    @property
    def kind(self) -> Literal["classification", "multi_choice", "free_form"]: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def context(self) -> int: ...
    @property
    def gold(self) -> int: ...
    @property
    def options(self) -> Sequence[str]: ...
    @property
    def input(self) -> str: ...
    @property
    def output(self) -> str: ...


@dataclass(slots=True)
class OptionScores:
    """Log probabilities of options, collected batch by batch in any order.

    An option that is added twice (a distributed sampler repeats examples to fill the last batch) is kept once.
    """

    values: dict[tuple[int, int], tuple[float, int]] = field(default_factory=dict)
    """(example, choice) -> (sum of the log probabilities in nats, number of tokens)."""

    def add(
        self, example: Sequence[int], choice: Sequence[int], sum_log_prob: Sequence[float], num_tokens: Sequence[int]
    ) -> None:
        """Add the targets of a batch: four sequences of one length (`tensor.tolist()`)."""
        for e, c, total, count in zip(example, choice, sum_log_prob, num_tokens, strict=True):
            self.values[e, c] = (total, count)

    def merge(self, other: OptionScores) -> None:
        """Add what another rank collected."""
        self.values.update(other.values)

    def mean(self, example: int, num_options: int) -> list[float]:
        """Score of each option in nats per token; NaN for an option without tokens.

        Raises:
            ValueError: an option of the example was never added.
        """
        return [_per_token(*self._get(example, choice)) for choice in range(num_options)]

    def total(self, example: int, num_options: int) -> list[float]:
        """Score of each option in nats, not divided by its length; NaN for an option without tokens."""
        pairs = [self._get(example, choice) for choice in range(num_options)]
        return [total if count else math.nan for total, count in pairs]

    def num_tokens(self, example: int, choice: int) -> int:
        """Number of scored tokens of an option."""
        return self._get(example, choice)[1]

    def _get(self, example: int, choice: int) -> tuple[float, int]:
        if (example, choice) not in self.values:
            raise ValueError(f"example {example}: option {choice} has not been scored")
        return self.values[example, choice]


def subtract_null(scores: Sequence[float], null: Sequence[float]) -> list[float]:
    """Pointwise mutual information: scores less those of the same options after the input "N/A" (MetaICL)."""
    return [score - bias for score, bias in zip(scores, null, strict=True)]


def choose(scores: Sequence[float]) -> int:
    """Index of the highest finite score, the first on ties; `UNSCORED` when there is none."""
    finite = [i for i, score in enumerate(scores) if math.isfinite(score)]
    return max(finite, key=lambda i: (scores[i], -i), default=UNSCORED)


def make_predictions(
    split: str,
    examples: Iterable[ExampleLike],
    scores: Mapping[str, OptionScores | None],
    null: Mapping[str, OptionScores | None] | None = None,
    *,
    length_normalised: bool = True,
) -> list[Prediction]:
    """Predictions of a split, in the order of the examples' numbers.

    Args:
        split: name of the split.
        examples: all examples of the split.
        scores: for each row of `ROWS` what was collected; None or absent: the row does not apply.
        null: the same for the input "N/A" (PMI); None: no calibration.
        length_normalised: compare log probabilities per token (as the papers do) and not their sums.

    Raises:
        ValueError: an option of an example has not been scored.
    """
    ordered = sorted(examples, key=lambda example: example.number)
    return [_predict(split, example, scores, null or {}, length_normalised) for example in ordered]


def _predict(
    split: str,
    example: ExampleLike,
    collected: Mapping[str, OptionScores | None],
    null: Mapping[str, OptionScores | None],
    length_normalised: bool,
) -> Prediction:
    kept: dict[str, tuple[float | None, ...] | None] = dict.fromkeys(ROWS)
    prediction: dict[str, int | None] = dict.fromkeys(ROWS)
    correct: dict[str, bool | None] = dict.fromkeys(ROWS)
    loss: dict[str, float | None] = dict.fromkeys(ROWS)
    gold_tokens = 0
    has_choice = example.kind != "free_form"
    for row in ROWS:
        found = collected.get(row)
        if found is None:
            continue
        num_options = max(1, len(example.options))  # a free-form example has its output as the only target
        scores = _scores(found, example.number, num_options, length_normalised)
        bias = null.get(row)
        if bias is not None:
            scores = subtract_null(scores, _scores(bias, example.number, num_options, length_normalised))
        kept[row] = tuple(_finite(score) for score in scores)
        loss[row] = _negated(found.mean(example.number, num_options)[example.gold])
        gold_tokens = found.num_tokens(example.number, example.gold)
        if has_choice:
            chosen = prediction[row] = choose(scores)
            correct[row] = chosen != UNSCORED and same_label(example.options[chosen], example.options[example.gold])
    return Prediction(
        split=split,
        example=example.number,
        task=example.task,
        kind=example.kind,
        seed=example.seed,
        context=example.context,
        gold=example.gold,
        options=tuple(example.options),
        scores=kept,
        prediction=prediction,
        correct=correct,
        loss=loss,
        gold_tokens=gold_tokens,
    )


def examples_sha256(examples: Iterable[ExampleLike]) -> str:
    """Identity of a split's examples: what is asked, with which options, and what is right.

    The demonstrations are left out on purpose: runs that differ in them answer the same questions and may be compared.
    """
    digest = hashlib.sha256()
    for e in sorted(examples, key=lambda example: example.number):
        identity = [e.number, e.task, e.kind, e.seed, e.input, e.output, list(e.options), e.gold]
        digest.update(json.dumps(identity, ensure_ascii=True, separators=(",", ":")).encode("ascii"))
        digest.update(b"\n")
    return digest.hexdigest()


def _scores(found: OptionScores, example: int, num_options: int, length_normalised: bool) -> list[float]:
    return found.mean(example, num_options) if length_normalised else found.total(example, num_options)


def _per_token(total: float, count: int) -> float:
    return total / count if count else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _negated(value: float) -> float | None:
    return -value if math.isfinite(value) else None
