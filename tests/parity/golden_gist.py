"""Golden gisting cases as our models, prefixes and batches (shared by the parity tests)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from promptcomp.batch import Batch, EncodedContext, EncodedQuery, EncodedTarget, collate, pad
from promptcomp.language_model import LanguageModel
from promptcomp.language_model.parts import Prefix

DATA = Path(__file__).parent / "data" / "gisting"
GIST = 99


class Arrays:
    """The arrays of one golden file as tensors."""

    def __init__(self, name: str) -> None:
        self._arrays = np.load(DATA / f"{name}.npz")
        self.names: list[str] = self._arrays.files

    def __getitem__(self, key: str) -> Tensor:
        array = torch.from_numpy(self._arrays[key])
        return array if array.is_floating_point() else array.long()


class Row(NamedTuple):
    """One golden row without padding: what stands up to the last gist token, behind it, and the target."""

    prefix: tuple[int, ...]
    query: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def num_gists(self) -> int:
        return self.prefix.count(GIST)


def split(prompt: Sequence[int], target: Sequence[int], gist: int = GIST) -> Row:
    """Cut a prompt behind its last gist token; a prompt without one is all query."""
    last = max((i for i, token in enumerate(prompt) if token == gist), default=-1)
    return Row(tuple(prompt[: last + 1]), tuple(prompt[last + 1 :]), tuple(target))


def tiny_llama(attention: str = "sdpa") -> LanguageModel:
    hf = AutoModelForCausalLM.from_pretrained(DATA / "llama_tiny", attn_implementation=attention)
    return LanguageModel.from_parts(hf.eval())


def tiny_t5(attention: str = "sdpa") -> LanguageModel:
    hf = AutoModelForSeq2SeqLM.from_pretrained(DATA / "t5_tiny_v11", attn_implementation=attention)
    return LanguageModel.from_parts(hf.eval(), layout="query_in_encoder")


def llama_rows(arrays: Arrays) -> list[Row]:
    """The training rows: prompts end where the labels begin."""
    rows = []
    for ids, labels, mask in zip(
        arrays["train/input_ids"], arrays["train/labels"], arrays["train/attention_mask"], strict=True
    ):
        is_target = labels != -100
        rows.append(split(ids[mask.bool() & ~is_target].tolist(), labels[is_target].tolist()))
    return rows


def t5_rows(arrays: Arrays) -> list[Row]:
    return [
        split(ids[ids != 0].tolist(), labels[labels != -100].tolist())
        for ids, labels in zip(arrays["train/input_ids"], arrays["train/labels"], strict=True)
    ]


def batch_of(rows: Sequence[Row], *, contexts: bool = False) -> Batch:
    """A batch of the rows' queries and targets; `contexts` keeps what precedes the gist tokens as the context."""
    return collate(
        [
            EncodedContext(
                row.prefix[: len(row.prefix) - row.num_gists] if contexts else (),
                (EncodedQuery(row.query, (EncodedTarget(row.target),), i),),
            )
            for i, row in enumerate(rows)
        ],
    )


def prefix_of(lm: LanguageModel, rows: Sequence[Row], visible: str = "gist") -> Prefix:
    """The rows' prefixes, mixed numbers of gist tokens in one batch; `visible` is "gist", "all" or "none"."""
    ids, mask = pad([row.prefix for row in rows], 0, "left")
    seen = {"gist": mask & (ids == GIST), "all": mask, "none": torch.zeros_like(mask)}[visible]
    return Prefix(lm.embed(ids), mask, seen)
