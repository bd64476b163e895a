"""Which weights and which tokenizer a compressed prompt belongs to, as SHA-256 hashes.

A memory is meaningless to any other weights, and nothing in its shapes would tell. The hash is over what counts: every
parameter's name, dtype, shape and bytes. Of a tokenizer it is the vocabulary and the rules that turn text into ids.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from promptcomp.memory import tensor_bytes, tensor_label

_THREADS = 4
_RULES = ("normalizer", "pre_tokenizer", "model", "added_tokens")
"""Parts of a fast tokenizer that decide about ids; padding, truncation and decoding do not."""
_VOCABULARY = '"vocab":'
_SECOND = "2:"
"""In front of a hash that was not made by taking everything apart."""


def text_hash(text: str) -> str:
    """Hash of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def weights_hash(model: nn.Module) -> str:
    """Hash over the parameters of a model, sorted by name.

    It is the SHA-256 of the parameters' own SHA-256 digests (over label and bytes), so that several can be worked out
    at once and no weight is copied on a CPU. Tied parameters count once.
    """
    named = sorted(model.named_parameters())
    with ThreadPoolExecutor(_THREADS) as pool:  # hashlib lets other threads run while it works on large buffers
        digests = list(pool.map(_digest, [name for name, _ in named], [parameter for _, parameter in named]))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _digest(name: str, parameter: Tensor) -> bytes:
    digest = hashlib.sha256(tensor_label(name, parameter))
    digest.update(tensor_bytes(parameter))
    return digest.digest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash over the vocabulary and the rules of a tokenizer.

    Of a fast tokenizer vocabulary and merges are hashed as the text that they are in `tokenizer.json`: a quarter of a
    million tokens are not taken apart.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return _first_hash(tokenizer)
    text = tokenizer.backend_tokenizer.to_str()
    start = text.find(_VOCABULARY)  # inside a token's text the quotes would be escaped
    try:
        whole = json.loads(
            f"{text[:start]}{_VOCABULARY}0}}}}"
        )  # the model is the last part, its vocabulary near its end
    except json.JSONDecodeError:
        return _first_hash(tokenizer)
    rules = json.dumps(_without_defaults({name: whole.get(name) for name in _RULES}), sort_keys=True)
    return _SECOND + text_hash(f"{rules}\n{text[start:]}")


def is_tokenizer(tokenizer: PreTrainedTokenizerBase, found: str) -> bool:
    """Whether `found`, which may be of an earlier version, is a tokenizer's hash."""
    return found == (tokenizer_hash(tokenizer) if found.startswith(_SECOND) else _first_hash(tokenizer))


def _first_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Over the vocabulary and the rules taken apart; what slow tokenizers have, and fast ones had."""
    rules: dict[str, Any] = {"class": type(tokenizer).__name__}
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        whole = json.loads(tokenizer.backend_tokenizer.to_str())
        rules = {name: whole.get(name) for name in _RULES}
        rules["model"].pop("vocab", None)
    described = {"vocabulary": sorted(tokenizer.get_vocab().items()), "rules": _without_defaults(rules)}
    return text_hash(json.dumps(described, sort_keys=True))


def _without_defaults(value: Any) -> Any:
    """Leave out empty, false and absent settings: newer libraries add such keys to the same tokenizer."""
    if isinstance(value, dict):
        return {key: _without_defaults(item) for key, item in value.items() if item not in (None, False, "", [], {})}
    if isinstance(value, list):
        return [_without_defaults(item) for item in value]
    return value
