"""step_by_step: both tasks in one arrangement equal two plain passes, and every variant follows its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from promptcomp.batch import ANSWER, RATIONALE, Batch, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.language_model import LanguageModel, LanguageModelConfig
from promptcomp.lightning_modules import OptimConfig
from promptcomp.lightning_modules.objective import jensen_shannon, kl_divergence, mutual_information
from promptcomp.lightning_modules.step_by_step import NAMES, StepByStep, task_logits
from promptcomp.lightning_modules.step_by_step_config import StepByStepConfig
from tests.tiny_models import naive_score, tiny_lm

MODELS = ("llama", "gpt2", "t5_query_in_encoder", "t5_query_in_decoder")
INPUTS = ((11, 12, 13, 14), (15,), (16, 17))
LABELS = ((21,), (22, 23), (24,))
RATIONALES = ((31, 32, 33, 34, 35), (36, 37), (38, 39, 40))


def batch(markers: str, rationales: tuple[int, ...] = (0, 1, 2)) -> Batch:
    """`prefix`: queries hold marker and input; `suffix`: the input is the context and queries are markers."""
    contexts = []
    for i, (x, y, r) in enumerate(zip(INPUTS, LABELS, RATIONALES, strict=True)):
        pairs = [(ANSWER, 5, y)] + ([(RATIONALE, 6, r)] if i in rationales else [])
        queries = [
            EncodedQuery((marker, *x) if markers == "prefix" else (marker,), (EncodedTarget(ids, role=role),), i)
            for role, marker, ids in pairs
        ]
        contexts.append(EncodedContext(() if markers == "prefix" else x, tuple(queries)))
    return collate(contexts)


def module(lm: LanguageModel, **options: Any) -> StepByStep:
    built = StepByStep(StepByStepConfig(**options), lm, OptimConfig(), max_steps=1, seed=3)
    built.configure_model()
    return built.eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("markers", ["prefix", "suffix"])
def test_one_arrangement_equals_separate_rows(name: str, markers: str) -> None:
    lm = tiny_lm(name)
    found = {t.name: (float(t.total.detach()), t.count) for t in module(lm).losses(batch(markers))}
    for role, texts, marker in ((ANSWER, LABELS, 5), (RATIONALE, RATIONALES, 6)):
        total = 0.0
        for x, y in zip(INPUTS, texts, strict=True):
            context, query = ((), (marker, *x)) if markers == "prefix" else (x, (marker,))
            total -= naive_score(lm, context, query, y)
        assert found[NAMES[role]][0] == pytest.approx(total, abs=1e-4)
        assert found[NAMES[role]][1] == sum(len(y) for y in texts)


@pytest.mark.parametrize("name", MODELS)
def test_rows_without_rationale_and_batches_without_any(name: str) -> None:
    for rationales, count in (((1,), 2), ((), 0)):
        terms = module(tiny_lm(name), mutual_information=0.1).losses(batch("prefix", rationales))
        counts = {t.name: int(t.count) for t in terms}
        assert counts["rationale"] == count
        assert counts["label"] == 4
        assert all(bool(torch.isfinite(t.total)) for t in terms)


def test_weights_in_both_forms() -> None:
    assert (ANSWER, RATIONALE) == (0, 1)  # places of the weights
    assert StepByStepConfig().weights == (0.5, 0.5)
    assert StepByStepConfig(alpha=0.25).weights == (0.25, 0.75)
    assert StepByStepConfig(lambda_=2.0).weights == (1.0, 2.0)
    wrong: tuple[dict[str, Any], ...] = (
        {"alpha": 1.5},
        {"alpha": 0.5, "lambda_": 1.0},
        {"weighting": "uncertainty", "alpha": 0.5},
        {"on_policy_share": 0.5},
        {"jsd_beta": 0.5},
    )
    for options in wrong:
        with pytest.raises(ValidationError):
            StepByStepConfig(**options)


def test_uncertainty_weighting() -> None:
    lm = tiny_lm("llama")
    plain = {t.name: float(t.total.detach()) for t in module(lm).losses(batch("prefix"))}
    weighted = module(lm, weighting="uncertainty")
    with torch.no_grad():
        weighted.log_scales.copy_(torch.tensor([0.3, -0.2]))
    found = {t.name: t for t in weighted.losses(batch("prefix"))}
    for name, log_scale in (("label", 0.3), ("rationale", -0.2)):
        expected = plain[name] / (2 * math.exp(log_scale) ** 2)
        assert float(found[name].total.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(found["log_scale"].total.detach()) == pytest.approx(0.1, abs=1e-6)
    assert "log_scales" in weighted.trained_parameters()


def test_mutual_information_in_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    label, rationale = (torch.randn(n, 7, generator=generator) for n in (4, 6))
    label_row, rationale_row = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1, 0, 0])
    expected = 0.0
    for row in range(2):
        p = label[label_row == row].softmax(-1).max(0).values
        q = rationale[rationale_row == row].softmax(-1).max(0).values
        expected -= float((p * q.log_softmax(-1)).sum())
    found = float(mutual_information(label, label_row, rationale, rationale_row, 2))
    assert found == pytest.approx(expected, rel=1e-5)


def test_jensen_shannon_in_a_loop_and_at_its_ends() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(3, 5, generator=generator) for _ in range(2))
    p, q = teacher.softmax(-1), student.softmax(-1)
    middle = 0.3 * p + 0.7 * q
    expected = 0.3 * (p * (p / middle).log()).sum() + 0.7 * (q * (q / middle).log()).sum()
    torch.testing.assert_close(jensen_shannon(student, teacher, 0.3, 1.0), expected)
    small = jensen_shannon(student.double(), teacher.double(), 1e-5, 1.0) / 1e-5
    assert float(small) == pytest.approx(float(kl_divergence(student, teacher, 1.0)), rel=1e-3)


def with_teacher(lm: LanguageModel, teacher: LanguageModel, **options: Any) -> StepByStep:
    built = module(lm)
    built.method = StepByStepConfig(teacher=LanguageModelConfig(path="in memory"), **options)
    built.teacher = teacher.requires_grad_(False).eval()
    return built


@pytest.mark.parametrize("name", MODELS)
def test_teacher_distance(name: str) -> None:
    lm, teacher = tiny_lm(name), tiny_lm(name, seed=7)
    data = batch("prefix")
    found = with_teacher(lm, teacher, temperature=2.0).losses(data)[-1]
    student, target = (torch.cat([task_logits(m, data)[role].values for role in NAMES]) for m in (lm, teacher))
    expected = 4.0 * F.kl_div(
        (student / 2).log_softmax(-1), (target / 2).log_softmax(-1), reduction="sum", log_target=True
    )
    torch.testing.assert_close(found.total, expected)
    assert found.count == sum(len(y) for y in (*LABELS, *RATIONALES))
    same = with_teacher(lm, tiny_lm(name), jsd_beta=0.5).losses(data)[-1]
    assert float(same.total.detach()) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("name", ["llama", "t5_query_in_encoder"])
@pytest.mark.parametrize("options", [{}, {"jsd_beta": 0.5, "on_policy_share": 1.0, "on_policy_tokens": 12}])
def test_a_teacher_with_fewer_rows_is_compared_on_those_that_both_have(name: str, options: dict[str, Any]) -> None:
    lm, teacher = tiny_lm(name), tiny_lm(name, seed=7)
    teacher.hf.resize_token_embeddings(41, mean_resizing=False)
    teacher.vocab_size = 41
    built = with_teacher(lm, teacher, **options)
    built.counts(batch("prefix"))
    found = built.losses(batch("prefix"))[-1]
    assert float(found.total.detach()) > 0
    assert found.count > 0


@pytest.mark.parametrize("name", ["llama", "t5_query_in_encoder"])
def test_on_policy_targets_come_from_the_student(name: str) -> None:
    built = with_teacher(tiny_lm(name), tiny_lm(name, seed=7), jsd_beta=0.5, on_policy_share=1.0, on_policy_tokens=6)
    data = batch("prefix")
    drawn = built._with_drawn_rationales(data)
    again = built._with_drawn_rationales(data)
    assert torch.equal(drawn.target_ids, again.target_ids)
    assert drawn.role.tolist() == [RATIONALE] * 3
    term = built.losses(data)[-1]
    assert term.name == "on_policy"
    assert term.count == int(drawn.target_mask.sum())
    term.total.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in built.lm.parameters())


def test_of_role_keeps_order_and_trims() -> None:
    data = batch("prefix", (0, 2))
    labels, queries = data.of_role(ANSWER)
    assert queries.tolist() == [0, 2, 3]
    assert labels.target_ids.tolist() == [[21, 0], [22, 23], [24, 0]]
    assert labels.context_of.tolist() == [0, 1, 2]
    assert labels.query_of.tolist() == [0, 1, 2]
