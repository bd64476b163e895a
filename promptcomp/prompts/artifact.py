"""The file of a compressed prompt: a memory with one row, and in its header everything needed to use it safely.

A memory is meaningless to any other weights, and nothing in its shapes would tell, so the header has SHA-256 hashes of
the weights (every parameter's name, dtype, shape and bytes) and of the tokenizer (vocabulary and rules).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from promptcomp.config import Config, ConfigError
from promptcomp.datamodules.context_module import PromptFormat, Trims
from promptcomp.evaluation.formatting import many
from promptcomp.language_model import LanguageModelConfig
from promptcomp.memory import Memory, load_memory
from promptcomp.memory import weights_hash as weights_hash


class PromptInfo(Config):
    """The description of a compressed prompt; the `metadata` of its file."""

    # files of later programs of the same format may say more
    model_config = ConfigDict(extra="ignore")

    method: str
    """The method that compressed it."""
    family: Literal["decoder", "encoder_decoder"]
    """Family of the LM that reads it."""
    lm: LanguageModelConfig
    """The LM that reads it, or that the run has trained into it."""
    run: str | None = None
    """The run directory that made it."""
    lm_is_trained: bool = False
    """Whether the reading LM has weights that the run trained, and is not `lm` unchanged."""
    lm_hash: str
    """Hash of the reading LM's weights."""
    tokenizer_hash: str
    """Hash of its tokenizer."""
    bos_id: int | None = None
    """The token in front of every sequence (a SoftPrompt stands behind it; the other kinds contain its effect)."""
    slots: int
    """Positions that the memory takes."""
    source_tokens: int
    """Tokens of the prompt it was made of (without BOS)."""
    next_position: int | None = None
    """Position id of the first token behind it (decoder-only)."""
    dtype: str
    """Type of the memory's numbers."""
    source_sha256: str
    """Hash of the prompt's text (UTF-8)."""
    text: str | None = None
    """The text itself, kept only on request."""
    query: str
    """Template of a query, with `{input}` where its text goes."""
    empty_query: str = ""
    """What stands for a query without text."""
    trims: Trims = False
    """Whether a query's text loses the white space around it, or on which side."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end an answer."""
    created: str
    """When it was made (UTC)."""
    version: str
    """The promptcomp that made it."""
    settings: dict[str, Any] = {}
    """The method's settings, and the task where one was named."""
    cost: dict[str, float] = {}
    """What making it took, where it was trained for this prompt alone (`seconds`, `flops`, ...); otherwise empty."""
    held_out: dict[str, dict[str, float]] = {}
    """Such a memory's agreement with the LM behind the whole prompt on held-out questions, and that of its rivals."""

    @property
    def format(self) -> PromptFormat:
        """How queries are written."""
        return PromptFormat(self.query, self.empty_query, self.stop_ids, self.trims)

    @property
    def lengths(self) -> str:
        """`4 tokens -> 1 slot`."""
        return f"{many(self.source_tokens, 'token')} -> {many(self.slots, 'slot')}"


def read_prompt(path: Path) -> tuple[Memory, PromptInfo]:
    """Read and verify the file of a compressed prompt: the memory (on the CPU), and what it says of itself.

    Raises:
        ConfigError: missing, truncated, edited, newer than this program, or something else altogether.
    """
    memory, metadata = load_memory(path)
    try:
        info = PromptInfo.model_validate(metadata)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{path}: holds a memory, but not a compressed prompt ({where}: {first['msg']}); "
            "'promptcomp compress' makes one"
        ) from None
    if len(memory.mask) != 1:
        raise ConfigError(f"{path}: holds {len(memory.mask)} memories; the file of a compressed prompt holds one")
    return memory, info


_RULES = ("normalizer", "pre_tokenizer", "model", "added_tokens")
"""Parts of a fast tokenizer that decide about ids; padding, truncation and decoding do not."""
_VOCABULARY = '"vocab":'
_SECOND = "2:"
"""In front of a hash that was not made by taking everything apart."""


def text_hash(text: str) -> str:
    """Hash of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash over the vocabulary and the rules of a tokenizer.

    Of a fast tokenizer vocabulary and merges are hashed as the text that they are in `tokenizer.json`: a quarter of a
    million tokens are not taken apart.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return _first_hash(tokenizer)
    text = tokenizer.backend_tokenizer.to_str()
    start = text.find(_VOCABULARY)  # inside a token's text the quotes would be escaped
    try:  # the model is the last part, its vocabulary near its end
        whole = json.loads(f"{text[:start]}{_VOCABULARY}0}}}}")
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
