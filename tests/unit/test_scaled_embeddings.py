"""What is learned in place of tokens starts at the scale of the token embeddings that the LM reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from promptcomp.language_model import LanguageModel, embedding_scale, token_table
from promptcomp.lightning_modules import METHODS, OptimConfig
from promptcomp.lightning_modules.base import CompressionModule
from tests.prompt_runs import KINDS
from tests.tiny_models import tiny_hf

SCALED = ("gemma", "gemma3", "xglm", "biogpt")


def lm_of(kind: str) -> LanguageModel:
    if kind not in KINDS:
        return LanguageModel.from_parts(tiny_hf(kind))
    name, options = KINDS[kind]
    config = AutoConfig.for_model(name, vocab_size=64, pad_token_id=0, bos_token_id=0, eos_token_id=0, **options)
    torch.manual_seed(0)
    return LanguageModel.from_parts(AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval())


def module_of(lm: LanguageModel, name: str, **options: Any) -> CompressionModule:
    spec = METHODS[name]
    config = spec(num_slots=40, **options)
    module = config.module(lm, OptimConfig(), max_steps=2, seed=0, task_names=("a",))
    module.configure_model()
    return module


def looked_up(lm: LanguageModel) -> Tensor:
    """What the LM reads for every token."""
    return lm.embed(torch.arange(lm.vocab_size)).detach()


def among(rows: Tensor, table: Tensor) -> bool:
    return bool(((rows[:, None] - table).abs().amax(-1).amin(-1) < 1e-5).all())


@pytest.mark.parametrize("kind", [*SCALED, "mistral", "llama", "gpt2", "t5"])
def test_starts_are_at_the_scale_of_what_the_lm_reads(kind: str) -> None:
    lm = lm_of(kind)
    table, words = token_table(lm.hf), looked_up(lm)
    factor = lm.hidden_size**0.5 if kind in SCALED else 1.0
    assert embedding_scale(table) == pytest.approx(factor, rel=1e-6)
    torch.testing.assert_close(module_of(lm, "gist").gist.data, words.mean(0, keepdim=True), rtol=1e-5, atol=1e-6)
    each = module_of(lm, "gist", shared_embedding=False).gist.data
    assert float((each - each.mean(0)).std()) == pytest.approx(0.1 * float(words.std()), rel=0.2)
    assert among(module_of(lm, "prompt_tuning").prompts.data[0], words)
    random = module_of(lm, "prompt_tuning", slot_init="random").prompts.data
    assert float(random.std()) == pytest.approx(0.02 * factor, rel=0.1)
    assert among(module_of(lm, "mend", slot_init="vocabulary").slots.data, words)
    assert float(module_of(lm, "mend").slots.data.std()) == pytest.approx(float(words.std()), rel=0.2)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_where_nothing_is_scaled_starts_are_rows_of_the_table_bit_for_bit(kind: str) -> None:
    lm = lm_of(kind)
    table = token_table(lm.hf).weight.data
    assert embedding_scale(token_table(lm.hf)) == 1.0
    assert torch.equal(module_of(lm, "gist").gist.data, table.mean(0, keepdim=True))
    torch.manual_seed(0)
    picked = table[torch.randint(0, len(table), (1, 40))]
    assert torch.equal(module_of(lm, "prompt_tuning").prompts.data, picked)
