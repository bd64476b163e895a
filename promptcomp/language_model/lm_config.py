"""The section of the configuration that says which language model is used; it needs no torch."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from promptcomp.config import Config, ConfigError

BUILTIN = "builtin:"


class PositionalStart(Config):
    """Start heads of the first layer as "look n tokens back" heads (Llama with `attention_bias`).

    A constant query and key bias, turned by RoPE, is a kernel over relative positions; its maximum lies n tokens back.
    Without it the copying circuit of the smallest models did not form in 900 steps; with it, in 400-700.
    """

    offsets: tuple[int, ...] = (1, 2, 3)
    """Head i of layer 0 looks `offsets[i]` tokens back."""
    peak: float = 4.0
    """Attention logit of the wanted position above the mean over all angles."""
    content_scale: float = 0.1
    """Query and key weights of these heads are multiplied by this, so that the position decides at first."""


class FromScratch(Config):
    """Random weights, drawn with the run's seed, in place of those at `lm.path`."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """Changes to the architecture, such as {hidden_size: 128, num_hidden_layers: 4}."""
    positional_start: PositionalStart | None = None
    """For Llama with `attention_bias`."""


class LanguageModelConfig(Config):
    """Which language model to use."""

    path: str
    """A folder, a hub name, or a built-in model: builtin:toy_decoder, builtin:toy_t5."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Dtype of the weights."""
    attn_implementation: Literal["sdpa", "eager", "flex_attention"] | None = None
    """Attention code; null: sdpa where the model has it, otherwise eager. flex_attention (training on GPUs only) skips
    blocks that a mask hides. Kernels that accept no custom mask (flash attention) cannot be used."""
    layout: Literal["query_in_decoder", "query_in_encoder"] = "query_in_decoder"
    """Encoder-decoder only: where the query goes (the memory is always on the encoder's side)."""
    bos: bool | None = None
    """Put the tokenizer's BOS in front of every sequence; null: as the tokenizer itself does."""
    from_scratch: FromScratch | None = None
    """Start with random weights; `path` gives the tokenizer and the architecture (builtin:toy_student has no more)."""
    layers: int | None = Field(None, ge=1)
    """Only the first so many blocks of the model (T5: of its encoder and of its decoder), with their weights."""

    def check_place(self) -> None:
        """Look whether the LM is where it is said to be, as far as names tell: one of the hub may be anything.

        Raises:
            ConfigError: no such built-in model, or no such folder.
        """
        if self.path.startswith(("./", "../", "/")) and not os.path.isdir(self.path):
            raise ConfigError(
                f"{self.path}: the model cannot be read; give a folder saved by save_pretrained or a reachable hub "
                "name (no such folder)"
            )
        locate(self.path)


def locate(path: str) -> str:
    """The folder of a built-in model; any other name unchanged.

    Raises:
        ConfigError: no built-in model of that name.
    """
    if path.startswith("embedded:"):
        raise ConfigError(f"lm.path = {path!r}: built-in models are named {BUILTIN}{path.partition(':')[2]} now")
    if not path.startswith(BUILTIN):
        return path
    folder = Path(str(resources.files("promptcomp") / "assets" / path.removeprefix(BUILTIN)))
    if not (folder / "config.json").is_file():
        shipped = sorted(p.name for p in folder.parent.glob("*") if (p / "config.json").is_file())
        raise ConfigError(f"lm.path = {path!r}: no such built-in model; shipped: {', '.join(shipped) or 'none'}")
    return str(folder)
