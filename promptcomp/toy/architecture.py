"""Building a base LM from a configuration, with the special starts that small models need."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from promptcomp.config import Config, ConfigError
from promptcomp.language_model.lm_config import PositionalStart
from promptcomp.language_model.random_start import start_positions
from promptcomp.toy.t5_start import CopyStart, apply_copy_start


class Architecture(Config):
    """A Hugging Face model class and its configuration."""

    model_type: str
    """A `model_type` of transformers: llama, gpt2, t5 ..."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Keywords of the configuration class; `vocab_size` and the special ids come from the tokenizer."""
    positional_start: PositionalStart | None = None
    """For Llama with `attention_bias`."""
    copy_start: CopyStart | None = None
    """For T5."""


def build_model(
    architecture: Architecture, vocab_size: int, pad_id: int, bos_id: int | None, eos_id: int
) -> PreTrainedModel:
    """A freshly initialised model; initial weights follow torch's global seed.

    Raises:
        ConfigError: transformers has no such model type, or a special start is asked of a model that cannot have it.
    """
    settings = {"vocab_size": vocab_size, "pad_token_id": pad_id, "bos_token_id": bos_id, "eos_token_id": eos_id}
    try:
        config = AutoConfig.for_model(architecture.model_type, **{**settings, **architecture.settings})
    except ValueError:
        raise ConfigError(
            f"architecture.model_type = {architecture.model_type!r}: not known to transformers; try llama, gpt2 or t5"
        ) from None
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto_class.from_config(config)
    if architecture.positional_start is not None:
        start_positions(model, architecture.positional_start)
    if architecture.copy_start is not None:
        apply_copy_start(model, architecture.copy_start)
    return model
