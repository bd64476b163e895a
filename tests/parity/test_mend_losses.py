"""MEND's vectors, losses, gradients and training trajectory against the original code, in float64."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from golden_mend import DATA, Case, GoldenMend, RawPositions, make, our_name
from torch import Tensor
from torch.utils.data import DataLoader

from promptcomp.batch import Batch
from promptcomp.lightning_modules.mend_config import MendConfig
from promptcomp.lightning_modules.objective import kl_divergence

SCALAR = {"rtol": 0, "atol": 1e-9}
ARRAY = {"rtol": 0, "atol": 1e-6}

# Raw: the original's positions, which padding shifts. One row without padding is the same either way.
CASES = [
    ("A1_finetune_b1", "A", GoldenMend, {}),
    ("A2_finetune_b3_pad", "A", RawPositions, {}),
    ("A2_row0_unpadded", "A", GoldenMend, {}),
    ("A2_row2_unpadded", "A", GoldenMend, {}),
    ("A4_pretrain_kl_only", "A", RawPositions, {"stage": "pretrain"}),
    ("B1_samedim_no_pooler", "B", RawPositions, {}),
]


def totals(module: GoldenMend, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    terms = module.losses(batch)
    means = {term.name: term.total / term.count for term in terms}
    return means, torch.stack([term.weight * means[term.name] for term in terms]).sum()


def folder_of(model: str, request: pytest.FixtureRequest) -> Path:
    return DATA if model == "A" else request.getfixturevalue("golden") / "mend"


@pytest.mark.parametrize(("name", "model", "kind", "options"), CASES, ids=[case[0] for case in CASES])
def test_vectors_losses_and_gradients(
    name: str, model: str, kind: type[GoldenMend], options: dict[str, str], request: pytest.FixtureRequest
) -> None:
    folder = folder_of(model, request)
    case = Case(name, folder)
    module = make(model, folder, MendConfig(num_slots=case.numbers["k"], **options), kind)
    batch = case.batch()
    vectors = module.compress(batch.context).embeds
    torch.testing.assert_close(vectors, case["out/distilled_vectors"], **ARRAY)

    means, total = totals(module, batch)
    expected = {"kl": case.numbers["kl_loss"]}
    if "stage" not in options:
        expected["ce"] = case.numbers["ce_loss"]
    assert means.keys() == expected.keys()
    for term, value in expected.items():
        assert means[term].item() == pytest.approx(value, abs=1e-9)
    assert total.item() == pytest.approx(case.numbers["total_loss"], abs=1e-9)
    counts = {term.name: term.count for term in module.losses(batch)}
    assert counts["kl"] == case.numbers["n_kl_positions"]

    total.backward()
    parameters = dict(module.named_parameters())
    for golden_name, norm in case.numbers.get("grad_norms", {}).items():
        grad = parameters[our_name(golden_name)].grad
        assert grad is not None
        assert grad.norm().item() == pytest.approx(norm, rel=1e-8), golden_name
    for golden_name in ("init_prompt_weight", "adap_pooler.dense.weight", "ln_f.weight", "wpe.weight"):
        if f"{name}/grad/{golden_name}" in case.arrays:
            torch.testing.assert_close(parameters[our_name(golden_name)].grad, case[f"grad/{golden_name}"], **ARRAY)
    assert all(p.grad is None for p in module.lm.parameters())


def test_kl_of_each_position() -> None:
    case = Case("A2_row0_unpadded")
    module = make("A", DATA, MendConfig(num_slots=6))
    batch = case.batch()
    student = module.lm(module.compress(batch.context), batch, "all").values
    teacher = module.lm(module.lm.encode(batch.teacher_context), batch, "all").values
    ours = torch.stack([kl_divergence(s, t, 1.0) for s, t in zip(student[:, None], teacher[:, None], strict=True)])
    torch.testing.assert_close(ours, case["out/token_kl"], **SCALAR)


def test_logits_of_student_and_teacher(golden: Path) -> None:
    case = Case("A1_finetune_b1", golden / "mend")
    module = make("A", DATA, MendConfig(num_slots=6))
    batch = case.batch()
    student = module.lm(module.compress(batch.context), batch, "all").values
    torch.testing.assert_close(student, case["out/student_logits"][0], **ARRAY)
    teacher = module.lm(module.lm.encode(batch.teacher_context), batch, "all").values
    torch.testing.assert_close(teacher, case["out/teacher_logits"][0, -len(teacher) :], **ARRAY)


def test_we_count_positions_by_tokens_where_the_original_counts_padding() -> None:
    """A known deviation: in our batches a row gets the vectors that it gets alone, not those of the padded original."""
    case, alone = Case("A2_finetune_b3_pad"), Case("A2_row2_unpadded")
    module = make("A", DATA, MendConfig(num_slots=6))
    vectors = module.compress(case.batch().context).embeds
    torch.testing.assert_close(vectors[2:], alone["out/distilled_vectors"], **ARRAY)
    assert (vectors[2:] - case["out/distilled_vectors"][2:]).abs().max() > 0.1


def test_temperature_and_lambda() -> None:
    """Case A3: batch A2 with T = 2 and lambda = 0.3 (numbers from the collection's table)."""
    module = make("A", DATA, MendConfig(num_slots=6, temperature=2.0, kl_weight=0.3), RawPositions)
    means, total = totals(module, Case("A2_finetune_b3_pad").batch())
    assert means["kl"].item() == pytest.approx(0.0759529143, abs=1e-9)
    assert means["ce"].item() == pytest.approx(6.3418147156, abs=1e-9)
    assert total.item() == pytest.approx(6.3646005899, abs=1e-9)


class Recorder(L.Callback):
    """Loss before each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: dict[str, Tensor], *_: object
    ) -> None:
        self.losses.append(outputs["loss"].item())


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:Found .* in eval mode")
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*_dataloader.*limit")
def test_six_training_steps_under_lightning() -> None:
    case = Case("A2_training_trajectory")
    module = make("A", DATA, MendConfig(num_slots=6), RawPositions)
    recorder = Recorder()
    trainer = L.Trainer(
        max_steps=6,
        accelerator="cpu",
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
        limit_val_batches=0,
    )
    loader = DataLoader([Case("A2_finetune_b3_pad").batch()] * 6, batch_size=None)
    trainer.fit(module, loader, loader)
    assert recorder.losses == pytest.approx([step["loss"] for step in case.numbers["steps"]], abs=1e-8)
