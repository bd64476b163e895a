"""MEND on T5 in both layouts against an independent implementation of the same objective, in float64."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from golden_mend import DATA, RawPositions
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from promptcomp.batch import Context, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules import OptimConfig
from promptcomp.lightning_modules.mend_config import MendConfig
from promptcomp.memory import SoftPrompt

ARRAY = {"rtol": 1e-6, "atol": 1e-6}  # recorded in float32
SCALAR = 1e-7  # T5's layer norm takes its variance in float32 even in a float64 model


class RawT5(RawPositions):
    """The independent code pads demonstrations on the right; T5 counts the padding as distance to the slots."""

    def compress(self, context: Context) -> SoftPrompt:
        if not self.raw:
            return super(RawPositions, self).compress(context)
        return super().compress(context)

    raw = True


def t5(config: dict[str, Any], weights: dict[str, Tensor]) -> T5ForConditionalGeneration:
    """A T5 1.1 with an output head of its own."""
    hf = T5ForConditionalGeneration(T5Config(**{k: v for k, v in config.items() if k != "transformers_version"}))
    hf.lm_head.weight = nn.Parameter(hf.lm_head.weight.detach().clone())
    missing, unexpected = hf.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("embed_tokens" in name or name.startswith(("decoder", "lm_head")) for name in missing)
    return hf.eval()


def make(layout: str) -> RawT5:
    numbers = json.loads((DATA / "t5_independent.json").read_text(encoding="utf-8"))
    weights = load_file(DATA / "weights_T5_independent.safetensors")
    llm = {k.removeprefix("llm."): v for k, v in weights.items() if k.startswith("llm.")}
    own = {k.removeprefix("distiller."): v for k, v in weights.items() if k.startswith("distiller.")}
    proj = {k: own.pop(f"proj.{k}") for k in ("weight", "bias")}
    slots = own.pop("slots")
    module = RawT5(
        MendConfig(num_slots=4),
        LanguageModel.from_parts(t5(numbers["config"], llm), layout=layout),
        OptimConfig(),
        max_steps=1,
        seed=0,
    )
    module.golden = {
        "init_prompt_weight": slots,
        "adap_pooler.dense.weight": proj["weight"],
        "adap_pooler.dense.bias": proj["bias"],
    }
    module.encoder = (LanguageModel.from_parts(t5(numbers["distiller_config"], own)).text_encoder(),)
    module.configure_model()
    return module.double()


@pytest.mark.parametrize("layout", ["query_in_decoder", "query_in_encoder"])
def test_vectors_logits_and_losses(layout: str) -> None:
    arrays = {
        key.removeprefix(f"{layout}/"): torch.from_numpy(value)
        for key, value in np.load(DATA / "t5_independent.npz").items()
        if key.startswith(layout)
    }
    expected = json.loads((DATA / "t5_independent.json").read_text(encoding="utf-8"))["cases"][layout]
    kept = arrays["in/decoder_attention_mask"].bool()
    answer = arrays["in/decoder_token_type_ids"].bool()
    contexts = []
    for i in range(2):
        demo = arrays["in/demo_ids"][i][arrays["in/demo_attention_mask"][i].bool()].tolist()
        query = arrays["in/query_ids"][i][arrays["in/query_attention_mask"][i].bool()].tolist()
        target = arrays["in/decoder_input_ids"][i][answer[i]].tolist()
        contexts.append(EncodedContext(tuple(demo), (EncodedQuery(tuple(query), (EncodedTarget(tuple(target)),)),)))
    batch = collate(contexts)
    module = make(layout)
    memory = module.compress(batch.context)
    torch.testing.assert_close(memory.embeds, arrays["out/distilled_vectors"].double(), **ARRAY)

    def ordered(logits: Tensor) -> Tensor:
        """Ours: all queries (with the start token), then all answers."""
        rows = [*(logits[i][kept[i] & ~answer[i]] for i in range(2)), *(logits[i][answer[i]] for i in range(2))]
        return torch.cat(rows).double()

    torch.testing.assert_close(module.lm(memory, batch, "all").values, ordered(arrays["out/student_logits"]), **ARRAY)
    teacher = module.lm(module.lm.encode(batch.context), batch, "all").values
    torch.testing.assert_close(teacher, ordered(arrays["out/teacher_logits"]), **ARRAY)
    terms = {term.name: term for term in module.losses(batch)}
    assert (terms["kl"].total / terms["kl"].count).item() == pytest.approx(expected["kl_loss"], rel=SCALAR)
    assert (terms["ce"].total / terms["ce"].count).item() == pytest.approx(expected["ce_loss"], rel=SCALAR)
    assert terms["kl"].count == expected["n_kl_positions"]
    assert terms["ce"].count == expected["n_ce_positions"]


def test_we_leave_no_gap_between_demonstrations_and_slots() -> None:
    """A known deviation: the padded row gets the vectors that it gets alone."""
    module = make("query_in_decoder")
    module.raw = False
    rows = [EncodedContext(tuple(range(5, 5 + n)), (EncodedQuery((3,), (EncodedTarget((4,)),)),)) for n in (30, 22)]
    together = module.compress(collate(rows).context).embeds[1:]
    torch.testing.assert_close(together, module.compress(collate(rows[1:]).context).embeds, rtol=0, atol=1e-12)
