"""Token ids of text pieces, each distinct text tokenised once."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

_MAX_CACHED_TOKENS = 64_000_000  # 4 bytes each, and about as much again for the texts


class TokenCache:
    """Tokenises without special tokens and remembers the result in compact arrays."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, array[int]] = {"": array("i")}
        self._num_tokens = 0

    def __call__(self, text: str) -> array[int]:
        """Token ids of one text; do not change the array."""
        found = self._ids.get(text)
        if found is None:
            self.add((text,))
            found = self._ids[text]
        return found

    def add(self, texts: Iterable[str]) -> None:
        """Tokenise the texts that are not known yet, in one call of the tokenizer."""
        new: Sequence[str] = list(dict.fromkeys(text for text in texts if text not in self._ids))
        if not new:
            return
        if self._num_tokens > _MAX_CACHED_TOKENS:
            self._ids, self._num_tokens = {"": array("i")}, 0
        encoded = self._tokenizer(
            new, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
        for text, ids in zip(new, encoded["input_ids"], strict=True):
            self._ids[text] = array("i", ids)
            self._num_tokens += len(ids)
