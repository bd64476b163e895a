"""Token ids of text pieces, each distinct text tokenised once."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from functools import cached_property

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from promptcomp.evaluation.texts import same_label
from promptcomp.language_model import text_of
from promptcomp.plain import shown

_MAX_CACHED_TOKENS = 64_000_000  # 4 bytes each, and about as much again for the texts
_MANY_UNKNOWN = 0.05
_FEW_TEXTS = 256  # fewer are not worth waking the tokenizer's threads: measured 3 ms a call on busy cores


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

    def once(self, text: str) -> array[int]:
        """Token ids of a text that is not worth remembering."""
        return array("i", next(iter(self._encode((text,)))))

    def add(self, texts: Iterable[str]) -> None:
        """Tokenise the texts that are not known yet, many of them in one call of the tokenizer."""
        new = list(dict.fromkeys(text for text in texts if text not in self._ids))
        if not new:
            return
        if self._num_tokens > _MAX_CACHED_TOKENS:
            self._ids, self._num_tokens = {"": array("i")}, 0
        for text, ids in zip(new, self._encode(new), strict=True):
            self._ids[text] = array("i", ids)
            self._num_tokens += len(ids)

    def unknown(self, texts: Iterable[str]) -> str | None:
        """What to say of texts of which the tokenizer does not know many tokens; None: it does."""
        unknown, name = self._tokenizer.unk_token_id, self._tokenizer.unk_token
        if unknown is None or unknown == self._tokenizer.eos_token_id:  # byte-level vocabularies know every text
            return None
        ids = [i for text in texts for i in self(text)]
        share = ids.count(unknown) / max(1, len(ids))
        message = f"{share:.0%} of the tokens are unknown to the LM's tokenizer ({name}); use an LM that knows them"
        return message if share >= _MANY_UNKNOWN else None

    def rewritten(self, outputs: Sequence[str]) -> str | None:
        """What to say of answers that are other texts once the tokenizer has read and written them; None: none is."""
        pairs = [(each, text_of(self._tokenizer, self(each))) for each in outputs]
        if not (lost := [pair for pair in pairs if not same_label(*pair)]):
            return None
        count, first = f"{len(lost)} of the {len(outputs)} outputs", " as ".join(shown(text, 60) for text in lost[0])
        return (
            f"the LM's tokenizer writes {count} that were looked at otherwise ({first}), so no generated answer can "
            "equal them"
        )

    @cached_property
    def _backend(self) -> Tokenizer | None:
        """A copy of the tokenizer's core, so that no one's padding or truncation reaches it; None if it has none."""
        if not isinstance(self._tokenizer, PreTrainedTokenizerFast):
            return None
        backend = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = self._tokenizer.split_special_tokens  # which to_str leaves out
        return backend

    def _encode(self, texts: Sequence[str]) -> Iterable[Sequence[int]]:
        tokenizer = self._tokenizer
        backend = self._backend if len(texts) < _FEW_TEXTS else None
        if backend is not None:
            return (backend.encode(text, add_special_tokens=False).ids for text in texts)
        encoded = tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return encoded["input_ids"]


def same_options(
    options: Sequence[str], ids: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """Why a model cannot tell options apart, in words; None: it can.

    Args:
        options: Their texts.
        ids: Token ids of each, as the model reads them.
        tokenizer: Made the ids.
    """
    if empty := [option for option, each in zip(options, ids, strict=True) if not each]:
        return f"the option {shown(empty[0], 60)} has no token"
    if lost := [option for option, each in zip(options, ids, strict=True) if _is_unknown(each, tokenizer)]:
        names = ", ".join(shown(option, 60) for option in lost)
        return (
            f"the options {names} are unknown to the LM's tokenizer ({tokenizer.unk_token}); use an LM that knows them"
        )
    first: dict[tuple[int, ...], str] = {}
    for option, each in zip(options, ids, strict=True):
        other = first.setdefault(tuple(each), option)
        if other is not option:
            return f"the options {shown(other, 60)} and {shown(option, 60)} are the same {len(each)} tokens to the LM"
    return None


def _is_unknown(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether all tokens but blanks and line ends are the unknown one."""
    unknown = tokenizer.unk_token_id
    return unknown in ids and all(i == unknown or not str(tokenizer.decode([i])).strip() for i in ids)
