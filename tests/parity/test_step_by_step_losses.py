"""The two-task losses against numbers of the original code: tiny T5, SVAMP rows with PaLM's rationales."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from promptcomp.batch import ANSWER, RATIONALE, Batch, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules import OptimConfig
from promptcomp.lightning_modules.base import LossTerm
from promptcomp.lightning_modules.objective import mutual_information
from promptcomp.lightning_modules.optim import learning_rate_factor, make_optimizer
from promptcomp.lightning_modules.step_by_step import Finetune, StepByStep, task_logits
from promptcomp.lightning_modules.step_by_step_config import FinetuneConfig, StepByStepConfig


@pytest.fixture
def folder(golden: Path) -> Path:
    return golden / "step_by_step"


@pytest.fixture
def losses(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "losses.json").read_text())["svamp"]


def student(folder: Path) -> LanguageModel:
    hf = T5ForConditionalGeneration.from_pretrained(folder / "tiny_t5")
    return LanguageModel.from_parts(hf, layout="query_in_encoder")


def rows(folder: Path, task: str) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    arrays = np.load(folder / "batches.npz")
    ids, mask, labels = (arrays[f"svamp__{task}__{name}"] for name in ("input_ids", "attention_mask", "labels"))
    return [
        (tuple(i[m == 1].tolist()), tuple(y[y != -100].tolist())) for i, m, y in zip(ids, mask, labels, strict=True)
    ]


def batch(folder: Path, *tasks: str) -> Batch:
    roles = {"pred": ANSWER, "expl": RATIONALE, "standard": ANSWER}
    columns = [[(roles[task], *row) for row in rows(folder, task)] for task in tasks]
    contexts = []
    for number, row in enumerate(zip(*columns, strict=True)):
        queries = [EncodedQuery(x, (EncodedTarget(y, role=role),), number) for role, x, y in row]
        contexts.append(EncodedContext((), tuple(queries)))
    return collate(contexts)


def module(folder: Path, lr: float = 1e-3, **options: Any) -> StepByStep:
    built = StepByStep(StepByStepConfig(**options), student(folder), OptimConfig(lr=lr), max_steps=5, seed=0)
    built.configure_model()
    return built


def value(terms: list[LossTerm]) -> torch.Tensor:
    return torch.stack([t.weight * t.total / t.count for t in terms]).sum()


def number(terms: list[LossTerm]) -> float:
    return float(value(terms).detach())


def test_losses_for_every_alpha(folder: Path, losses: dict[str, Any]) -> None:
    for alpha, expected in losses["total_by_alpha"].items():
        found = module(folder, alpha=float(alpha)).losses(batch(folder, "pred", "expl"))
        assert number(found) == pytest.approx(expected, rel=1e-5)
        assert [t.count for t in found] == [losses[t]["n_target_tokens"] for t in ("pred", "expl")]


def test_the_papers_form(folder: Path, losses: dict[str, Any]) -> None:
    for weight, expected in losses["paper_form_label_plus_lambda_rationale_fp64"].items():
        found = number(module(folder, lambda_=float(weight)).losses(batch(folder, "pred", "expl")))
        assert found == pytest.approx(expected, rel=1e-5)


def test_tokens_of_both_tasks_are_not_pooled(folder: Path, losses: dict[str, Any]) -> None:
    found = number(module(folder).losses(batch(folder, "pred", "expl")))
    assert found != pytest.approx(losses["NOT_reference_pooled_token_mean_fp64"], rel=1e-4)


def test_finetuning_without_marker(folder: Path, losses: dict[str, Any]) -> None:
    built = Finetune(FinetuneConfig(), student(folder), OptimConfig(), max_steps=1, seed=0)
    built.configure_model()
    found = number(built.losses(batch(folder, "standard")))
    assert found == pytest.approx(losses["standard_finetune_loss"], rel=1e-5)


def test_logits(folder: Path) -> None:
    arrays = np.load(folder / "batches.npz")
    found = task_logits(student(folder), batch(folder, "pred", "expl"))
    for role, task in ((ANSWER, "pred"), (RATIONALE, "expl")):
        expected = torch.tensor(arrays[f"svamp__{task}__logits"])[
            torch.tensor(arrays[f"svamp__{task}__labels"]) != -100
        ]
        torch.testing.assert_close(found[role].values.detach(), expected, atol=5e-5, rtol=0)


def test_gradient(folder: Path) -> None:
    built = module(folder, alpha=0.5)
    value(built.losses(batch(folder, "pred", "expl"))).backward()
    expected = load_file(folder / "grads_svamp_alpha0.5.safetensors")
    found = {name: p.grad for name, p in built.lm.hf.named_parameters()}
    for name, gradient in expected.items():
        mine = found[name]
        assert mine is not None, name
        torch.testing.assert_close(mine, gradient, atol=1e-5, rtol=1e-4)


def test_five_steps(folder: Path) -> None:
    expected = json.loads((folder / "trajectory.json").read_text())["adamw_torch"]
    config = OptimConfig(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, warmup_steps=0, min_lr_ratio=0.0)
    built = module(folder, alpha=0.5)
    named = [(name, p) for name, p in built.named_parameters() if p.requires_grad]
    optimizer = make_optimizer(named, config)
    data = batch(folder, "pred", "expl")
    for step, wanted in enumerate(expected["steps"]):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * learning_rate_factor(step, 5, config)
        optimizer.zero_grad()
        loss = value(built.losses(data))
        assert float(loss.detach()) == pytest.approx(wanted["loss_before_step"], rel=1e-5)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        assert float(norm) == pytest.approx(wanted["grad_norm_before_clip"], rel=1e-4)
        optimizer.step()
    assert number(built.losses(data)) == pytest.approx(expected["loss_after_5_steps"], rel=1e-5)
    after = load_file(folder / "model_after_5_steps_adamw_torch.safetensors")
    weights = dict(built.lm.hf.named_parameters())
    for name, tensor in after.items():
        if name in weights:
            torch.testing.assert_close(weights[name].detach(), tensor, atol=2e-5, rtol=1e-4)


def test_mutual_information_as_its_authors_compute_it(folder: Path, losses: dict[str, Any]) -> None:
    """Their maxima run over padding positions too, so the function is given those."""
    arrays = np.load(folder / "batches.npz")
    label, rationale = (torch.tensor(arrays[f"svamp__{task}__logits"]) for task in ("pred", "expl"))
    example = [torch.arange(4).repeat_interleave(logits.shape[1]) for logits in (label, rationale)]
    total = mutual_information(label.flatten(0, 1), example[0], rationale.flatten(0, 1), example[1], 4) / 4
    expected = losses["variant_mutual_information"]["ms_loss"]
    assert float(total) == pytest.approx(expected, rel=1e-5)
