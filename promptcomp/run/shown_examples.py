"""The few examples of a run that its page shows, with their texts: examples.jsonl."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from promptcomp.config import ConfigError, Measured
from promptcomp.evaluation.predictions import Prediction, read_predictions
from promptcomp.evaluation.results import finite
from promptcomp.files import read_text, write_atomic
from promptcomp.run.run_directory import RunDirectory

_EACH = 2
"""Examples of each kind and split."""
_LONGEST = 8000
"""Characters of a text that are kept."""


class ShownExample(Measured):
    """An example with its texts."""

    why: str
    """best, worst or random."""
    context: str = ""
    query: str = ""
    answer: str = ""
    prediction: Prediction


def write_examples(
    path: Path,
    predictions: Mapping[str, Sequence[Prediction]],
    texts: Mapping[str, Callable[[int], tuple[str, str, str]]],
    seed: int,
) -> None:
    """Write the best, the worst and some other examples of each split.

    Args:
        path: the file.
        predictions: split -> its predictions.
        texts: split -> what gives context, query and right answer of an example.
        seed: chooses the others.

    Raises:
        ConfigError: the file cannot be written.
    """
    lines = []
    for split, own in predictions.items():
        for why, each in _chosen(own, seed):
            context, query, answer = (text[:_LONGEST] for text in texts[split](each.example))
            found = ShownExample(why=why, context=context, query=query, answer=answer, prediction=each)
            lines.append(f"{found.model_dump_json()}\n")
    write_atomic(path, "".join(lines))


def read_examples(run: RunDirectory, seed: int) -> list[ShownExample]:
    """Those of a run; of a run of an older version the same ones without their texts, none without predictions."""
    try:
        if not run.examples.is_file():
            found = read_predictions(run.predictions)
            return [
                ShownExample(
                    why=why, context=each.instruction or "", query=each.input or "",
                    answer=each.reference or (each.options[each.gold] if each.options else ""), prediction=each,
                )
                for split in dict.fromkeys(each.split for each in found)
                for why, each in _chosen([each for each in found if each.split == split], seed)
            ]  # fmt: skip
        lines = read_text(run.examples, "file of examples").split("\n")  # a text may hold other ends of lines
        return [ShownExample.model_validate_json(line) for line in lines if line]
    except (ConfigError, ValidationError):
        return []


def _chosen(predictions: Sequence[Prediction], seed: int) -> list[tuple[str, Prediction]]:
    """The best and the worst answers behind the method's memory, and others at random; none twice."""
    found: dict[int, tuple[str, Prediction]] = {}
    ordered = sorted(predictions, key=lambda each: (-_goodness(each), each.example))
    others = random.Random(seed).sample(ordered, len(ordered)) if ordered else []
    for why, order in (("best", ordered), ("worst", ordered[::-1]), ("random", others)):
        for each in [each for each in order if each.example not in found][:_EACH]:
            found[each.example] = why, each
    return list(found.values())


def _goodness(each: Prediction) -> float:
    """How good the method's answer is: its metric, then how far the right option is ahead, or the loss."""
    made = (each.metrics or {}).get("method") or {}
    score = made.get("rougeL", 0.0) + made.get("exact_match", 0.0)
    scores = [finite(one) for one in each.scores.get("method") or ()]
    if len(scores) > 1 and (right := scores[each.gold]) is not None:
        others = [other for i, other in enumerate(scores) if i != each.gold and other is not None]
        return 100 * score + right - max(others, default=right)
    return 100 * score - (each.loss.get("method") or 0.0)
