"""KL and top-1 agreement with the full prompt: those of plain transformers, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from promptcomp.batch import Context, collate
from promptcomp.run.closeness import Closeness, closeness
from tests.parity.test_option_scores import random_contexts
from tests.tiny_models import MODELS, naive_log_probs, tiny_lm


@pytest.mark.parametrize("name", MODELS)
def test_closeness_is_that_of_plain_forwards(name: str) -> None:
    """Options beside the gold ones, ragged contexts, one without tokens, two batches, one example in both."""
    lm = tiny_lm(name).double()
    contexts = random_contexts(3)
    queries = [query for context in contexts for query in context.queries]
    near = Closeness({query.example: query.example % len(query.targets) for query in queries})
    for part in (contexts[:3], contexts[2:]):
        batch = collate(part)
        ids, mask = batch.context.ids[:, -2:], batch.context.mask[:, -2:]
        memories = {
            "full_prompt": lm.encode(batch.context),
            "no_prompt": None,
            "tail": lm.encode(Context(ids, mask, batch.context.task)),
        }
        with torch.no_grad():
            for row, memory in memories.items():
                near.add(row, lm(memory, batch, "targets"), batch, is_full=row == "full_prompt")
    assert near.collected.keys() == {"full_prompt", "no_prompt", "tail"}
    for context in contexts:
        for query in context.queries:
            target = query.targets[near.gold[query.example]].ids
            full = naive_log_probs(lm, context.ids, query.ids, target)
            assert near.collected["full_prompt"][query.example] == (0, len(target))
            for row, kept in (("no_prompt", ()), ("tail", context.ids[-2:])):
                own, nats = naive_log_probs(lm, kept, query.ids, target), 0.0
                for p, q in zip(full.flatten().tolist(), own.flatten().tolist(), strict=True):
                    nats += math.exp(p) * (p - q)
                hits = sum(int(a == b) for a, b in zip(full.argmax(-1), own.argmax(-1), strict=True))
                assert near.collected[row][query.example] == pytest.approx((nats, hits), abs=1e-9)
    assert near.collected["no_prompt"][0][0] > 1e-3  # there is something to measure


def test_tokens_that_cannot_come_and_half_precision() -> None:
    full = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, 2.0, 0.0]])
    own = torch.tensor([[1.0, 0.0, -torch.inf], [2.0, 2.0, 0.0]])
    nats, same = closeness(own, full)
    p = 1 / (1 + math.e)
    assert nats.tolist() == pytest.approx([(1 - p) - p, 0.0], abs=1e-6)
    assert same.tolist() == [False, True]
    assert closeness(own.bfloat16(), full.bfloat16())[0].tolist() == pytest.approx(nats.tolist(), abs=1e-6)
    never = torch.tensor([[0.0, -torch.inf, 0.0]])  # what comes cannot come: not finite, and so null in files
    assert closeness(never, full[:1])[0].isinf().all()
    broken = torch.tensor([[torch.nan] * 3, [torch.inf, 0.0, 0.0]])  # both would be 0 and 1 of a whole prompt of NaN
    for pair in ((broken, broken), (broken, full), (full, broken)):
        assert all(each.isnan().all() for each in closeness(*pair))
