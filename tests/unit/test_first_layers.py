"""`layers: n`: the first blocks of a pretrained LM, with their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from promptcomp.config import ConfigError
from promptcomp.language_model import LanguageModel, LanguageModelConfig
from tests.tiny_models import save_tokenizer, tiny_hf


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "qwen3", "t5"])
def test_the_first_blocks_keep_their_weights(kind: str, tmp_path: Path) -> None:
    whole = tiny_hf(kind)
    whole.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    config = LanguageModelConfig(path=str(tmp_path), layers=1)
    lm = LanguageModel.from_config(config)
    assert lm.num_layers == 1
    known = whole.state_dict()
    kept = lm.hf.state_dict()
    assert 0 < len(kept) < len(known)
    assert all(torch.equal(tensor, known[name]) for name, tensor in kept.items())
    assert LanguageModel.skeleton(config).num_layers == 1
    ids = torch.tensor([[3, 4, 5]])
    inputs = {"input_ids": ids, "decoder_input_ids": ids} if kind == "t5" else {"input_ids": ids}
    with torch.no_grad():
        assert lm.hf(**inputs).logits.shape == (1, 3, whole.config.vocab_size)


def test_more_blocks_than_there_are() -> None:
    with pytest.raises(ConfigError, match="layers = 9: builtin:toy_decoder has 4 layers"):
        LanguageModel.skeleton(LanguageModelConfig(path="builtin:toy_decoder", layers=9))
