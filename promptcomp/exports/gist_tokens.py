"""Gist tokens as entries of a tokenizer and rows of the embedding table, as transformers knows tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptcomp.language_model import embedding_scale, token_table


@dataclass(frozen=True, slots=True)
class GistTokens:
    """The gist tokens of an exported model."""

    ids: tuple[int, ...]
    """What stands behind a prompt: k token ids."""
    text: str
    """The same as text."""


def add_gist_tokens(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, gist: Tensor, num_slots: int
) -> GistTokens:
    """Give a model and its tokenizer gist tokens.

    Args:
        hf: Changed in place: new rows of the embedding table, and rows of zeros in an output head of its own.
        tokenizer: Changed in place.
        gist: Embeddings [1 or k, D].
        num_slots: k.
    """
    words = _unused(tokenizer, len(gist))
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
    repeated = [words[0]] * num_slots if len(words) == 1 else words
    ids = numbers * num_slots if len(words) == 1 else numbers
    return GistTokens(tuple(ids), "".join(repeated))


def _unused(tokenizer: PreTrainedTokenizerBase, count: int) -> list[str]:
    known = tokenizer.get_vocab()
    stem = "gist"
    while True:
        words = [f"<{stem}>"] if count == 1 else [f"<{stem}_{number}>" for number in range(1, count + 1)]
        if not known.keys() & set(words):
            return words
        stem = f"new_{stem}"
