"""Exported gist tokens: entries of a tokenizer and rows of the embedding table, as transformers knows tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptcomp.language_model import embedding_scale, token_table
from promptcomp.language_model.cache import keyword_code
from promptcomp.lightning_modules.exported import Page


def add_gist_tokens(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, gist: Tensor, num_slots: int
) -> tuple[list[int], str]:
    """Give a model and its tokenizer gist tokens; returns the k tokens behind a prompt as ids and as text.

    Args:
        hf: Changed in place: new rows of the embedding table, and rows of zeros in an output head of its own.
        tokenizer: Changed in place.
        gist: Embeddings [1 or k, D].
        num_slots: k.
    """
    count, stem = len(gist), "gist"
    while True:
        words = [f"<{stem}>"] if count == 1 else [f"<{stem}_{number}>" for number in range(1, count + 1)]
        if not tokenizer.get_vocab().keys() & set(words):
            break
        stem = f"new_{stem}"
    tokenizer.add_tokens(words, special_tokens=True)
    known = tokenizer.get_vocab()
    numbers = [known[word] for word in words]
    table = token_table(hf)
    if max(numbers) >= table.num_embeddings:
        # The rows that T5 has beyond its tokenizer are kept: a table never shrinks.
        hf.resize_token_embeddings(max(numbers) + 1, mean_resizing=False)
        table = token_table(hf)
    head = hf.get_output_embeddings()
    with torch.no_grad():
        if isinstance(head, nn.Linear) and head.weight is not table.weight:
            head.weight[numbers] = 0
        table.weight[numbers] = (gist / embedding_scale(table)).to(table.weight)
    if hf.generation_config is not None:
        hf.generation_config.suppress_tokens = sorted({*(hf.generation_config.suppress_tokens or ()), *numbers})
    repeated = num_slots // count
    return numbers * repeated, "".join(words * repeated)


def gist_page(count: int, base: str = "", ids: Sequence[int] = (), text: str = "") -> Page:
    """Of a model with `count` gist tokens (see `add_gist_tokens`), or of adapters of the LM that `base` opens."""
    values = {"count": count, "base": base, "ids": list(ids), "text": text, "keyword_code": keyword_code("model")}
    return Page("gist", values)
