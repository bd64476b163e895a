"""From log probabilities of options and generated texts to predictions.jsonl: one line for every evaluated example.

The score of an option is its mean log probability per token (MEND, arXiv 2403.06914; MetaICL). PMI (MetaICL's
calibration) subtracts the score of the same option with the input replaced by "N/A". The highest score wins, the first
on ties. A score that is not a number never wins: the original code let an empty 0/0 option win silently.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ConfigDict, ValidationError, model_validator

from promptcomp.config import ConfigError, Measured
from promptcomp.errors import command
from promptcomp.evaluation.results import finite
from promptcomp.evaluation.texts import Rouge, same_label, text_metrics
from promptcomp.files import read_text, write_atomic

ROWS = ("no_prompt", "method", "full_prompt")
"""What every example is scored with: nothing, the method's memory, and the full prompt; rivals add their rows."""

TEXT_METRICS = (
    *("exact_match", "equation", "rouge1", "rouge2", "rougeL", "rougeLsum", "agreement"),
    *("teacher_match", "teacher_rougeL"),
)
"""What generated texts are measured by (all 0-1): equality with the right answer but for white space; ROUGE F-measures
with stemming; equality with the text of the full-prompt row; equality with, and ROUGE-L against, the answer of the LM
as it was behind the full prompt (`data.targets: teacher`)."""

MetricName = Literal[
    "accuracy", "task_accuracy", "macro_f1", "macro_f1_metaicl", "task", "loss",
    "exact_match", "equation", "rouge1", "rouge2", "rougeL", "rougeLsum", "agreement", "kl", "top1",
    "teacher_match", "teacher_rougeL",
]  # fmt: skip
METRICS: tuple[MetricName, ...] = get_args(MetricName)
"""accuracy: of all examples, pooled. task_accuracy: mean over tasks of the mean over seeds. macro_f1 and
macro_f1_metaicl: the same of macro-F1, over classification tasks. task: macro-F1 of classification tasks and accuracy
of the others, mean over seeds, then over tasks (MetaICL's headline). loss: nats per gold token, pooled; less is better.
kl and top1: how close the LM behind the row's memory is to the LM behind the full prompt, at the gold tokens, pooled:
KL(full || row) in nats, less is better, and the share of positions where both have the same likeliest token. The rest
(TEXT_METRICS): mean over all examples with generated texts.
"""

BEHAVIOUR: tuple[MetricName, ...] = ("kl", "top1", "teacher_match", "teacher_rougeL")
"""What says how much a row does as the LM behind the full prompt does."""
TOKEN_METRICS = ("loss", "kl", "top1")
"""Means over gold tokens."""
LOWER_IS_BETTER = ("loss", "kl")

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
    kl: dict[str, float | None] | None = None
    """KL(full prompt || row) in nats per token of the gold target. This and the next are left out without bounds."""
    top1: dict[str, float | None] | None = None
    """Share of the gold target's tokens where the row and the full prompt have the same likeliest token."""
    texts: dict[str, str | None] | None = None
    """What was generated under each row. This and the keys below are left out where nothing was generated."""
    reference: str | None = None
    """The right answer, which the texts are compared with; null: there is none."""
    teacher: str | None = None
    """What the LM as it was answers behind the full prompt; left out where the targets are not its answers."""
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


_BY_ROW = ("scores", "prediction", "correct", "loss")
_CLOSENESS_KEYS = ("kl", "top1")
_GENERATED_KEYS = {"texts", "reference", "instruction", "input", "metrics", "unfinished"}


def joined(members: Mapping[str, Prediction], context: int | None = None) -> Prediction:
    """One prediction whose rows are the methods of several runs on one example, by the names of the rows; `context` is
    its number instead of the first run's."""
    first = next(iter(members.values()))
    metrics = {row: p.metrics["method"] for row, p in members.items() if p.metrics and "method" in p.metrics}
    texts = {row: p.texts.get("method") if p.texts else None for row, p in members.items()}
    own = {name: {row: getattr(p, name).get("method") for row, p in members.items()} for name in _BY_ROW}
    own |= {n: {row: (getattr(p, n) or {}).get("method") for row, p in members.items()} for n in _CLOSENESS_KEYS}
    written = {"texts": texts if metrics else None, "metrics": metrics or None, "unfinished": None}
    return first.model_copy(update={"context": first.context if context is None else context, **own, **written})


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write all predictions of a run, atomically.

    Raises:
        ConfigError: the file cannot be written.
    """
    write_atomic(path, "".join(f"{p.model_dump_json(exclude=_unwritten(p))}\n" for p in predictions))


def _unwritten(prediction: Prediction) -> set[str]:
    near = {name for name in (*_CLOSENESS_KEYS, "teacher") if getattr(prediction, name) is None}
    return near if prediction.is_generated else near | _GENERATED_KEYS


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
                f"{path}, line {number}: not a prediction ({reason}); `{anew}` writes the file again"
            ) from None
    return predictions


@dataclass(frozen=True, slots=True)
class ExampleInfo:
    """What evaluation needs to know about one example of a split."""

    number: int
    """Number within the split; `Batch.example` refers to it."""
    task: str
    kind: Literal["classification", "multi_choice", "free_form"]
    seed: int | None
    """Data seed of the task."""
    context: int
    """Number of the shared context within the split; examples with one number belong to one cluster."""
    gold: int
    """Index of the output among the options; 0 for free-form examples, whose only option is their output."""
    options: tuple[str, ...]
    input: str
    output: str
    instruction: str = ""
    """The context as a person wrote it; empty: the context's tokens, decoded, stand for it."""
    teacher: str | None = None
    """The LM's own answer, where the targets are those."""


OptionScores = dict[tuple[int, int], tuple[float, int]]
"""What was scored, batch by batch in any order: (example, choice) -> (sum of the log probabilities in nats, number of
tokens). A distributed sampler repeats examples to fill the last batch; they are kept once."""
GoldSums = dict[int, tuple[float, float]]
"""Likewise how close a row is to the full prompt: example -> sums over its gold tokens of kl (nats) and of top1."""


def _means(scores: OptionScores, example: int, num_options: int) -> list[float]:
    """Score of each option in nats per token; NaN for an option without tokens."""
    if missing := [choice for choice in range(num_options) if (example, choice) not in scores]:
        raise ValueError(f"example {example}: option {missing[0]} has not been scored")
    pairs = [scores[example, choice] for choice in range(num_options)]
    return [total / count if count else math.nan for total, count in pairs]


def choose(scores: Sequence[float]) -> int:
    """Index of the highest finite score, the first on ties; `UNSCORED` when there is none."""
    numbers = [i for i, score in enumerate(scores) if math.isfinite(score)]
    return max(numbers, key=lambda i: (scores[i], -i), default=UNSCORED)


def make_predictions(
    split: str,
    examples: Iterable[ExampleInfo],
    scores: Mapping[str, OptionScores | None],
    null: Mapping[str, OptionScores | None] | None = None,
    closeness: Mapping[str, GoldSums] | None = None,
) -> list[Prediction]:
    """Predictions of a split, in the order of the examples' numbers.

    Args:
        split: name of the split.
        examples: all examples of the split.
        scores: for each row of `ROWS` and each rival's what was collected; None or absent: the row does not apply.
        null: the same for the input "N/A" (PMI); None: no calibration.
        closeness: row -> how close it is to the full prompt; None: not measured.

    Raises:
        ValueError: an option of an example has not been scored.
    """
    predictions = []
    rows = tuple(dict.fromkeys((*ROWS, *scores)))
    for example in sorted(examples, key=lambda example: example.number):
        keys = _BY_ROW if closeness is None else (*_BY_ROW, *_CLOSENESS_KEYS)
        found: dict[str, Any] = {key: dict.fromkeys(rows) for key in keys}
        gold_tokens = 0
        num_options = max(1, len(example.options))  # a free-form example has its output as the only target
        for row in rows:
            own, bias = scores.get(row), (null or {}).get(row)
            if own is None:
                continue
            means = _means(own, example.number, num_options)
            found["loss"][row] = finite(-means[example.gold])
            if bias is not None:
                means = [
                    mean - less for mean, less in zip(means, _means(bias, example.number, num_options), strict=True)
                ]
            found["scores"][row] = tuple(map(finite, means))
            gold_tokens = own[example.number, example.gold][1]
            near = (closeness or {}).get(row, {}).get(example.number)
            for key, total in zip(_CLOSENESS_KEYS, near, strict=True) if near and gold_tokens else ():
                found[key][row] = finite(total / gold_tokens)
            if example.kind != "free_form":
                chosen = found["prediction"][row] = choose(means)
                right = example.options[example.gold]
                found["correct"][row] = chosen != UNSCORED and same_label(example.options[chosen], right)
        predictions.append(
            Prediction(
                split=split,
                example=example.number,
                task=example.task,
                kind=example.kind,
                seed=example.seed,
                context=example.context,
                gold=example.gold,
                options=tuple(example.options),
                gold_tokens=gold_tokens,
                **found,
            )
        )
    return predictions


def examples_sha256(examples: Iterable[ExampleInfo]) -> str:
    """Identity of a split's examples: what is asked, with which options, and what is right.

    The demonstrations are left out on purpose: runs that differ in them answer the same questions and may be compared.
    """
    digest = hashlib.sha256()
    for e in sorted(examples, key=lambda example: example.number):
        identity = [e.number, e.task, e.kind, e.seed, e.input, e.output, list(e.options), e.gold]
        identity += [] if e.teacher is None else [e.teacher]
        digest.update(json.dumps(identity, ensure_ascii=True, separators=(",", ":")).encode("ascii"))
        digest.update(b"\n")
    return digest.hexdigest()


GeneratedTexts = dict[int, tuple[str, bool]]
"""What one row (method or bound) answered, batch by batch in any order: example -> text, and whether it reached the
limit of new tokens before it ended."""


def add_texts(
    predictions: Sequence[Prediction],
    collected: Mapping[str, GeneratedTexts],
    questions: Mapping[int, tuple[str, str, str]],
    rouge: Rouge,
    teacher: Mapping[int, str] | None = None,
) -> list[Prediction]:
    """The predictions of a split with texts and their metrics.

    Args:
        predictions: of the split; those without a text in `collected` stay as they are.
        collected: row -> what was generated.
        questions: example -> instruction (the context as text), input and right answer.
        rouge: the scorer.
        teacher: example -> the LM's own answer, where these are the targets: then a right answer may be missing.
    """
    found, teacher = [], teacher or {}
    for prediction in predictions:
        if (number := prediction.example) not in questions:
            found.append(prediction)
            continue
        instruction, given, reference = questions[number]
        own = teacher.get(number)
        right = None if own is not None and not reference else reference
        rows = dict.fromkeys((*ROWS, *collected))
        texts = {row: collected[row][number][0] if row in collected else None for row in rows}
        full = {row: texts["full_prompt"] if row != "full_prompt" else None for row in rows}
        update = {
            "texts": texts,
            "reference": right,
            "teacher": own,
            "instruction": instruction,
            "input": given,
            "metrics": {r: text_metrics(t, right, full[r], rouge, own) for r, t in texts.items() if t is not None},
            "unfinished": {row: each[number][1] for row, each in collected.items()},
        }
        found.append(prediction.model_copy(update=update))
    return found
