"""Rivals: what they keep of a context, within which budget, and their rows in results; controls score as no prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from promptcomp.batch import Context, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.config import ConfigError, build
from promptcomp.experiment import EvaluationConfig, Experiment
from promptcomp.memory import Memory, SoftPrompt
from promptcomp.rivals import RIVALS, Setting
from promptcomp.rivals.fewer_demonstrations import FewerDemonstrations
from promptcomp.rivals.random_slots import RandomSlots
from promptcomp.rivals.rival import TextRival, tokens_of
from promptcomp.rivals.shuffled import Shuffled
from promptcomp.rivals.truncate import Truncate
from promptcomp.run.assess import assess
from promptcomp.run.opening import make_parts
from tests.tiny_models import naive_score, tiny_lm

LONG, SHORT = (5, 6, 7, 8, 9, 10, 11, 12), (20, 21, 22)
QUERY, TARGET = (3, 4), (8, 9)


def row(ids: tuple[int, ...], borders: tuple[int, ...] = ()) -> EncodedContext:
    return EncodedContext(ids, (EncodedQuery(QUERY, (EncodedTarget(TARGET),)),), borders=borders)


def kept(rival: TextRival, context: Context, *budget: int) -> list[list[int]]:
    keep = rival.keep(context, torch.tensor(budget)) & context.mask
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
    context = collate([row(LONG), row(SHORT)], 0).context
    assert kept(Truncate(keeps=keeps), context, 3, 4) == expected
    assert kept(Truncate(keeps=keeps), context, 0, 0) == [[], []]


def test_demonstrations_are_kept_whole_and_in_their_order() -> None:
    context = collate([row(LONG, (3, 5, 8)), row(SHORT, (1, 3))], 0).context
    assert kept(FewerDemonstrations(choose="first"), context, 5, 2) == [[5, 6, 7, 8, 9], [20]]
    assert kept(FewerDemonstrations(choose="last"), context, 5, 2) == [[8, 9, 10, 11, 12], [21, 22]]
    assert kept(FewerDemonstrations(choose="first"), context, 2, 0) == [[8, 9], []]  # what still fits
    drawn = kept(FewerDemonstrations(), context, 5, 2)
    assert drawn[1] in ([20], [21, 22])
    assert drawn[0] in ([5, 6, 7, 8, 9], [8, 9, 10, 11, 12])
    alone = [kept(FewerDemonstrations(), collate([each], 0).context, b)[0] for each, b in
             ((row(LONG, (3, 5, 8)), 5), (row(SHORT, (1, 3)), 2))]  # fmt: skip
    assert drawn == alone
    orders = {str(kept(FewerDemonstrations(seed=seed), context, 3, 2)) for seed in range(20)}
    assert len(orders) > 1


@pytest.mark.parametrize("model", ["llama", "t5_query_in_decoder", "t5_query_in_encoder"])
def test_kept_text_is_read_as_a_full_prompt(model: str) -> None:
    lm, batch = tiny_lm(model), collate([row(LONG), row(SHORT)], 0)
    own = SoftPrompt(torch.zeros(2, 4, 32), torch.tensor([[True] * 4, [False, False, True, True]]))
    setting = Setting(lm, lambda context: None, batch.context)
    memory = Truncate(keeps="both").memory(setting, batch.context, own)
    expected = [naive_score(lm, ids, QUERY, TARGET) for ids in ((5, 6, 11, 12), (20, 22))]
    assert lm.score(memory, batch).sum_log_prob.tolist() == pytest.approx(expected, abs=1e-5)
    memory = Truncate(keeps="head", slots=2).memory(setting, batch.context, None)
    expected = [naive_score(lm, ids, QUERY, TARGET) for ids in ((5, 6), (20, 21))]
    assert lm.score(memory, batch).sum_log_prob.tolist() == pytest.approx(expected, abs=1e-5)


def test_controls_know_nothing_of_the_context() -> None:
    lm = tiny_lm("llama")
    batch, others = collate([row(LONG), row(SHORT)], 0), collate([row(SHORT), row((1, 2)), row((9,))], 0).context
    made: list[Context] = []

    def compress(context: Context) -> Memory:
        made.append(context)
        return SoftPrompt(lm.embed(context.ids), context.mask)

    setting, own = Setting(lm, compress, others), compress(batch.context)
    memory = Shuffled().memory(setting, batch.context, own)
    again = Shuffled().memory(setting, batch.context, own)
    assert isinstance(memory, SoftPrompt)
    assert isinstance(again, SoftPrompt)
    assert torch.equal(memory.embeds, again.embeds)
    assert made[1:] == [others]  # compressed once
    theirs = [lm.embed(torch.tensor(ids)) for ids in (SHORT, (1, 2), (9,))]
    for number, allowed in ((0, theirs), (1, theirs[1:])):  # the second context is itself among the others
        found = memory.embeds[number][memory.mask[number]]
        assert any(found.shape == each.shape and torch.equal(found, each) for each in allowed)
    drawn = RandomSlots().memory(setting, batch.context, own)
    assert isinstance(drawn, SoftPrompt)
    assert drawn.num_slots.tolist() == [8, 3]
    assert torch.equal(drawn.embeds[0, -3:], drawn.embeds[1, -3:])
    assert RandomSlots().memory(setting, batch.context, None) is None


def toy(method: dict[str, Any], rivals: list[dict[str, Any]]) -> Any:
    world = {"num_train_tasks": 8, "num_test_tasks": 24, "num_dev_tasks": 2, "num_queries": 8}
    tree = {
        "method": method,
        "data": {"name": "toy_icl", "num_demonstrations": 16, "metric": "accuracy", "world": world},
        "lm": {"path": "builtin:toy_decoder", "bos": True},
        "evaluation": {"rivals": rivals, "bootstrap_resamples": 100},
    }
    experiment = build(Experiment, tree)
    data, module = make_parts(experiment)
    module.configure_model()
    return assess(module.eval(), data, "test", experiment.evaluation)


def test_rows_of_rivals_and_what_controls_score() -> None:
    """With an LM that learns in context: more of a context is worth more, and nothing of it as much as no prompt."""
    asked = [{"name": "truncate", "slots": 40}, {"name": "fewer_demonstrations", "slots": 40},
             {"name": "shuffled"}, {"name": "random"}]  # fmt: skip
    found = toy({"name": "full_prompt"}, asked)
    result = found.result
    assert list(result.rivals) == ["truncate_tail", "fewer_demonstrations_random", "shuffled", "random"]
    value = {name: estimates["accuracy"].value for name, estimates in result.rows.items()}
    assert value["no_prompt"] + 0.1 < value["fewer_demonstrations_random"] < value["full_prompt"]
    for name in ("shuffled", "random"):
        assert result.rivals[name].is_control
        assert abs(value[name] - value["no_prompt"]) < 0.15
        assert result.rivals[name].gap == pytest.approx(value["full_prompt"] - value[name])
    assert 30 < result.rivals["fewer_demonstrations_random"].slots <= 40
    assert result.rivals["truncate_tail"].slots == 40
    near = {name: (estimates["kl"].value, estimates["top1"].value) for name, estimates in result.rows.items()}
    assert near["method"] == near["full_prompt"] == (0.0, 1.0)
    assert 0 < near["fewer_demonstrations_random"][0] < near["no_prompt"][0]
    assert 1 > near["fewer_demonstrations_random"][1] > near["no_prompt"][1]
    assert set(found.predictions[0].scores) == {"method", "full_prompt", "no_prompt", *result.rivals}


def test_a_budget_that_holds_no_demonstration_has_no_row_but_a_reason() -> None:
    result = toy({"name": "full_prompt"}, [{"name": "fewer_demonstrations", "slots": 1}]).result
    assert "fits the budget" in result.rivals["fewer_demonstrations_random"].missing
    assert "fewer_demonstrations_random" not in result.rows


@pytest.mark.parametrize(
    ("data", "rivals", "message"),
    [
        ("toy_instructions", [{"name": "fewer_demonstrations"}], "needs contexts of demonstrations"),
        ("toy_icl", [{"name": "truncate"}, {"name": "truncate", "slots": 3}], "truncate_tail occurs twice"),
        ("toy_icl", [{"name": "truncated"}], "truncate"),
    ],
)
def test_mistakes(data: str, rivals: list[dict[str, Any]], message: str) -> None:
    tree = {"method": {"name": "no_prompt"}, "data": {"name": data}, "lm": {"path": "builtin:toy_decoder"}}
    with pytest.raises(ConfigError, match=message):
        build(Experiment, {**tree, "evaluation": {"rivals": rivals}})


def test_every_rival_says_what_is_asked_of_it() -> None:
    rows = [section().row for section in RIVALS]
    assert len(set(rows)) == len(rows)
    for section in RIVALS:
        assert section.title
        assert section().label.startswith(section.title)
    assert not EvaluationConfig().rivals
