"""Where the numbers of the original Distilling Step-by-Step are, and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from promptcomp.datamodules.tasks import RationaleRow, RationaleSource

FOLDER = Path(__file__).parent / "data" / "step_by_step"


def numbers(name: str) -> Any:
    """The content of one of the JSON files."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def batches() -> dict[str, np.ndarray]:
    """Arrays named `{dataset}__{task}__{field}`."""
    with np.load(FOLDER / "batches.npz") as arrays:
        return dict(arrays)


def tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the golden T5 (ids: pad 0, eos 1, unk 2)."""
    return AutoTokenizer.from_pretrained(FOLDER / "tokenizer")


def svamp_rows() -> list[RationaleRow]:
    """The four rows behind the golden SVAMP batches."""
    return [
        RationaleRow(
            id=str(i),
            input=text["predict_input"].removeprefix("predict: ").removesuffix("</s>"),
            label=text["label"].removesuffix("</s>"),
            llm_rationale=text["rationale"].removesuffix("</s>"),
        )
        for i, text in enumerate(numbers("texts")["svamp"])
    ]


class Rows(RationaleSource):
    """A source with given rows; train and test are the same."""

    splits = ("train", "test")

    def __init__(self, rows: list[RationaleRow]) -> None:
        self._rows = rows

    def rows(self, split: str) -> list[RationaleRow]:
        """The rows, whatever the split."""
        return self._rows
