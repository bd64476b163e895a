"""Option scores: the original's (E1, E3) and, for every family, those of one plain forward per option."""

from __future__ import annotations

import random

import pytest
import torch
from golden_mend import DATA, Case, RawPositions, make
from torch import Tensor

from promptcomp.batch import Batch, Context, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.lightning_modules.mend_config import MendConfig
from tests.tiny_models import MODELS, naive_score, tiny_lm


def means(module: RawPositions, batch: Batch, *, prompt: bool) -> list[list[float]]:
    """Mean log likelihood of the options of each example."""
    memory = module.compress(batch.context) if prompt else None
    with torch.no_grad():
        scores = module.lm.score(memory, batch)
    rows: list[list[float]] = [[] for _ in range(int(batch.example.max()) + 1)]
    for example, value in zip(batch.example.tolist(), (scores.sum_log_prob / scores.num_tokens).tolist(), strict=True):
        rows[example].append(value)
    return rows


@pytest.mark.parametrize(("name", "prompt"), [("E1_mend_option_scoring", True), ("E3_zero_shot_option_scoring", False)])
def test_scores_of_the_original(name: str, prompt: bool) -> None:
    case = Case(name)
    module = make("A", DATA, MendConfig(num_slots=6), RawPositions)
    rows = means(module, case.option_batch(), prompt=prompt)
    for ours, theirs in zip(rows, case.numbers["option_scores"], strict=True):
        assert ours == pytest.approx([value for value in theirs if value > -10000], abs=1e-9)
    assert [max(range(len(row)), key=row.__getitem__) for row in rows] == case.numbers["prediction"]


def random_contexts(seed: int) -> list[EncodedContext]:
    rng = random.Random(seed)

    def ids(longest: int, shortest: int = 1) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 64) for _ in range(rng.randint(shortest, longest)))

    def query(example: int) -> EncodedQuery:
        options = tuple(EncodedTarget(ids(4), choice) for choice in range(rng.randint(1, 4)))
        return EncodedQuery(ids(6), options, example)

    contexts = [EncodedContext(ids(20, 4), tuple(query(4 * g + n) for n in range(rng.randint(1, 4)))) for g in range(4)]
    return [*contexts, EncodedContext((), (query(99),))]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("with_context", [True, False])
def test_shared_scoring_equals_one_forward_per_option(name: str, with_context: bool) -> None:
    lm = tiny_lm(name)
    contexts = random_contexts(3)
    batch = collate(contexts)
    with torch.no_grad():
        memory = lm.encode(batch.context) if with_context else None
        scores = lm.score(memory, batch)
    expected = [
        naive_score(lm, context.ids if with_context else (), query.ids, target.ids)
        for context in contexts
        for query in context.queries
        for target in query.targets
    ]
    assert scores.sum_log_prob.tolist() == pytest.approx(expected, abs=1e-5)
    assert scores.num_tokens.tolist() == batch.target_mask.sum(-1).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_padding_and_company_change_no_score(name: str) -> None:
    """A context scores the same alone and in a ragged batch, whatever pads it."""
    lm = tiny_lm(name)
    contexts = random_contexts(5)

    def scores(rows: list[EncodedContext]) -> Tensor:
        batch = collate(rows)
        context = Context(batch.context.ids, batch.context.mask, batch.context.task)
        with torch.no_grad():
            return lm.score(lm.encode(context), batch).sum_log_prob

    alone = torch.cat([scores([context]) for context in contexts])
    torch.testing.assert_close(scores(contexts), alone, rtol=0, atol=1e-5)


def test_an_empty_query_leaves_the_first_token_unscored() -> None:
    lm = tiny_lm("gpt2")
    batch = collate([EncodedContext((5, 6, 7), (EncodedQuery((), (EncodedTarget((8, 9, 10)),)),))])
    with torch.no_grad():
        scores = lm.score(lm.encode(batch.context), batch)
    assert scores.num_tokens.tolist() == [2]
    whole = naive_score(lm, (5, 6, 7), (8,), (9, 10))
    assert scores.sum_log_prob.tolist() == pytest.approx([whole], abs=1e-5)
