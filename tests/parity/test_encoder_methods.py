"""Mean pooling, ICAE and 500xCompressor against naive loops written from their formulas, in float64: one context, one
query and one target at a time, plain forwards of the Hugging Face model, adapters added to its matrices.

GPT-2 is compared to 1e-9. Llama takes its norms and rotations in float32, whatever its weights are: 1e-6.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from promptcomp.batch import EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.language_model.cache import copy_of, growing, passing, stored
from promptcomp.lightning_modules import METHODS, OptimConfig
from promptcomp.lightning_modules.encoder_module import EncoderModule
from tests.tiny_models import tiny_lm

LORA = {"rank": 2, "alpha": 6.0}
ROWS = (
    EncodedContext((5, 9, 33, 12, 7, 20, 41, 8), (EncodedQuery((3, 4), (EncodedTarget((10, 11)),)),)),
    EncodedContext(
        (17, 6), (EncodedQuery((8,), (EncodedTarget((9,)),)), EncodedQuery((30, 2), (EncodedTarget((4,)),)))
    ),
    EncodedContext((40, 41, 42, 43, 44), (EncodedQuery((2, 3, 4), (EncodedTarget((5, 6, 7)),)),)),
)


def make(name: str, options: dict[str, Any], model: str = "llama") -> EncoderModule:
    """The method with adapters and vectors that do something, in float64."""
    section = METHODS[name](lora=LORA, **options)
    module = section.module(tiny_lm(model), OptimConfig(), max_steps=1, seed=0)
    assert isinstance(module, EncoderModule)
    module.configure_model()
    module.double().eval()
    torch.manual_seed(1)
    for parameter in module.trained_parameters().values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return module


def encoder_of(module: EncoderModule) -> Any:
    """The LM with (alpha / rank) B A added to its matrices."""
    hf = copy.deepcopy(module.lm.hf)
    for name, layer in module.encoder.hf.named_modules():
        if hasattr(layer, "lora_A"):
            update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            matrix = hf.get_submodule(name)
            matrix.weight.data += LORA["alpha"] / LORA["rank"] * (update.T if isinstance(matrix, Conv1D) else update)
    return hf


def read(hf: Any, embeds: Tensor, both_ways: bool) -> tuple[Tensor, Any]:
    """Final states [S, D] and the cache of one sequence [S, D]."""
    cache = growing()
    size = len(embeds)
    mask = torch.zeros(1, 1, size, size, dtype=embeds.dtype)
    if not both_ways:
        mask += torch.full_like(mask, -math.inf).triu(1)
    body = hf.base_model
    output = body(inputs_embeds=embeds[None], attention_mask=mask, use_cache=True, **passing(body, cache))
    return output.last_hidden_state[0], cache


def pooled(module: EncoderModule, ids: tuple[int, ...], both_ways: bool) -> Tensor:
    hf = encoder_of(module)
    states, _ = read(hf, hf.get_input_embeddings()(torch.tensor(ids)), both_ways)
    slots = min(module.method.num_slots, len(ids))
    means = []
    for slot in range(slots):
        members = [state for place, state in enumerate(states) if math.floor(place * slots / len(ids)) == slot]
        means.append(sum(members) / len(members))  # type: ignore[arg-type]
    return module.projection(torch.stack(means))


def memory_tokens(module: Any, ids: tuple[int, ...], both_ways: bool) -> tuple[Tensor, Any]:
    """States and cache at the memory tokens."""
    hf, slots = encoder_of(module), module.method.num_slots
    embeds = torch.cat([hf.get_input_embeddings()(torch.tensor(ids)), module.memory_tokens])
    states, cache = read(hf, embeds, both_ways)
    kept = growing((keys[:, :, -slots:], values[:, :, -slots:]) for keys, values in stored(cache))
    return module.projection(states[-slots:]), kept


def logits_behind(hf: Any, front: Tensor | None, cache: Any, position: int, ids: tuple[int, ...]) -> Tensor:
    """Logits after each of `ids` behind vectors or a cache, whose next position is `position`."""
    embeds = hf.get_input_embeddings()(torch.tensor(ids))
    if front is None:
        places = torch.arange(position, position + len(ids))[None]
        return hf(inputs_embeds=embeds[None], position_ids=places, **passing(hf, copy_of(cache))).logits[0]
    return hf(inputs_embeds=torch.cat([front, embeds])[None]).logits[0, len(front) :]


def naive(module: Any, both_ways: bool) -> dict[str, Tensor]:
    """The terms of the objective, each a mean over tokens."""
    hf, kv = module.lm.hf, getattr(module.method, "slots", "") == "kv"
    found: dict[str, list[Tensor]] = {"ce": [], "reconstruction": [], "kl": []}
    for row in ROWS:
        front, cache, again = None, None, None
        if module.method.name == "pool":
            front = again = pooled(module, row.ids, both_ways)
        else:
            vectors, cache = memory_tokens(module, row.ids, both_ways)
            if not kv:
                front, again = vectors, torch.cat([vectors, module.again])
        position = len(row.ids) + module.method.num_slots
        sequence = (module.lm.end_id, *row.ids)
        logits = logits_behind(hf, again, cache, position, sequence).log_softmax(-1)
        found["reconstruction"] += [-logits[place, token] for place, token in enumerate(row.ids)]
        for query in row.queries:
            target = query.targets[0].ids
            sequence, first = query.ids + target, len(query.ids) - 1
            student = logits_behind(hf, front, cache, position, sequence).log_softmax(-1)
            teacher = hf(torch.tensor([row.ids + sequence])).logits[0, len(row.ids) :].log_softmax(-1)
            for place, token in enumerate(target):
                ours, theirs = student[first + place], teacher[first + place]
                found["ce"].append(-ours[token])
                found["kl"].append((theirs.exp() * (theirs - ours)).sum())
    return {name: torch.stack(values).mean() for name, values in found.items()}


@pytest.mark.parametrize(("model", "close"), [("gpt2", 1e-9), ("llama", 1e-6)])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize(("name", "options"), [("pool", {}), ("icae", {}), ("icae", {"slots": "kv"})])
def test_objective_and_gradients(name: str, options: dict[str, Any], attention: str, model: str, close: float) -> None:
    weights = {"reconstruction_weight": 0.5, "kl_weight": 0.25}
    module = make(name, {"num_slots": 3, "attention": attention, **weights, **options}, model)
    ours = {term.name: term.total / term.count for term in module.losses(collate(ROWS))}
    theirs = naive(module, attention == "bidirectional")
    assert set(ours) == set(theirs)
    for term, value in theirs.items():
        torch.testing.assert_close(ours[term], value, rtol=0, atol=close)
    direct = [p for key, p in module.trained_parameters().items() if ".lora_" not in key]
    for mine, other in zip(
        torch.autograd.grad(sum(ours.values()), direct), torch.autograd.grad(sum(theirs.values()), direct), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=close)


def test_the_encoder_holds_no_second_copy_and_leaves_the_lm_alone() -> None:
    module = make("icae", {"num_slots": 3})
    assert {n for n, _ in module.named_parameters() if n.startswith("encoder.")} == {
        n for n in module.trained_parameters() if n.startswith("encoder.")
    }
    assert not any(".lora_" in name for name, _ in module.lm.named_parameters())
    plain = tiny_lm("llama").double()
    batch = collate(ROWS)
    context = batch.context
    assert torch.equal(
        module.lm.score(module.lm.encode(context), batch)[0], plain.score(plain.encode(context), batch)[0]
    )
