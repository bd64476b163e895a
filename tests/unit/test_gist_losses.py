"""Gist tokens: who teaches them, and the terms of their loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from promptcomp.batch import EncodedContext, EncodedQuery, EncodedTarget
from promptcomp.checkpoints.trained_state import DESCRIPTION
from promptcomp.config import ConfigError
from promptcomp.lightning_modules.gist import Gist
from tests.gist_modules import CONTEXTS, DECODERS, ENCODERS, batch, gist, method, steps, value
from tests.tiny_models import tiny_lm

# ---- teachers


def teacher_logits(module: Gist) -> Tensor:
    return module.teach(batch())


@pytest.mark.parametrize("train", ["lm", "lora", "none"])
def test_the_initial_teacher_does_not_move(train: str) -> None:
    lm = tiny_lm("t5_query_in_encoder")  # has dropout
    with torch.no_grad():
        first = lm(lm.encode(batch().context), batch()).values
    module = gist(lm, train=train, kl_weight=0.5)
    assert (module.teacher is not None) == (train == "lm")
    assert not any(name.startswith("teacher") for name in module.trained_parameters())
    before = value(module)
    assert steps(module, 5)[-1] < before
    module.train()
    torch.testing.assert_close(teacher_logits(module), first, rtol=0, atol=1e-6)
    assert module.lm.training is (train != "none")


def test_the_lm_of_the_moment_as_teacher() -> None:
    module = gist(kl_weight=1.0, teacher="self")
    assert module.teacher is None
    steps(module, 2)
    with torch.no_grad():
        now = module.lm(module.lm.encode(batch().context), batch()).values
    torch.testing.assert_close(teacher_logits(module), now, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"train": "none"}, {"train": "lora", "lora": {"rank": 3, "targets": ["q_proj"]}}])
def test_trained_parts_are_not_put_beside_other_weights(options: dict[str, Any], tmp_path: Path) -> None:
    gist(**options).export(tmp_path / "run")
    other = tiny_lm("llama", seed=1)
    with pytest.raises(ConfigError, match=r"run: was trained beside other weights than this run's .*\(LM in memory\)"):
        gist(other, init_from=str(tmp_path / "run"), **options)
    gist(init_from=str(tmp_path / "run"), **options)
    gist(tiny_lm("llama", seed=1), train="lm").export(tmp_path / "whole")
    gist(train="lm", init_from=str(tmp_path / "whole"))  # holds all weights
    described = json.loads((tmp_path / "run" / DESCRIPTION).read_text())
    del described["origin"]["frozen"]  # as older versions wrote it
    (tmp_path / "run" / DESCRIPTION).write_text(json.dumps(described))
    gist(tiny_lm("llama", seed=1), init_from=str(tmp_path / "run"), **options)


@pytest.mark.parametrize("train", ["lm", "lora"])
@pytest.mark.parametrize("student", ["lm", "lora"])
def test_a_trained_full_prompt_as_teacher(student: str, train: str, tmp_path: Path) -> None:
    control = method("full_prompt", train=train, lora={"rank": 3, "targets": ["q_proj", "up_proj"]})
    steps(control, 3)
    control.export(tmp_path / "export")
    module = gist(train=student, kl_weight=1.0, teacher=str(tmp_path))
    with torch.no_grad():
        theirs = control.lm(control.compress(batch().context), batch()).values
    torch.testing.assert_close(teacher_logits(module), theirs, rtol=0, atol=1e-6)
    assert [term.name for term in module.losses(batch())] == ["ce", "kl"]


def test_teachers_that_do_not_fit(tmp_path: Path) -> None:
    gist(train="none").export(tmp_path / "gist")
    with pytest.raises(ConfigError, match="made with method 'gist'"):
        gist(kl_weight=1.0, teacher=str(tmp_path / "gist"))
    method("full_prompt", "gpt2", train="lm").export(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match="does not fit this configuration"):
        gist(kl_weight=1.0, teacher=str(tmp_path / "gpt2"))
    lora = {"rank": 3, "targets": ["q_proj"]}
    method("full_prompt", tiny_lm("llama", seed=1), train="lora", lora=lora).export(tmp_path / "other" / "export")
    with pytest.raises(ConfigError, match="was trained beside other weights than this run's"):
        gist(kl_weight=1.0, teacher=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="does not exist"):
        gist(kl_weight=1.0, teacher=str(tmp_path / "missing"))
    gist(teacher="missing")  # not asked


def test_terms_of_the_loss() -> None:
    module = gist(kl_weight=0.5, full_prompt_weight=0.25, kl_positions="all")
    terms = {term.name: term for term in module.losses(batch())}
    assert [(name, term.weight) for name, term in terms.items()] == [("ce", 1.0), ("full_ce", 0.25), ("kl", 0.5)]
    tokens = int(batch().query_mask.sum() + batch().target_mask.sum())
    assert terms["kl"].count == tokens
    score = method("full_prompt").score(batch())
    torch.testing.assert_close(terms["full_ce"].total, -score.sum_log_prob.sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [*DECODERS, *ENCODERS])
@pytest.mark.parametrize("arrangement", ["joint", "split"])
@torch.no_grad()
def test_the_prompt_is_said_again_from_the_gist_tokens(model: str, arrangement: str) -> None:
    """Equal to prompts as targets, one at a time, behind their own gist tokens."""
    module = gist(model, arrangement=arrangement, reconstruction_weight=0.3)
    terms = {term.name: term for term in module.losses(batch())}
    assert terms["reconstruction"].weight == 0.3
    expected, count = 0.0, 0
    for context in CONTEXTS:
        query = EncodedQuery((module.lm.end_id,), (EncodedTarget(context.ids),))
        if context.ids:
            alone = batch(EncodedContext(context.ids, (query,)))
            expected -= float(module.lm.score(module.compress(alone.context), alone).sum_log_prob)
            count += len(context.ids)
    assert int(terms["reconstruction"].count) == int(module.counts(batch())["reconstruction"]) == count
    assert float(terms["reconstruction"].total) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("model", ["llama", "t5_query_in_encoder"])
def test_nothing_to_say_again(model: str) -> None:
    """Contexts without a token give a term of nothing."""
    on = batch(EncodedContext((), (EncodedQuery((29, 30), (EncodedTarget((38,)),)),)))
    term = next(t for t in gist(model, reconstruction_weight=1.0).losses(on) if t.name == "reconstruction")
    assert (float(term.total.detach()), int(term.count)) == (0.0, 0)


def test_saying_the_prompt_again_is_learnt() -> None:
    """One gist token comes to hold all tokens of three prompts, and nothing but the option asks for them."""
    contexts = [
        EncodedContext(ids, (EncodedQuery((20,), (EncodedTarget((30,)),)),))
        for ids in ((5, 9, 7, 11), (8, 6), (10, 5, 12, 6, 9))
    ]
    found = []
    for weight in (0.0, 1.0):
        module = gist("llama", num_slots=1, reconstruction_weight=weight)
        steps(module, 60, batch(*contexts))
        asked = gist(module.lm, num_slots=1, reconstruction_weight=1.0)
        asked.load_state_dict(module.state_dict())
        term = next(t for t in asked.losses(batch(*contexts)) if t.name == "reconstruction")
        found.append(float(term.total.detach()) / int(term.count))
    assert found[1] < 0.5 < 1.5 < found[0]
