"""Rivals: what they keep of a context, within which budget, and their rows in results; controls score as no prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from promptcomp.batch import Context, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.config import ConfigError, build
from promptcomp.experiment import EvaluationConfig, Experiment
from promptcomp.language_model import LanguageModel
from promptcomp.language_model.attention import Window
from promptcomp.memory import KVCache, Memory, SoftPrompt
from promptcomp.rivals import RIVALS, NotMet, Reading, Setting
from promptcomp.rivals.attention_matching import AttentionMatching
from promptcomp.rivals.control_memories import RandomSlots, Shuffled
from promptcomp.rivals.evict import Evict
from promptcomp.rivals.kept_tokens import DropTokens, FewerDemonstrations, LLMLingua2, Truncate
from promptcomp.rivals.quantize import Quantize
from promptcomp.rivals.rival import Rival, TextRival, tokens_of
from promptcomp.run.assess import assess
from promptcomp.run.opening import make_parts
from tests.tiny_families import tiny_family
from tests.tiny_models import naive_score, save_word_classifier, tiny_hf, tiny_lm

LONG, SHORT = (5, 6, 7, 8, 9, 10, 11, 12), (20, 21, 22)
QUERY, TARGET = (3, 4), (8, 9)


def row(ids: tuple[int, ...], borders: tuple[int, ...] = ()) -> EncodedContext:
    return EncodedContext(ids, (EncodedQuery(QUERY, (EncodedTarget(TARGET),)),), borders=borders)


def kept(rival: TextRival, context: Context, *budget: int) -> list[list[int]]:
    keep = rival.keep(Reading(tiny_lm("llama"), context, None), torch.tensor(budget)) & context.mask
    left = tokens_of(context, keep)
    assert not left.mask.numel() or left.mask.any(0).all()
    return [ids[mask].tolist() for ids, mask in zip(left.ids, left.mask, strict=True)]


@pytest.mark.parametrize(
    ("keeps", "expected"),
    [
        ("head", [[5, 6, 7], [20, 21, 22]]),
        ("tail", [[10, 11, 12], [20, 21, 22]]),
        ("both", [[5, 6, 12], [20, 21, 22]]),
    ],
)
def test_truncation_keeps_what_the_budget_holds(keeps: str, expected: list[list[int]]) -> None:
    context = collate([row(LONG), row(SHORT)]).context
    assert kept(Truncate(keeps=keeps), context, 3, 4) == expected
    assert kept(Truncate(keeps=keeps), context, 0, 0) == [[], []]


def test_demonstrations_are_kept_whole_and_in_their_order() -> None:
    context = collate([row(LONG, (3, 5, 8)), row(SHORT, (1, 3))]).context
    assert kept(FewerDemonstrations(choose="first"), context, 5, 2) == [[5, 6, 7, 8, 9], [20]]
    assert kept(FewerDemonstrations(choose="last"), context, 5, 2) == [[8, 9, 10, 11, 12], [21, 22]]
    assert kept(FewerDemonstrations(choose="first"), context, 2, 0) == [[8, 9], []]  # what still fits
    drawn = kept(FewerDemonstrations(), context, 5, 2)
    assert drawn[1] in ([20], [21, 22])
    assert drawn[0] in ([5, 6, 7, 8, 9], [8, 9, 10, 11, 12])
    alone = [kept(FewerDemonstrations(), collate([each]).context, b)[0] for each, b in
             ((row(LONG, (3, 5, 8)), 5), (row(SHORT, (1, 3)), 2))]  # fmt: skip
    assert drawn == alone
    orders = {str(kept(FewerDemonstrations(seed=seed), context, 3, 2)) for seed in range(20)}
    assert len(orders) > 1


@pytest.mark.parametrize("model", ["llama", "t5_query_in_decoder", "t5_query_in_encoder"])
def test_kept_text_is_read_as_a_full_prompt(model: str) -> None:
    lm, batch = tiny_lm(model), collate([row(LONG), row(SHORT)])
    own = SoftPrompt(torch.zeros(2, 4, 32), torch.tensor([[True] * 4, [False, False, True, True]]))
    setting = Setting(lambda context: None, batch.context)
    memory = Truncate(keeps="both").memory(Reading(lm, batch.context, own), setting).memory
    expected = [naive_score(lm, ids, QUERY, TARGET) for ids in ((5, 6, 11, 12), (20, 22))]
    assert lm.score(memory, batch).sum_log_prob.tolist() == pytest.approx(expected, abs=1e-5)
    memory = Truncate(keeps="head", slots=2).memory(Reading(lm, batch.context, None), setting).memory
    expected = [naive_score(lm, ids, QUERY, TARGET) for ids in ((5, 6), (20, 21))]
    assert lm.score(memory, batch).sum_log_prob.tolist() == pytest.approx(expected, abs=1e-5)


def test_which_demonstrations_are_tried_first() -> None:
    """Typical ones, or those that are like the query; a query has no say unless it is asked."""
    texts = ((5, 6, 7), (5, 6, 8), (30, 31, 32))
    query = EncodedQuery((30, 9), (EncodedTarget(TARGET),))
    batch = collate([EncodedContext(sum(texts, ()), (query, query), borders=(3, 6, 9))])
    reading = Reading(tiny_lm("llama"), batch.context, None)
    assert reading.queries is None
    for choose in ("bm25", "nearest"):
        typical = FewerDemonstrations(choose=choose).keep(reading, torch.tensor([3]))
        assert batch.context.ids[typical].tolist() != [30, 31, 32]
        like = FewerDemonstrations(choose=choose, query_aware=True)
        wanted = like.keep(reading.of_queries(batch), torch.tensor([3, 3]))
        assert batch.context.ids[wanted[:1]].tolist() == batch.context.ids[wanted[1:]].tolist() == [30, 31, 32]


def test_dropped_tokens_are_those_that_are_expected() -> None:
    lm, context = tiny_lm("llama"), collate([row(LONG), row(SHORT)]).context
    lm.requires_grad_(False)
    reading = Reading(lm, context, None)
    logits = lm.hf(torch.tensor([LONG])).logits[0].log_softmax(-1)
    lost = [float("inf"), *(-float(logits[i, token]) for i, token in enumerate(LONG[1:]))]
    stays = sorted(range(8), key=lambda i: -lost[i])[:3]
    found = DropTokens().keep(reading, torch.tensor([3, 9]))
    assert context.ids[0][found[0]].tolist() == [LONG[i] for i in sorted(stays)]
    assert found[1].tolist() == context.mask[1].tolist()
    drawn = DropTokens(keeps="random")
    assert drawn.keep(reading, torch.tensor([3, 2])).sum(-1).tolist() == [3, 2]
    assert torch.equal(drawn.keep(reading, torch.tensor([3, 2])), drawn.keep(reading, torch.tensor([3, 2])))


def test_llmlingua2_in_a_run(tmp_path: Path) -> None:
    """Kept words are read as text; what is no classifier is a row that is missing, and a folder that is not there ends
    the command before anything is begun."""
    save_word_classifier(tmp_path, ["Input: the cat sat on the mat. Output: seven"])
    found = toy(
        {"name": "no_prompt"},
        [
            {"name": "llmlingua2", "classifier": str(tmp_path), "slots": 20},
            {"name": "llmlingua2", "classifier": "builtin:toy_decoder", "slots": 10},
        ],
    )
    kept, none = found.result.rivals.values()
    assert kept.title == "LLMLingua-2 (20 slots)"
    assert 18 < kept.slots <= kept.asked_slots == 20
    assert "builtin:toy_decoder: not a classifier that keeps tokens" in none.missing
    with pytest.raises(NotMet, match="no tokenizer"):
        LLMLingua2().keep(Reading(tiny_lm("llama"), collate([row(LONG)]).context, None), torch.tensor([3]))
    tree = {"method": {"name": "no_prompt"}, "data": {"name": "toy_icl"}, "lm": {"path": "builtin:toy_decoder"}}
    rivals = [{"name": "llmlingua2", "classifier": f"{tmp_path}/none"}]
    with pytest.raises(ConfigError, match=r"/none: the model cannot be read.*no such folder"):
        build(Experiment, {**tree, "evaluation": {"rivals": rivals}}).check()


@pytest.mark.parametrize("score", ["streaming", "knorm", "snapkv", "kvzip"])
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_cache_that_loses_nothing_scores_as_the_full_prompt(model: str, score: Any) -> None:
    lm, batch = tiny_lm(model), collate([row(LONG), row(SHORT)])
    reading, setting = Reading(lm, batch.context, None), Setting(lambda context: None, batch.context)
    lm.requires_grad_(False)
    expected = lm.score(lm.encode(batch.context), batch).sum_log_prob
    whole = Evict(score=score, slots=8).memory(reading, setting).memory
    part = Evict(score=score, slots=4).memory(reading, setting).memory
    assert whole is not None
    assert part is not None
    assert lm.score(whole, batch).sum_log_prob.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    found = lm.score(part, batch).sum_log_prob
    assert found[1] == pytest.approx(float(expected[1]), abs=1e-5)  # three tokens, all of them kept
    assert abs(float(found[0] - expected[0])) > 1e-4
    assert part.num_slots.tolist() == [4, 3]
    assert part.layers[0][0].shape[2] == 4  # allocated, not masked
    assert Evict(score=score).memory(reading, setting).memory is None


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_what_is_kept_of_a_context_does_not_depend_on_its_batch(
    model: str, bos: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read in several parts, or with a share of the bytes that holds a part of the longer contexts alone."""
    monkeypatch.setattr("promptcomp.rivals.evict.CHUNK", 4)
    lm = tiny_lm(model).requires_grad_(False)
    monkeypatch.setattr(lm, "bos_id", bos)
    rivals: list[Rival] = [AttentionMatching(slots=3), AttentionMatching(bytes=1 / 8), RandomSlots()]
    rivals += [Evict(score="kvzip", slots=3), Evict(score="kvzip", bytes=1 / 8), Evict(score="streaming", bytes=1 / 8)]
    for rival in rivals:
        found = []
        for contexts in ([row(tuple(range(3, 22))), row((20, 21, 22, 7, 9, 30))], [row((20, 21, 22, 7, 9, 30))]):
            batch = collate(contexts)
            own = SoftPrompt(lm.embed(batch.context.ids), batch.context.mask)
            setting = Setting(lambda context: None, batch.context)
            memory = rival.memory(Reading(lm, batch.context, own), setting).memory
            found.append(float(lm.score(memory, batch).sum_log_prob[-1]))
        assert found[0] == pytest.approx(found[1], abs=1e-5), rival.row


def test_the_last_positions_are_told_apart_in_half_precision() -> None:
    lm = LanguageModel.from_parts(tiny_hf("llama").bfloat16()).requires_grad_(False)
    lm._window = Window(None)  # it is rotary
    context = collate([row(tuple(number % 50 + 3 for number in range(600)))]).context
    reading = Reading(lm, context, None)
    memory = Evict(score="streaming", slots=6, sinks=2).memory(reading, Setting(lambda _: None, context)).memory
    assert isinstance(memory, KVCache)
    assert isinstance(reading.full, KVCache)
    keys = reading.full.layers[0][0]
    assert torch.equal(memory.layers[0][0], torch.cat([keys[:, :, :2], keys[:, :, -4:]], 2))


def test_one_pass_over_the_contexts_serves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, batch = tiny_lm("llama"), collate([row(LONG), row(SHORT)])
    lm.requires_grad_(False)
    reading, setting = Reading(lm, batch.context, None), Setting(lambda context: None, batch.context)
    widths: list[int] = []
    states = lm.states

    def counted(prefix: Any, *rest: Any, **named: Any) -> Any:
        widths.append(prefix.mask.shape[1])
        return states(prefix, *rest, **named)

    monkeypatch.setattr(lm, "states", counted)
    full = reading.full
    for rival in (Evict(score="knorm", slots=2), Quantize(bits=4), Quantize(bits=8), Evict(score="kvzip", slots=2)):
        assert rival.memory(reading, setting).memory is not None
    assert widths == [8]
    DropTokens(slots=2).memory(reading, setting)
    assert widths == [8, 2]  # what is left is read once more
    assert full is not None
    assert torch.equal(lm.score(full, batch).sum_log_prob, lm.score(lm.encode(batch.context), batch).sum_log_prob)


def test_lms_that_some_rivals_do_not_work_with() -> None:
    batch = collate([row(LONG)])
    setting = Setting(lambda context: None, batch.context)
    for name, message in (("t5_query_in_decoder", "states, not as keys and values"), ("mistral", "gaps")):
        with pytest.raises(NotMet, match=message):
            Evict(slots=2).memory(Reading(tiny_lm(name), batch.context, None), setting)
    seq2seq = Reading(tiny_lm("t5_query_in_decoder"), batch.context, None)
    with pytest.raises(NotMet, match="does not predict"):
        DropTokens(slots=2).memory(seq2seq, setting)
    with pytest.raises(NotMet, match="states, not as keys and values"):
        Quantize().memory(seq2seq, setting)
    full = collate([row(tuple(range(3, 53)) * 2 + tuple(range(3, 31)))]).context  # 128 positions
    with pytest.raises(NotMet, match="no room to read them again"):
        Evict(score="kvzip", slots=2).memory(Reading(tiny_lm("gpt2"), full, None), setting)


def test_latents_are_no_keys_and_values() -> None:
    """A cache of DeepSeek-V3 holds, where others have values, the rotary parts of keys."""
    batch = collate([row(LONG)])
    setting = Setting(lambda context: None, batch.context)
    reading = Reading(LanguageModel.from_parts(tiny_family("minicpm3")), batch.context, None)
    for rival in (Evict(score="knorm", slots=2), AttentionMatching(slots=2)):
        with pytest.raises(NotMet, match="holds latents"):
            rival.memory(reading, setting)
    whole = [
        rival.memory(reading, setting).memory
        for rival in (Evict(score="streaming", slots=99), Evict(score="kvzip", slots=99))
    ]
    for memory in whole:  # positions can be dropped
        torch.testing.assert_close(reading.lm.score(memory, batch), reading.lm.score(reading.full, batch))


def test_controls_know_nothing_of_the_context() -> None:
    lm = tiny_lm("llama")
    batch, others = collate([row(LONG), row(SHORT)]), collate([row(SHORT), row((1, 2)), row((9,))]).context
    made: list[Context] = []

    def compress(context: Context) -> Memory:
        made.append(context)
        return SoftPrompt(lm.embed(context.ids), context.mask)

    setting, reading = Setting(compress, others), Reading(lm, batch.context, compress(batch.context))
    memory = Shuffled().memory(reading, setting).memory
    again = Shuffled().memory(reading, setting).memory
    assert isinstance(memory, SoftPrompt)
    assert isinstance(again, SoftPrompt)
    assert torch.equal(memory.embeds, again.embeds)
    assert made[1:] == [others]  # compressed once
    theirs = [lm.embed(torch.tensor(ids)) for ids in (SHORT, (1, 2), (9,))]
    for number, allowed in ((0, theirs), (1, theirs[1:])):  # the second context is itself among the others
        found = memory.embeds[number][memory.mask[number]]
        assert any(found.shape == each.shape and torch.equal(found, each) for each in allowed)
    drawn = RandomSlots().memory(reading, setting).memory
    assert isinstance(drawn, SoftPrompt)
    assert drawn.num_slots.tolist() == [8, 3]
    assert torch.equal(drawn.embeds[0, -3:], drawn.embeds[1, -3:])
    assert RandomSlots().memory(Reading(lm, batch.context, None), setting).memory is None


def toy(method: dict[str, Any], rivals: list[dict[str, Any]], demonstrations: int = 16, bos: bool = True) -> Any:
    world = {"num_train_tasks": 8, "num_test_tasks": 24, "num_dev_tasks": 2, "num_queries": 8}
    tree = {
        "method": method,
        "data": {"name": "toy_icl", "num_demonstrations": demonstrations, "metric": "accuracy", "world": world},
        "lm": {"path": "builtin:toy_decoder", "bos": bos},
        "evaluation": {"rivals": rivals, "bootstrap_resamples": 100},
    }
    experiment = build(Experiment, tree)
    data, module = make_parts(experiment)
    module.configure_model()
    return assess(module.eval(), data, "test", experiment.evaluation)


def test_rows_of_rivals_and_what_controls_score() -> None:
    """With an LM that learns in context: more of a context is worth more, and nothing of it as much as no prompt."""
    asked = [{"name": "truncate", "slots": 40}, {"name": "fewer_demonstrations", "slots": 40},
             {"name": "fewer_demonstrations", "choose": "bm25", "query_aware": True, "bytes": "1/2"},
             {"name": "evict", "score": "kvzip", "bytes": "1/2"}, {"name": "quantize", "bits": 8},
             {"name": "quantize", "bytes": "1/8"}, {"name": "fewer_demonstrations", "slots": 1},
             {"name": "attention_matching", "slots": 40}, {"name": "shuffled"}, {"name": "random"}]  # fmt: skip
    found = toy({"name": "full_prompt"}, asked)
    result = found.result
    rows = [
        "truncate_tail_40_slots", "fewer_demonstrations_random_40_slots",
        "fewer_demonstrations_bm25_to_query_1_2_of_the_bytes", "evict_kvzip_1_2_of_the_bytes", "quantize_8_bits",
        "quantize_4_bits_1_8_of_the_bytes", "fewer_demonstrations_random_1_slots",
        "attention_matching_40_slots", "shuffled", "random",
    ]  # fmt: skip
    assert list(result.rivals) == rows
    value = {name: estimates["accuracy"].value for name, estimates in result.rows.items()}
    assert value["no_prompt"] + 0.1 < value[rows[1]] < value["full_prompt"]
    for name in ("shuffled", "random"):
        assert result.rivals[name].is_control
        assert abs(value[name] - value["no_prompt"]) < 0.15
        assert result.rivals[name].gap == pytest.approx(value["full_prompt"] - value[name])
    known = [result.rivals[row] for row in rows]
    assert 30 < known[1].slots <= known[1].asked_slots == 40
    assert known[0].slots == 40
    assert [each.query_aware for each in known[:4]] == [False, False, True, False]
    full = known[4].slots + 1  # BOS
    assert known[3].asked_bytes == pytest.approx(full * 3072 / 2)
    assert known[3].asked_bytes - 3072 < known[3].kv_bytes <= known[3].asked_bytes
    assert known[3].asked_slots is None
    assert abs(value[rows[4]] - value["full_prompt"]) < 0.03
    assert known[4].kv_bytes == known[4].stored_bytes
    assert full * 3072 / 4 < known[4].kv_bytes < full * 3072 / 2
    assert "more than 0.125" in known[5].missing
    assert "fits the budget" in known[6].missing
    assert set(found.predictions[0].scores) == {"method", "full_prompt", "no_prompt", *rows} - {rows[5], rows[6]}
    near = {name: (estimates["kl"].value, estimates["top1"].value) for name, estimates in result.rows.items()}
    assert near["method"] == near["full_prompt"] == (0.0, 1.0)
    assert 0 < near[rows[1]][0] < near["no_prompt"][0]
    assert 1 > near[rows[1]][1] > near["no_prompt"][1]


@pytest.mark.parametrize("bos", [True, False])
def test_contexts_without_a_demonstration(bos: bool) -> None:
    """Mean pooling has no span, rivals have nothing to keep; all of them are the LM without a context."""
    asked = [{"name": name} for name in ("truncate", "fewer_demonstrations", "drop_tokens", "evict", "random")]
    result = toy({"name": "pool", "num_slots": 3}, asked, demonstrations=0, bos=bos).result
    assert result.rows["method"]["loss"].value == pytest.approx(result.rows["no_prompt"]["loss"].value)
    assert len(result.rivals) == 5
    assert all(each.missing for each in result.rivals.values())


def test_rivals_of_instructions() -> None:
    tree = {
        "method": {"name": "full_prompt"},
        "data": {"name": "toy_instructions", "world": {"num_test_rows": 12, "num_dev_rows": 4}},
        "lm": {"path": "builtin:toy_instructions", "bos": True},
        "evaluation": {"rivals": [{"name": "truncate", "slots": 4}, {"name": "shuffled"}], "bootstrap_resamples": 100},
    }
    experiment = build(Experiment, tree)
    data, module = make_parts(experiment)
    module.configure_model()
    result = assess(module.eval(), data, "unseen", experiment.evaluation).result
    assert result.rivals["truncate_tail_4_slots"].slots == 4
    assert result.rows["shuffled"]["kl"].value > result.rows["full_prompt"]["kl"].value


@pytest.mark.parametrize(
    ("data", "rivals", "message"),
    [
        ("toy_instructions", [{"name": "fewer_demonstrations"}], "needs contexts of demonstrations"),
        ("toy_icl", [{"name": "truncate"}, {"name": "truncate"}], "truncate_tail occurs twice"),
        ("toy_icl", [{"name": "truncate", "slots": 3, "bytes": 0.5}], "slots or bytes, not both"),
        ("toy_icl", [{"name": "truncate", "bytes": "8/1"}], "less than or equal to 1"),
        ("toy_icl", [{"name": "truncate", "bytes": "1/0"}], "bytes"),
        ("toy_icl", [{"name": "evict", "kernel": 4}], "kernel must be odd"),
        ("toy_icl", [{"name": "quantize", "bits": 5}], "bits"),
        ("toy_icl", [{"name": "fewer_demonstrations", "query_aware": True}], "choose=bm25 or choose=nearest"),
        ("toy_icl", [{"name": "truncated"}], "truncate"),
    ],
)
def test_mistakes(data: str, rivals: list[dict[str, Any]], message: str) -> None:
    tree = {"method": {"name": "no_prompt"}, "data": {"name": data}, "lm": {"path": "builtin:toy_decoder"}}
    with pytest.raises(ConfigError, match=message):
        build(Experiment, {**tree, "evaluation": {"rivals": rivals}})


def test_every_rival_says_what_is_asked_of_it() -> None:
    rows = [section().row for section in RIVALS]  # type: ignore[call-arg]
    assert len(set(rows)) == len(rows)
    for section in RIVALS:
        assert section.title
        assert section().label.startswith(section.title)
    assert not EvaluationConfig().rivals
