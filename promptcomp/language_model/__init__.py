"""Language models behind one face: decoder-only and encoder-decoder, with or without a Memory in front."""

from promptcomp.language_model.loading import (
    LanguageModelConfig,
    open_tokenizer,
    open_window,
    reads_queries_in_encoder,
)
from promptcomp.language_model.model import LanguageModel
from promptcomp.language_model.parts import Logits, Scores, TextEncoder, at_least_float32, embedding_scale, token_table

__all__ = [
    "LanguageModel",
    "LanguageModelConfig",
    "Logits",
    "Scores",
    "TextEncoder",
    "at_least_float32",
    "embedding_scale",
    "open_tokenizer",
    "open_window",
    "reads_queries_in_encoder",
    "token_table",
]
