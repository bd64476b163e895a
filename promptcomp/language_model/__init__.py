"""One interface to language models: decoder-only and encoder-decoder, with or without a Memory in front.

The names are imported when they are first used: the section of the configuration needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promptcomp.language_model.lm_config import LanguageModelConfig
    from promptcomp.language_model.loading import open_tokenizer, open_window, reads_queries_in_encoder, text_of
    from promptcomp.language_model.model import LanguageModel
    from promptcomp.language_model.parts import (
        Logits,
        Scores,
        TextEncoder,
        at_least_float32,
        embedding_scale,
        token_table,
    )

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
    "text_of",
    "token_table",
]
_FILES = {"LanguageModel": "model", "LanguageModelConfig": "lm_config"} | dict.fromkeys(
    ("open_tokenizer", "open_window", "reads_queries_in_encoder", "text_of"), "loading"
)


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES.get(name, 'parts')}"), name)
