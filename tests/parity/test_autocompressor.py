"""AutoCompressors against a naive loop written from the formulas, in float64: one context, one query and one target at
a time, plain forwards of the Hugging Face model. GPT-2 is compared to 1e-9; Llama takes its norms and rotations in
float32, whatever its weights are: 1e-6.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from promptcomp.batch import EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.lightning_modules.autocompressor import Autocompressor
from promptcomp.lightning_modules.autocompressor_config import AutocompressorConfig
from promptcomp.lightning_modules.method_config import OptimConfig
from tests.tiny_models import tiny_lm

ROWS = (
    EncodedContext((5, 9, 33, 12, 7, 20, 41, 8), (EncodedQuery((3, 4), (EncodedTarget((10, 11)),)),)),
    EncodedContext(
        (17, 6), (EncodedQuery((8,), (EncodedTarget((9,)),)), EncodedQuery((30, 2), (EncodedTarget((4,)),)))
    ),
    EncodedContext((40, 41, 42, 43, 44), (EncodedQuery((2, 3, 4), (EncodedTarget((5, 6, 7)),)),)),
)


def make(model: str, bos: bool, **options: Any) -> Autocompressor:
    lm = tiny_lm(model)
    lm.bos_id = 1 if bos else None
    module = AutocompressorConfig(**options).module(lm, OptimConfig(), max_steps=1, seed=0)
    assert isinstance(module, Autocompressor)
    module.configure_model()
    module.double().eval()
    torch.manual_seed(1)
    module.summary_tokens.data += 0.05 * torch.randn_like(module.summary_tokens)
    return module


def naive(module: Autocompressor, shares: list[float]) -> dict[str, Tensor]:
    """The terms of the objective, each a mean over tokens; `shares`: where segments end."""
    hf: Any = module.lm.hf
    method, table = module.method, module.lm.hf.get_input_embeddings()
    found: dict[str, list[Tensor]] = {"ce": [], "context": []}

    def embed(*ids: int) -> Tensor:
        return table(torch.tensor(ids, dtype=torch.long))

    bos = () if module.lm.bos_id is None else (module.lm.bos_id,)
    for row in ROWS:
        vectors: list[Tensor] = []
        ends = [math.ceil(len(row.ids) * share - 1e-3) for share in (0, *shares)]
        for number in range(method.segments):
            if number > 0 and (method.segments - number) % method.backprop_segments == 0:
                vectors = [each.detach() for each in vectors]
            ids = row.ids[ends[number] : ends[number + 1]]
            front = torch.cat([embed(*bos), *vectors])
            whole = torch.cat([front, embed(*ids), module.summary_tokens])[None]
            logits = hf(inputs_embeds=whole).logits[0].log_softmax(-1)
            for place, token in enumerate(ids, start=len(front)):
                if place > 0:
                    found["context"].append(-logits[place - 1, token])
            states = hf.base_model(inputs_embeds=whole).last_hidden_state[0]
            vectors = [*vectors, states[-len(module.summary_tokens) :]]
        for query in row.queries:
            target, front = query.targets[0].ids, torch.cat([embed(*bos), *vectors])
            logits = hf(inputs_embeds=torch.cat([front, embed(*query.ids, *target)])[None]).logits[0].log_softmax(-1)
            first = len(front) + len(query.ids) - 1
            found["ce"] += [-logits[first + place, token] for place, token in enumerate(target)]
    return {name: torch.stack(values).mean() for name, values in found.items()}


@pytest.mark.parametrize(("model", "close"), [("gpt2", 1e-9), ("llama", 1e-6)])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(("segments", "backprop"), [(1, 2), (3, 1), (3, 2), (4, 2), (3, 3)])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_objective_and_gradients(
    segments: int, backprop: int, weight: float, bos: bool, model: str, close: float
) -> None:
    options = {"segments": segments, "num_slots": 2 * segments, "backprop_segments": backprop}
    module = make(model, bos, context_weight=weight, **options)
    ours = {term.name: term.total / term.count for term in module.losses(collate(ROWS))}
    theirs = naive(module, [number / segments for number in range(1, segments + 1)])
    if not weight:
        del theirs["context"]
    assert set(ours) == set(theirs)
    for term, value in theirs.items():
        torch.testing.assert_close(ours[term], value, rtol=0, atol=close)
    trained = list(module.trained_parameters().values())
    weights = {"ce": 1.0, "context": weight}
    mine, other = (sum(weights[name] * value for name, value in terms.items()) for terms in (ours, theirs))
    pairs = zip(torch.autograd.grad(mine, trained), torch.autograd.grad(other, trained), strict=True)
    for one, two in pairs:
        torch.testing.assert_close(one, two, rtol=0, atol=close)


def test_lengths_are_drawn_in_training_alone_the_same_for_a_step_and_seed() -> None:
    module = make("gpt2", bos=False, segments=3, num_slots=3)
    mask = torch.arange(90)[None] >= torch.tensor([[0], [30]])
    assert module._ends(mask).tolist() == [[0, 30, 60, 90], [0, 20, 40, 60]]
    module.train()
    drawn = module._ends(mask)
    lengths = drawn.diff(dim=1)[0]
    assert torch.equal(module._ends(mask), drawn)
    assert drawn[:, -1].tolist() == [90, 60]
    assert len(set(lengths.tolist())) > 1
    assert lengths.max() <= 2 * lengths.min() + 2
    module.seed = 1
    assert not torch.equal(module._ends(mask), drawn)
    shares = (drawn[0, 1:] / 90).tolist()
    module.seed = 0
    ours = {term.name: term.total / term.count for term in module.eval().losses(collate(ROWS))}
    assert not torch.isclose(naive(module, shares)["ce"], ours["ce"], atol=1e-9)


def test_vectors_that_segments_cannot_share_and_contexts_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="cannot be divided among 3 segments; use 15"):
        AutocompressorConfig(num_slots=16, segments=3)
    section = AutocompressorConfig(num_slots=16, segments=2, random_segments=False)
    assert section.window_problem(128, 220) is None
    assert "data.max_context_tokens=220 or less" in str(section.window_problem(128, 221))
