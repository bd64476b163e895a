"""The section of the configuration that says which language model is used; it needs no torch."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from promptcomp.config import Config, ConfigError
from promptcomp.documents import read_json
from promptcomp.errors import close_matches, did_you_mean
from promptcomp.language_model.pretrained import GGUF, PRETRAINED, find_pretrained

BUILTIN = "builtin:"
ENCODER_DECODERS = ("t5", "mt5")
"""Encoder-decoder families whose attention takes the position from a relative bias that we can set for packed rows."""
SIZES_OF_TABLES = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
"""Names in architectures for the number of positions; the first that is there counts."""


class PositionalStart(Config):
    """Start heads of the first layer as "look n tokens back" heads (Llama with `attention_bias`).

    A constant query and key bias, turned by RoPE, is a kernel over relative positions; its maximum lies n tokens back.
    Without it the copying circuit of the smallest models did not form in 900 steps; with it, in 400-700.
    """

    offsets: tuple[int, ...] = (1, 2, 3)
    """Head i of layer 0 looks `offsets[i]` tokens back."""
    peak: float = Field(default=4.0, ge=0)
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

    path: str = Field(min_length=1)
    """A folder, a GGUF file, a name of `promptcomp models list` (smollm2) or of the hub, or a built-in model
    (builtin:toy_decoder, builtin:toy_t5)."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Numbers of the weights. float32: 4 bytes each; bfloat16: 2 bytes, with the range of float32; float16: 2 bytes,
    with a smaller range; float64: 8 bytes, for comparisons of numbers."""
    attn_implementation: Literal["sdpa", "eager", "flex_attention"] | None = None
    """Attention code. null: sdpa where the model has it, otherwise eager; sdpa: torch's fused attention; eager: plain
    matrix products; flex_attention (training on GPUs only): skips blocks that a mask hides. Kernels that accept no
    custom mask (flash attention) cannot be used."""
    layout: Literal["query_in_decoder", "query_in_encoder"] = "query_in_decoder"
    """Encoder-decoder only: where the query goes (the memory is always on the encoder's side). query_in_decoder: in
    front of the answer, in the decoder; query_in_encoder: behind the memory, in the encoder."""
    bos: bool | None = None
    """Put the tokenizer's BOS in front of every sequence; null: as the tokenizer itself does."""
    from_scratch: FromScratch | None = None
    """Start with random weights; `path` gives the tokenizer and the architecture (builtin:toy_student has no more)."""
    layers: int | None = Field(None, ge=1)
    """Only the first so many blocks of the model (T5: of its encoder and of its decoder), with their weights."""

    def check_place(self) -> None:
        """Look whether the LM is where it is said to be, as far as names tell: one of the hub may be anything.

        Raises:
            ConfigError: no such built-in model, folder or GGUF file, a model that is not in the cache yet, or a
                revision of what is no name of the hub.
        """
        if self.path.startswith(("./", "../", "/")) and not os.path.isdir(self.path) and not self.path.endswith(GGUF):
            raise ConfigError(
                f"{self.path}: the model cannot be read; give a folder saved by save_pretrained or a reachable hub "
                "name (no such folder)"
            )
        near = [] if "/" in self.path or is_place(self.path) else close_matches(self.path, _short_names(), cutoff=0.85)
        if near and (found := _short_names()[near[0]]) != self.path:
            raise ConfigError(f"lm.path = {self.path!r}: there is no such model; did you mean {found!r}?")
        if (locate(self.path) != self.path or is_place(self.path)) and self.revision is not None:
            raise ConfigError(
                f"lm.revision = {self.revision!r} is for names of the hub, and {self.path} is none; leave it out"
            )

    def window_on_disk(self) -> int | None:
        """Maximum number of positions that the LM can read, as config.json in its folder says; None: it does not say.

        Some architectures can read less than their table is long (`Window.of`).
        """
        try:
            found = read_json(Path(locate(self.path)) / "config.json", "architecture")
            found = {**found, **(self.from_scratch.settings if self.from_scratch is not None else {})}
        except (ConfigError, TypeError):  # as opening the LM will say
            return None
        if found.get("is_encoder_decoder") or found.get("model_type") in ENCODER_DECODERS or "text_config" in found:
            return None
        tables = (found.get(name) for name in SIZES_OF_TABLES)
        return next((size for size in tables if isinstance(size, int) and size > 0), None)


def locate(path: str) -> str:
    """The folder of a built-in model, of a model in the cache, or of what is made of a GGUF file; any other name
    unchanged. It is the one place that knows names.

    Raises:
        ConfigError: no built-in model of that name, or as `find_pretrained`.
    """
    if path.startswith("embedded:"):
        raise ConfigError(f"lm.path = {path!r}: built-in models are named {BUILTIN}{path.partition(':')[2]} now")
    if not path.startswith(BUILTIN):
        return find_pretrained(path) or path
    known, name = _builtin_models(), path.removeprefix(BUILTIN)
    if name not in known:
        hint = did_you_mean(name, known, f"shipped: {', '.join(known)}")
        raise ConfigError(f"lm.path = {path!r}: no such built-in model; {hint}")
    return str(known[name])


def _builtin_models() -> dict[str, Path]:
    folders = sorted(Path(str(resources.files("promptcomp") / "assets")).iterdir())
    return {folder.name: folder for folder in folders if (folder / "config.json").is_file()}


def _short_names() -> dict[str, str]:
    """Names without their prefix -> how `lm.path` has them."""
    return {name: name for name in PRETRAINED} | {name: BUILTIN + name for name in _builtin_models()}


def unknown_encoder_decoder(kind: str) -> str:
    """The message of a refusal."""
    return f"encoder-decoder models of type {kind!r} are not supported; known: {', '.join(ENCODER_DECODERS)}"


def place_of(path: str) -> str:
    """An LM's path as a record keeps it: a folder or file by its full path, a name as it is."""
    return str(Path(path).resolve()) if is_place(path) else path


def is_place(path: str) -> bool:
    """Whether an LM's path is a folder or file here, and no name."""
    return os.path.isfile(path) or (os.path.isdir(path) and locate(path) == path)
