"""Types of LoRA adapters: those of training, whatever the frozen weights beside them are, with weights or without."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from promptcomp.config import ConfigError
from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules.adapters import adapted, add_lora
from promptcomp.lightning_modules.method_config import LoraConfig
from tests.families import FAMILIES, family
from tests.tiny_families import tiny_family
from tests.tiny_models import tiny_hf


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("frozen", "trained"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_adapters_have_master_weights(frozen: torch.dtype, trained: torch.dtype, device: str) -> None:
    lm = LanguageModel.from_parts(tiny_hf("llama").to(device=device, dtype=frozen))
    add_lora(lm, LoraConfig(rank=2), skeleton=device == "meta")
    named = dict(lm.hf.named_parameters())
    assert {p.dtype for name, p in named.items() if ".lora_" in name} == {trained}
    assert {p.dtype for name, p in named.items() if ".lora_" not in name} == {frozen}
    assert {name for name, p in named.items() if p.requires_grad} == {name for name in named if ".lora_" in name}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_said_of_adapters_is_what_trains(name: str) -> None:
    """Every linear layer of the body has adapters; whatever else has two dimensions and is no table is named."""
    hf = family(name)
    lm: Any = SimpleNamespace(hf=hf)
    assert adapted(hf) == ""
    linear = {n for n, m in hf.base_model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    tables = {p for m in hf.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    others = {n for n, p in hf.base_model.named_parameters() if p.ndim > 1 and p not in tables}
    others -= {f"{each}.weight" for each in linear}
    add_lora(lm, LoraConfig(rank=2))
    said = adapted(hf)
    trained = {n.partition(".lora_")[0] for n, p in hf.base_model.named_parameters() if p.requires_grad}
    assert trained == linear
    assert not [n for n, p in hf.named_parameters() if p.requires_grad and not n.startswith(hf.base_model_prefix)]
    listed, _, missing = said.removeprefix("LoRA: adapters beside ").partition("; none beside ")
    assert {each.rpartition(".")[2] for each in linear} == set(listed.partition(":")[0].split(", "))
    short = {".".join(each.removesuffix(".weight").split(".")[-2:]) for each in others}
    assert short == set(missing.partition(" (")[0].split(", ") if missing else ())
    assert said.endswith("every linear layer but the head") == (not others)
    if name in ("mixtral", "qwen3_moe", "gpt_oss"):
        assert {"experts.gate_up_proj", "experts.down_proj"} <= short


def test_chosen_layers_are_said_and_experts_cannot_be_chosen() -> None:
    lm = LanguageModel.from_parts(family("mixtral"))
    with pytest.raises(ConfigError, match="has no linear layer 'gate_up_proj'; it has k_proj, o_proj, q_proj, v_proj"):
        add_lora(lm, LoraConfig(targets=("gate_up_proj",)))
    add_lora(lm, LoraConfig(targets=("q_proj",)))
    assert adapted(lm.hf).startswith(
        "LoRA: adapters beside q_proj; none beside experts.down_proj, experts.gate_up_proj"
    )
    assert "self_attn.k_proj" in adapted(lm.hf)


def test_routers_made_of_a_linear_layer_get_no_adapters() -> None:
    hf = tiny_family("phimoe")
    lm = LanguageModel.from_parts(hf)
    add_lora(lm, LoraConfig(rank=2))
    assert "mlp.router" in adapted(hf)
    assert torch.isfinite(hf(torch.tensor([[5, 6, 7]])).logits).all()
