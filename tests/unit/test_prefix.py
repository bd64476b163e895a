"""A prefix of which queries see a part: one pass, remembered activations and generation agree for every family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from promptcomp.batch import Batch, Context, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.errors import ConfigError
from promptcomp.language_model import LanguageModel
from promptcomp.language_model.parts import Prefix
from promptcomp.memory import EncoderStates, KVCache
from tests.tiny_models import tiny_hf, tiny_lm

NAMES = ("llama", "mistral", "qwen3", "gpt2", "opt")
T5 = ("t5_query_in_decoder", "t5_query_in_encoder", "t5v11_query_in_encoder")
CONTEXTS = (
    EncodedContext(
        tuple(range(5, 17)),
        (
            EncodedQuery((20, 21, 22), (EncodedTarget((30, 31)), EncodedTarget((32,)))),
            EncodedQuery((23,), (EncodedTarget((33, 34, 35)),)),
        ),
    ),
    EncodedContext((40, 41), (EncodedQuery((24, 25, 26, 27, 28), (EncodedTarget((36, 37)),)),)),
    EncodedContext((), (EncodedQuery((29, 30), (EncodedTarget((38,)),)),)),
)


def batch(*contexts: EncodedContext) -> Batch:
    return collate(contexts or CONTEXTS)


def slots(lm: LanguageModel, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, lm.hidden_size, generator=generator) * 0.3


@pytest.mark.parametrize("name", [*NAMES, *T5])
@torch.no_grad()
def test_one_pass_equals_remembered_activations(name: str) -> None:
    lm = tiny_lm(name)
    prefix = lm.prefix(batch().context, slots(lm))
    memory = lm.read(prefix)
    assert isinstance(memory, KVCache if lm.family == "decoder" else EncoderStates)
    assert memory.num_slots.tolist() == [2, 2, 2]
    torch.testing.assert_close(lm(prefix, batch()).values, lm(memory, batch()).values, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", [*NAMES, *T5])
@torch.no_grad()
def test_padding_and_neighbours_change_nothing(name: str) -> None:
    lm = tiny_lm(name)
    together = lm.score(lm.read(lm.prefix(batch().context, slots(lm))), batch()).sum_log_prob
    alone = []
    for context in CONTEXTS:
        one = batch(context)
        alone.append(lm.score(lm.prefix(one.context, slots(lm)), one).sum_log_prob)
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", NAMES)
@torch.no_grad()
def test_decoder_equals_a_naive_mask(kind: str) -> None:
    """Row by row through the stock model with a dense mask written from the definition."""
    lm = tiny_lm(kind)
    context, query, target = CONTEXTS[0].ids, CONTEXTS[0].queries[0].ids, CONTEXTS[0].queries[0].targets[0].ids
    gist = slots(lm)
    tail = torch.tensor([*query, *target])
    embeds = torch.cat([lm.embed(torch.tensor(context)), gist, lm.embed(tail)])[None]
    length, first, last = embeds.shape[1], len(context), len(context) + len(gist) - 1
    masks = {}
    for layer, window in (("full_attention", None), ("sliding_attention", lm.pattern.window if lm.pattern else None)):
        mask = torch.full((length, length), torch.finfo(torch.float32).min)
        for q in range(length):
            for k in range(q + 1):
                hidden = q > last and k < first
                if not hidden and (window is None or q - k < window):
                    mask[q, k] = 0.0
        masks[layer] = mask[None, None]
    assert lm.pattern is not None
    chosen = masks if len(lm.pattern.kinds) > 1 else masks[lm.pattern.kinds[0]]
    places = torch.arange(length)[None]
    logits = lm.hf(inputs_embeds=embeds, attention_mask=chosen, position_ids=places).logits[0]
    expected = logits[last + len(query) : -1].log_softmax(-1)
    expected_sum = sum(float(expected[i, token]) for i, token in enumerate(target))
    found = lm.score(lm.prefix(batch().context, gist), batch()).sum_log_prob[0]
    assert float(found) == pytest.approx(expected_sum, abs=2e-5)


@pytest.mark.parametrize("name", [*NAMES, *T5])
def test_generation_from_memory_equals_the_masked_prompt(name: str) -> None:
    lm = tiny_lm(name)
    prefix = lm.prefix(batch().context, slots(lm))
    memory = lm.read(prefix)
    for options in ({}, {"num_beams": 3}, {"num_beams": 3, "length_penalty": 0.0}):
        stops = (1, 2, 3)
        a = lm.generate(prefix, batch(), max_new_tokens=9, stop_ids=stops, **options)
        b = lm.generate(memory, batch(), max_new_tokens=9, stop_ids=stops, **options)
        assert a == b
    drawn = [
        lm.generate(
            m, batch(), max_new_tokens=9, temperature=1.0, top_p=0.9, generator=torch.Generator().manual_seed(1)
        )
        for m in (prefix, memory)
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("name", [*NAMES, *T5])
@torch.no_grad()
def test_generation_follows_the_logits_of_the_masked_prompt(name: str) -> None:
    """Greedy tokens are the argmax of one uncached pass over prompt, query and answer, also behind a hidden prompt."""
    lm = tiny_lm(name)
    prefix = lm.prefix(batch().context, slots(lm))
    texts = lm.generate(lm.read(prefix), batch(), max_new_tokens=6)
    queries = [q for context in CONTEXTS for q in context.queries]
    answered = iter(EncodedQuery(q.ids, (EncodedTarget(tuple(text)),)) for q, text in zip(queries, texts, strict=True))
    again = batch(*(EncodedContext(c.ids, tuple(next(answered) for _ in c.queries)) for c in CONTEXTS))
    logits = lm(prefix, again)
    if lm.query_in_encoder or lm.family == "decoder":
        assert logits.values[logits.predictor].argmax(-1).tolist() == logits.label.tolist()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("penalty", [1.0, 0.5])
def test_beams_equal_hugging_face(kind: str, penalty: float) -> None:
    hf = tiny_hf(kind)
    lm = LanguageModel.from_parts(hf)
    ids = torch.tensor([[11, 12, 13, 14], [21, 22, 23, 24]])
    end = 17
    with torch.no_grad():
        expected = hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            num_beams=4,
            do_sample=False,
            length_penalty=penalty,
            eos_token_id=end,
            pad_token_id=0,
        )[:, 4:].tolist()
    rows = [EncodedContext((), (EncodedQuery(tuple(row), (EncodedTarget((1,)),)),)) for row in ids.tolist()]
    found = lm.generate(None, batch(*rows), max_new_tokens=12, num_beams=4, stop_ids=(end,), length_penalty=penalty)
    assert found == [row[: row.index(end)] if end in row else row for row in expected]


def test_streaming_gives_the_tokens_of_the_answer() -> None:
    lm = tiny_lm("llama")
    steps: list[list[int | None]] = []
    texts = lm.generate(None, batch(), max_new_tokens=5, stop_ids=(1, 2), on_tokens=steps.append)
    assert [[step[row] for step in steps if step[row] is not None] for row in range(len(texts))] == texts


def test_contradictory_settings_are_refused() -> None:
    lm = tiny_lm("llama")
    for options in ({"num_beams": 2, "temperature": 1.0}, {"temperature": -1.0}, {"top_p": 0.0}, {"num_beams": 0}):
        with pytest.raises(ConfigError):
            lm.generate(None, batch(), max_new_tokens=3, **options)
    with pytest.raises(ConfigError, match="window of 128"):
        lm.generate(None, batch(), max_new_tokens=500)


@torch.no_grad()
def test_mixed_numbers_of_slots_in_one_batch() -> None:
    lm = tiny_lm("llama")
    context = Context(*(getattr(batch().context, name) for name in ("ids", "mask", "task")))
    whole = lm.prefix(context, slots(lm, 3))
    visible = whole.visible.clone()
    visible[1, -3:-1] = False  # row 1: only the last slot
    mixed = Prefix(whole.embeds, whole.mask, visible)
    memory = lm.read(mixed)
    assert memory.num_slots.tolist() == [3, 1, 3]
    torch.testing.assert_close(lm(mixed, batch()).values, lm(memory, batch()).values, atol=2e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@torch.no_grad()
def test_flex_attention_equals_sdpa() -> None:
    """The same numbers from block masks."""
    plain = tiny_lm("llama")
    hf = tiny_hf("llama")
    hf.set_attn_implementation("flex_attention")
    flexible = LanguageModel.from_parts(hf)
    assert flexible.pattern is not None
    assert flexible.pattern.implementation == "flex_attention"
    expected = plain(plain.prefix(batch().context, slots(plain)), batch()).values
    found = flexible(flexible.prefix(batch().context, slots(flexible)), batch()).values
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
