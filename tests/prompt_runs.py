"""Run directories with untrained weights and tiny models, made without fitting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from promptcomp.config import dump
from promptcomp.experiment import Experiment
from promptcomp.language_model import LanguageModelConfig
from promptcomp.language_model.loading import open_tokenizer
from promptcomp.lightning_modules import METHODS
from promptcomp.run.opening import make_parts

WINDOW = 4096
_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3, "max_position_embeddings": 256}
_XGLM = {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "init_std": 0.3}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {**_LLAMA, "sliding_window": 4}),
    "gemma3": (
        "gemma3_text",
        {**_LLAMA, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gemma": ("gemma", _LLAMA),
    "xglm": ("xglm", _XGLM),
    "mixtral": ("mixtral", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "qwen3_moe",
        {**_LLAMA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [0]},
    ),
    "biogpt": ("biogpt", {**_SIZES, "initializer_range": 0.3}),
}
"""Further families: with a sliding window shorter than a prompt, scaled token embeddings, mixtures of experts."""
DATA = {
    "name": "toy_icl",
    "num_demonstrations": 4,
    "queries_per_context": 2,
    "world": {"num_test_tasks": 2, "num_dev_tasks": 2, "num_queries": 2},
}
"""A small corner of the toy world."""


def save_lm(folder: Path, kind: str, seed: int = 0, world: str = "toy_decoder") -> Path:
    """A random LM ("gpt2", "llama", "t5", "mt5" with an output head of its own, or one of KINDS) with the tokenizer of
    a toy world; its answers are no constant."""
    tokenizer = open_tokenizer(LanguageModelConfig(path=f"builtin:{world}"))
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    words = len(tokenizer)
    model: PreTrainedModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "gpt2":
            shape = {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
            model = GPT2LMHeadModel(GPT2Config(vocab_size=words, **shape, **ids))
        elif kind == "llama":
            sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.3}
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": WINDOW}
            model = LlamaForCausalLM(LlamaConfig(vocab_size=words, **sizes, **heads, **ids))
        elif kind in KINDS:
            name, options = KINDS[kind]
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, vocab_size=words, **options, **ids))
        else:
            sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "initializer_factor": 3.0}
            shape = {"vocab_size": words, "decoder_start_token_id": 0, "tie_word_embeddings": False, **sizes, **ids}
            if kind == "mt5":
                model = MT5ForConditionalGeneration(MT5Config(**shape))
                model.lm_head.weight = torch.nn.Parameter(torch.randn(words, 32))
            else:
                model = T5ForConditionalGeneration(T5Config(**shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_run(
    folder: Path, lm: Path, method: dict[str, Any], *, layout: str = "query_in_decoder", data: dict[str, Any] = DATA
) -> Path:
    """A run directory as training leaves it, with random trained parts."""
    experiment = Experiment.model_validate(
        {
            "method": method,
            "data": data,
            "lm": {"path": str(lm), "layout": layout},
            "trainer": {"batch_size": 2},
        }
    )
    folder.mkdir()
    (folder / "config.yaml").write_text(dump(experiment), encoding="utf-8")
    _, module = make_parts(experiment)
    module.configure_model()
    assert module.method.name in METHODS  # type: ignore[attr-defined]
    if module.method.trains:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            for parameter in module.parameters():  # away from where training would start
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn_like(parameter))
        checkpoint: dict[str, Any] = {"state_dict": dict(module.state_dict())}
        module.on_save_checkpoint(checkpoint)
        (folder / "checkpoints").mkdir()
        torch.save(checkpoint, folder / "checkpoints" / "best.ckpt")
    return folder
