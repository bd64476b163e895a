"""Gisting with `attention: bidirectional` against plain transformers with a mask from the formula, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from promptcomp.batch import EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.lightning_modules.gist import Gist
from promptcomp.lightning_modules.gist_config import GistConfig
from promptcomp.lightning_modules.method_config import OptimConfig
from tests.tiny_models import tiny_lm

ROWS = (
    EncodedContext((5, 9, 33, 12, 7, 20), (EncodedQuery((3, 4), (EncodedTarget((10, 11)),)),)),
    EncodedContext(
        (17, 6), (EncodedQuery((8,), (EncodedTarget((9,)),)), EncodedQuery((30, 2), (EncodedTarget((4,)),)))
    ),
)
SLOTS = 3


def make(model: str, bos: bool, arrangement: str) -> Gist:
    lm = tiny_lm(model)
    lm.bos_id = 1 if bos else None
    section = GistConfig.model_validate(
        {"num_slots": SLOTS, "shared_embedding": False, "attention": "bidirectional", "arrangement": arrangement}
    )
    module = section.module(lm, OptimConfig(), max_steps=1, seed=0)
    assert isinstance(module, Gist)
    module.configure_model()
    return module.double().eval()


@pytest.mark.parametrize(("model", "close"), [("gpt2", 1e-9), ("llama", 1e-6)])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("arrangement", ["joint", "split"])
def test_loss_and_gradients(arrangement: str, bos: bool, model: str, close: float) -> None:
    module = make(model, bos, arrangement)
    hf: Any = module.lm.hf
    table, found = module.lm.hf.get_input_embeddings(), []
    for row in ROWS:
        prompt = ((1,) if bos else ()) + row.ids
        first, last = len(prompt), len(prompt) + SLOTS - 1
        for query in row.queries:
            target, behind = query.targets[0].ids, query.ids + query.targets[0].ids
            embeds = torch.cat([table(torch.tensor(prompt)), module.gist, table(torch.tensor(behind))])
            mask = torch.full((len(embeds), len(embeds)), -torch.inf, dtype=torch.float64)
            for q in range(len(embeds)):
                for k in range(len(embeds)):
                    if k <= last if q <= last else first <= k <= q:
                        mask[q, k] = 0
            logits = hf(inputs_embeds=embeds[None], attention_mask=mask[None, None]).logits[0].log_softmax(-1)
            place = last + len(query.ids)
            found += [-logits[place + number, token] for number, token in enumerate(target)]
    theirs = torch.stack(found).mean()
    (term,) = module.losses(collate(ROWS))
    ours = term.total / term.count
    torch.testing.assert_close(ours, theirs, rtol=0, atol=close)
    trained = list(module.trained_parameters().values())
    gradients = zip(torch.autograd.grad(ours, trained), torch.autograd.grad(theirs, trained), strict=True)
    for mine, other in gradients:
        torch.testing.assert_close(mine, other, rtol=0, atol=10 * close)


def test_answers_written_behind_a_prefix_and_behind_its_memory_are_the_same() -> None:
    module, batch = make("llama", True, "joint"), collate(ROWS)
    with torch.no_grad():
        prefix, memory = module.prefix(batch.context), module.compress(batch.context)
        written = [module.lm.generate(each, batch, max_new_tokens=5) for each in (prefix, memory)]
        causal = module.lm.generate(prefix._replace(both_ways=False), batch, max_new_tokens=5)
    assert written[0] == written[1]
    assert causal != written[0]
