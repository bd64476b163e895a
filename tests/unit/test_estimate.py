"""`fit --dry-run`: sizes of large models from their architecture, memory on many devices, and what is measured."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from promptcomp.config import apply_overrides, build
from promptcomp.experiment import Experiment, TrainerConfig
from promptcomp.forecast.activations import Rows, kept_bytes
from promptcomp.forecast.estimate import StepForecast, estimate
from promptcomp.forecast.placement import (
    GIB,
    Groups,
    Layout,
    Step,
    Weights,
    communication,
    device_memory,
    host_memory,
    layout_of,
)
from promptcomp.lightning_modules.execution import units_of
from tests.tiny_models import tiny_hf

LLAMA_2 = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
"""Touvron et al. 2023 (https://arxiv.org/abs/2307.09288), as in the models' config.json."""
PARAMETERS = {"7b": 6_738_415_616, "70b": 68_976_648_192}


def write_llama(folder: Path, size: str) -> Path:
    """A folder with no more than config.json."""
    folder.mkdir()
    whole = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096, **LLAMA_2[size]}
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


def experiment(lm: Path, *overrides: str) -> Experiment:
    tree: dict[str, Any] = {
        "method": {"name": "gist"},
        "lm": {"path": str(lm), "dtype": "bfloat16"},
        "data": {"name": "toy_instructions"},
        "trainer": {"batch_size": 64, "accelerator": "gpu", "precision": "bf16-true"},
    }
    return build(Experiment, apply_overrides(tree, overrides), source="test")


@pytest.mark.parametrize("size", ["7b", "70b"])
def test_a_folder_with_nothing_but_the_architecture_is_enough(size: str, tmp_path: Path) -> None:
    found = estimate(experiment(write_llama(tmp_path / size, size), "trainer.devices=8"), device_memory_gib=40)
    parts = {part.name: part for part in found.parts}
    assert parts["lm"].parameters == parts["lm"].trained == PARAMETERS[size]
    assert parts["lm"].weight_bytes == 2 * PARAMETERS[size]
    gist = 2 * parts["gist"].parameters
    assert found.device.weights == found.host.loading == 2 * PARAMETERS[size] + gist
    assert found.checkpoint_bytes == 3 * found.device.weights
    assert (found.strategy, found.devices, found.micro_batch) == ("ddp", 8, 8)
    assert found.communication.reduce_gradients == round(2 * 7 / 8 * found.device.weights)
    assert any("does not fit 40 GiB" in note for note in found.notes)
    assert any("without float32 copies" in note for note in found.notes)


def test_adapters_leave_a_frozen_model_without_training_state(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "7b", "7b")
    whole = estimate(experiment(folder, "trainer.devices=1"))
    lora = estimate(experiment(folder, "trainer.devices=1", "method.train=lora"))
    assert lora.device.gradients < 0.01 * whole.device.gradients
    assert lora.activation_bytes < whole.activation_bytes
    assert lora.step_flops == pytest.approx(2 / 3 * whole.step_flops, rel=0.01)
    fitting = estimate(experiment(folder, "method.train=lora", "trainer.devices=1", "trainer.batch_size=8"), 80)
    assert not any("does not fit" in note for note in fitting.notes)


def test_saying_the_prompt_again_is_a_pass_of_its_own(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "7b", "7b")
    plain = estimate(experiment(folder, "trainer.devices=1", "method.train=lora"))
    again = estimate(experiment(folder, "trainer.devices=1", "method.train=lora", "method.reconstruction_weight=0.3"))
    assert plain.step_flops < again.step_flops < 3 * plain.step_flops
    assert again.activation_bytes > plain.activation_bytes
    assert again.device.total > plain.device.total


def test_sharding_divides_the_state_and_gathers_weights() -> None:
    groups = Groups((Weights(100, 100), Weights(300, 300)), Weights(80, 80), largest_tensor=40)
    step = Step(activations=1000, working=50, logits=30)
    layout = Layout("fsdp", num_nodes=2, devices_per_node=4)
    memory = device_memory(groups, step, layout)
    assert (memory.weights, memory.gradients, memory.optimizer) == (60, 60, 120)
    assert memory.buffers == 80 + 80 + 3 * 300 + 2 * 300
    assert memory.total == 60 + 120 + memory.buffers + 1000 + 50
    assert device_memory(groups, step, replace(layout, accumulate=2)).total == memory.total + 60
    offloaded = replace(layout, offload_optimizer=True)
    assert device_memory(groups, step, offloaded).total == memory.total - 120
    assert host_memory(groups, offloaded).optimizer == 480
    moved = communication(groups, 2 * 400, layout)
    assert moved.gather_weights == round(7 / 8 * 880)
    assert moved.reduce_gradients == round(7 / 8 * 480)
    assert communication(groups, 800, replace(layout, accumulate=3)).total == pytest.approx(3 * moved.total, abs=3)


def test_mixed_precision_gathers_half_and_sums_in_full() -> None:
    blocks, halved = (Weights(100, 100), Weights(300, 200)), (Weights(50, 50), Weights(150, 100))
    groups = Groups(blocks, Weights(80, 80), largest_tensor=40, halved=halved)
    layout = Layout("fsdp", devices_per_node=8, precision="bf16-mixed")
    memory = device_memory(groups, Step(activations=1000, working=50, logits=30), layout)
    assert (memory.weights, memory.gradients, memory.optimizer) == (60, 48, 96)
    assert memory.buffers == 80 + 80 + 3 * 150 + 100 + 200
    moved = communication(groups, 2 * 200, layout)
    assert moved.gather_weights == round(7 / 8 * (400 + 80))
    assert moved.reduce_gradients == round(7 / 8 * (300 + 80))
    assert [replace(layout, strategy=each).gathered for each in ("single", "ddp", "fsdp")] == [
        None,
        None,
        torch.bfloat16,
    ]
    assert replace(layout, precision="bf16-true").gathered is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sharding_in_mixed_precision_keeps_no_copies(tmp_path: Path, dtype: str) -> None:
    words = ("trainer.precision=bf16-mixed", f"lm.dtype={dtype}", "trainer.devices=8", "trainer.batch_size=8")
    folder = write_llama(tmp_path / "7b", "7b")
    copied, sharded = (estimate(experiment(folder, *words, f"trainer.strategy={each}"), 40) for each in ("ddp", "fsdp"))
    wide = estimate(experiment(folder, *words, "trainer.strategy=fsdp", "trainer.precision=32-true"))
    blocks = PARAMETERS["7b"] - 2 * 32000 * 4096 - 4096
    matrices = blocks - 32 * 2 * 4096
    copies = copied.activation_bytes_plain - sharded.activation_bytes_plain
    assert copies == (2 * matrices if dtype == "float32" else 0)
    assert copied.activation_bytes_checkpointed == sharded.activation_bytes_checkpointed
    difference = wide.communication.gather_weights - sharded.communication.gather_weights
    assert difference == pytest.approx(7 / 8 * 2 * blocks * (2 if dtype == "float32" else 0))
    assert not any("autocast" in note for note in sharded.notes)


def test_whole_copies_reduce_gradients_once() -> None:
    groups = Groups((Weights(400, 400),), Weights(600, 80))
    step = Step(activations=10, working=5, logits=7)
    for accumulate in (1, 4):
        layout = Layout("ddp", devices_per_node=2, accumulate=accumulate)
        assert communication(groups, 0.0, layout).total == 480
        memory = device_memory(groups, step, layout)
        assert (memory.weights, memory.gradients, memory.buffers) == (1000, 480, 0)
        assert memory.total == 1000 + 960 + 480 + 480  # the update is the peak
        busy = device_memory(groups, replace(step, activations=5000), layout)
        assert busy.total == 1000 + 960 + 480 + 5000 + 7  # gradients are views of the buckets, which stay
    alone = Layout()
    assert communication(groups, 0.0, alone).total == device_memory(groups, step, alone).buffers == 0


def test_the_layout_follows_the_configuration() -> None:
    assert layout_of(TrainerConfig(devices=1, accelerator="cpu")) == Layout(on_gpu=False)
    two = layout_of(TrainerConfig(devices=2, accelerator="gpu", precision="bf16-mixed", accumulate=2))
    assert (two.strategy, two.devices, two.accumulate, two.on_gpu) == ("ddp", 2, 2, True)
    assert (two.autocast, two.weight_type) == (torch.bfloat16, None)
    assert layout_of(TrainerConfig(accelerator="cpu", precision="bf16-true")).weight_type == torch.bfloat16
    many = TrainerConfig(num_nodes=8, devices=8, strategy="fsdp", activation_checkpointing=True, offload_optimizer=True)
    assert layout_of(many) == Layout(
        "fsdp", num_nodes=8, devices_per_node=8, activation_checkpointing=True, offload_optimizer=True
    )


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gpt2", "opt", "t5", "t5v11"])
def test_what_is_kept(kind: str) -> None:
    hf = tiny_hf(kind)
    rows, decoder = Rows(2, 48), Rows(2, 16) if kind.startswith("t5") else None
    hf.requires_grad_(True)
    trained = kept_bytes(hf, rows, decoder, Layout())
    assert 0 < trained.checkpointed < trained.total
    assert 0 < trained.largest_block < trained.total
    half = kept_bytes(hf, rows, decoder, Layout(precision="bf16-true"))
    assert 0.4 * trained.total < half.total < 0.9 * trained.total
    hf.requires_grad_(False)
    assert kept_bytes(hf, rows, decoder, Layout()).total < trained.total
    copied = kept_bytes(hf, rows, decoder, Layout(precision="bf16-mixed"))
    # autocast keeps half-precision copies of frozen weights
    assert copied.total > kept_bytes(hf, rows, decoder, Layout(precision="bf16-true")).total
    # blocks that are gathered in half precision have none
    gathered = kept_bytes(hf, rows, decoder, Layout("fsdp", precision="bf16-mixed"))
    matrices = [each for unit in units_of(hf) for each in unit.parameters() if each.ndim == 2]
    assert copied.total - gathered.total >= sum(2 * each.numel() for each in matrices)
    assert gathered.checkpointed == copied.checkpointed


def test_eager_attention_keeps_scores() -> None:
    hf = tiny_hf("llama")
    fused = kept_bytes(hf, Rows(2, 96), None, Layout()).total
    hf.set_attn_implementation("eager")
    scores = 2 * 4 * 96 * 96 * 4 * 2  # rows x heads x S x S x bytes x layers
    assert kept_bytes(hf, Rows(2, 96), None, Layout()).total > fused + 0.8 * scores


@pytest.mark.parametrize(
    ("method", "model"), [("gist", "llama"), ("mend", "gpt2"), ("step_by_step", "t5"), ("full_prompt_lora", "llama")]
)
def test_the_estimate_is_near_what_a_step_takes(method: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    memory = importlib.import_module("memory")
    case = memory.Case(method, model, "sdpa", "32-true", width=128, length=128, rows=4)
    found = memory.compare(case, torch.device("cpu"))
    assert abs(found.error) < 0.15, found
    assert memory.measure(case, torch.device("cpu")) == pytest.approx(found.measured, rel=0.02)


def test_the_figures_of_a_page(tmp_path: Path) -> None:
    found = estimate(experiment(write_llama(tmp_path / "7b", "7b"), "trainer.devices=8"))
    assert StepForecast.model_validate_json(found.model_dump_json()) == found
    assert found.total_bytes > 4 * 2 * PARAMETERS["7b"] > 50 * GIB


def student(*overrides: str) -> Experiment:
    tree: dict[str, Any] = {
        "method": {"name": "step_by_step"},
        "lm": {"path": "builtin:toy_student", "from_scratch": {}},
        "data": {"name": "toy_rationales"},
        "trainer": {"accelerator": "cpu", "batch_size": 8},
    }
    return build(Experiment, apply_overrides(tree, overrides), source="test")


def test_a_white_box_teacher_is_counted() -> None:
    """Its weights, its pass, its logits and what the comparison makes of them."""
    alone = estimate(student())
    taught = estimate(student("method.teacher={path: builtin:toy_student, from_scratch: {}}"))
    assert taught.device.weights == 2 * alone.device.weights
    assert taught.device.logits > 1.5 * alone.device.logits
    assert taught.step_flops == pytest.approx(4 / 3 * alone.step_flops, rel=0.01)


@pytest.mark.parametrize("method", ["gist", "full_prompt", "mend", "prompt_tuning", "metaicl"])
def test_a_beginning_of_sequence_is_counted(method: str) -> None:
    words = ("data.name=toy_instructions", "lm={path: builtin:toy_instructions}", f"method={{name: {method}}}")
    without, with_bos = (estimate(student(*words, f"lm.bos={bos}")) for bos in ("false", "true"))
    assert with_bos.context_tokens == without.context_tokens + 1
    assert with_bos.step_flops > without.step_flops
    assert with_bos.activation_bytes_plain > without.activation_bytes_plain


def test_the_device_with_the_most_contexts_is_counted() -> None:
    found = estimate(student("trainer.batch_size=6", "trainer.devices=4"))
    assert found.micro_batch == 2  # two devices read two, two read one
    assert found.step_flops == pytest.approx(estimate(student("trainer.batch_size=6")).step_flops)


def test_batches_by_tokens_are_counted_as_their_limit_allows() -> None:
    plain, sixteen = (estimate(student(f"trainer.batch_size={size}", "trainer.devices=1")) for size in (8, 16))
    one = plain.context_tokens + 2 * plain.example_tokens  # a label and a rationale
    limit = f"data.max_batch_tokens={16 * one}"
    found = estimate(student(limit, "trainer.devices=1", "trainer.batch_size=8"), device_memory_gib=1e-3)
    assert (found.micro_batch, found.total_bytes) == (16, sixteen.total_bytes)
    assert found.step_flops == pytest.approx(sixteen.step_flops)
    assert "max_batch_tokens" in found.notes[0]
    assert "accumulate" not in found.notes[0]  # it would make another step and leave each part as it is
    parts = estimate(student(limit, "trainer.devices=3", "trainer.accumulate=4"))
    assert parts.micro_batch == 6
    assert parts.step_flops == pytest.approx(4 * sixteen.step_flops)


def test_a_process_holds_its_libraries_and_what_a_step_takes() -> None:
    found = estimate(student())
    assert found.host.libraries > 100 * 2**20
    step = found.host.process - found.host.libraries
    state = found.device.weights + found.device.gradients + found.device.optimizer
    assert step == max(found.total_bytes, state + found.device.gradients)  # gradients: as many bytes as trained weights
    on_gpu = estimate(student("trainer.accelerator=gpu", "trainer.devices=1"))
    assert on_gpu.host.process == on_gpu.host.libraries + on_gpu.host.loading
