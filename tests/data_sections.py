"""What tests ask of a data section: everything that is wrong with it, and rows as the model sees them."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import ContextDataModule
from promptcomp.datamodules.inspect import ShownRow
from promptcomp.datamodules.inspect import show as show_module
from promptcomp.datamodules.sections import DataConfig, Reader
from promptcomp.datamodules.sources.records import Problem


def module_of(config: DataConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> ContextDataModule:
    """The datamodule of a section; without a tokenizer with one token for each byte."""
    return config.build(Reader(tokenizer or byte_tokenizer(), seed=0, batch_size=1))


def validate(config: DataConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Problem]:
    """What `promptcomp data validate` finds."""
    try:
        return module_of(config, tokenizer).problems()
    except ConfigError as error:
        return [Problem("data", None, str(error))]


def show(config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: str, count: int) -> list[ShownRow]:
    """The first rows of a split."""
    return show_module(module_of(config, tokenizer), split, count)


def byte_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """One token for each byte, and a few special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        extra_special_tokens=["<|start|>", "<|end|>"],
    )
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer
