"""Language models behind one face: decoder-only and encoder-decoder, with or without a Memory in front."""

from promptcomp.language_model.loading import LanguageModelConfig, open_tokenizer
from promptcomp.language_model.model import LanguageModel, Logits, Scores, TextEncoder, open_window

__all__ = ["LanguageModel", "LanguageModelConfig", "Logits", "Scores", "TextEncoder", "open_tokenizer", "open_window"]
