"""Types of LoRA adapters: those of training, whatever the frozen weights beside them are, with weights or without."""

from __future__ import annotations

import pytest
import torch

from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules.adapters import LoraConfig, add_lora
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
