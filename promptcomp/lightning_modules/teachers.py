"""What a second model beside the LM, a teacher or a distiller, must have in common with it."""

from __future__ import annotations

from promptcomp.config import ConfigError
from promptcomp.language_model import LanguageModel


def check_same_tokenizer(lm: LanguageModel, other: LanguageModel, what: str) -> None:
    """Text reaches both as the same ids, so both must mean the same by them; `what` names the other in messages.

    Raises:
        ConfigError: the tokenizers or the vocabularies differ.
    """
    if lm.tokenizer is not None and other.tokenizer is not None:
        ours, theirs = lm.tokenizer.get_vocab(), other.tokenizer.get_vocab()
        if ours != theirs:
            odd = sum(1 for token, number in theirs.items() if ours.get(token) != number)
            raise ConfigError(
                f"{what}: its tokenizer is not the LM's ({len(theirs)} tokens, {odd} of them "
                f"unknown to the LM or numbered otherwise; the LM has {len(ours)}); choose one of the LM's family"
            )
    if other.vocab_size < (lm.vocab_size if lm.tokenizer is None else len(lm.tokenizer)):
        raise ConfigError(f"{what}: {other.vocab_size} token embeddings are fewer than the LM's vocabulary")
