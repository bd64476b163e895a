"""`promptcomp fit --dry-run`: what a run would be, without reading weights or training.

The models are built on torch's meta device (shapes only). Estimates are upper bounds where lengths are not known: a
context is taken at its token budget and a query with its target at `data.max_example_tokens`.

Memory of one training step, in bytes: weights, gradients and AdamW's two moments of what is trained, and the
activations that the backward pass needs, counted as Korthikanti et al. 2022 (arXiv 2205.05198) count a layer without
recomputation: S B D (34 + 5 H S / D) for 2-byte values, twice that for 4-byte ones; passes without gradients keep none.
FLOPs of a step: 2 a parameter and token forward, 2 backward through a frozen model, 4 backward through a trained one.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from promptcomp.config import dump
from promptcomp.datamodules.base import ICLConfig
from promptcomp.datamodules.instruction_options import InstructionConfig
from promptcomp.datamodules.rationale_options import RationaleConfig
from promptcomp.evaluation.flops import ModelShape, shape_of_config
from promptcomp.experiment import Experiment
from promptcomp.lightning_modules import METHODS
from promptcomp.lightning_modules.base import CompressionModule

_BYTES = {"32-true": 4, "bf16-mixed": 4, "16-mixed": 4, "bf16-true": 2}
_MAX_CONTEXT_WITHOUT_WINDOW = 1024


class Part(BaseModel):
    """One named part of the module."""

    name: str
    parameters: int
    trained: int
    weight_bytes: int
    training_bytes: int
    """Gradients and optimiser state."""


class Estimate(BaseModel):
    """What a run would need."""

    parts: list[Part]
    context_tokens: int
    """Most tokens of a context (its budget)."""
    example_tokens: int
    """Most tokens of a query with its target."""
    memory_slots: int
    activation_bytes: int
    total_bytes: int
    """Weights, training state and activations of one micro-batch on one device."""
    step_flops: float
    train_flops: float
    """All steps, all devices together."""


def estimate(experiment: Experiment) -> Estimate:
    """Parameters, memory and FLOPs of an experiment; nothing big is built.

    Raises:
        ConfigError: an architecture cannot be read.
    """
    spec = METHODS[experiment.method.name]
    module = spec.module(
        experiment.method,
        experiment.lm,
        experiment.optim,
        max_steps=experiment.trainer.max_steps,
        seed=experiment.seed,
        task_names=("task",),
        skeleton=True,
    )
    module.configure_model()
    parts = _parts(module, _BYTES[experiment.trainer.precision])
    context, example = _lengths(experiment, module)
    slots = module.num_memory_slots(context)
    batch = max(1, experiment.trainer.batch_size // experiment.trainer.accumulate)
    queries = experiment.data.queries_per_context if isinstance(experiment.data, ICLConfig) else 1
    activations = flops = 0.0
    for each in module.passes(context, example, queries):
        parameters = sum(p.numel() for p in each.model.parameters())
        shape = shape_of_config(each.model.config.to_dict(), parameters)
        tokens = each.tokens * batch
        if each.gradient:
            activations += _activation_bytes(shape, each.length, tokens, _BYTES[experiment.trainer.precision])
        flops += tokens * parameters * (2 + 2 * each.gradient + 2 * each.trained)
    static = sum(part.weight_bytes + part.training_bytes for part in parts)
    return Estimate(
        parts=parts,
        context_tokens=context,
        example_tokens=example,
        memory_slots=slots,
        activation_bytes=round(activations),
        total_bytes=static + round(activations),
        step_flops=flops * experiment.trainer.accumulate,
        train_flops=flops * experiment.trainer.accumulate * experiment.trainer.max_steps,
    )


def print_estimate(experiment: Experiment, console: Console, as_json: bool) -> None:
    """The resolved configuration and the estimate."""
    found = estimate(experiment)
    if as_json:
        tree = {"config": experiment.model_dump(mode="json"), "estimate": found.model_dump()}
        print(json.dumps(tree))
        return
    console.print(dump(experiment), highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, title="Parameters", title_justify="left", title_style="bold")
    for name in ("part", "parameters", "trained", "weights", "gradients + AdamW"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for part in found.parts:
        table.add_row(
            part.name, f"{part.parameters:,}", f"{part.trained:,}", _size(part.weight_bytes), _size(part.training_bytes)
        )
    console.print(table)
    console.print(
        f"\ncontext at most {found.context_tokens} tokens -> {found.memory_slots} slots; "
        f"query with target at most {found.example_tokens} tokens",
        highlight=False,
    )
    console.print(
        f"memory of a step: {_size(found.total_bytes)} on one device "
        f"(activations {_size(found.activation_bytes)}, without checkpointing)",
        highlight=False,
    )
    console.print(
        f"work: {found.step_flops:.3g} FLOP a step, {found.train_flops:.3g} FLOP in "
        f"{experiment.trainer.max_steps} steps (upper bounds)",
        highlight=False,
    )


def _parts(module: CompressionModule, value_bytes: int) -> list[Part]:
    groups: dict[str, list[Any]] = {}
    seen: set[int] = set()
    for name, parameter in module.named_parameters():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            groups.setdefault(name.split(".")[0], []).append(parameter)
    parts = []
    for name, parameters in groups.items():
        total = sum(p.numel() for p in parameters)
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        # half-precision training keeps its gradients in the weights' type; AdamW's moments are in that type too
        parts.append(
            Part(
                name=name,
                parameters=total,
                trained=trained,
                weight_bytes=sum(
                    p.numel() * (value_bytes if p.requires_grad else p.element_size()) for p in parameters
                ),
                training_bytes=3 * trained * value_bytes,
            )
        )
    return parts


def _lengths(experiment: Experiment, module: CompressionModule) -> tuple[int, int]:
    """Budget of a context and of a query with its target, in tokens."""
    data = experiment.data
    if isinstance(data, ICLConfig):
        window = module.lm.window
        room = _MAX_CONTEXT_WITHOUT_WINDOW if window is None else window - data.max_example_tokens - 1
        most = room if data.max_context_tokens is None else data.max_context_tokens
        return min(most, data.num_demonstrations * data.max_example_tokens), data.max_example_tokens
    if isinstance(data, InstructionConfig):
        context, query, target = data.limits("train")
        return context, query + target
    if isinstance(data, RationaleConfig):
        text = data.max_input_tokens or module.lm.window or _MAX_CONTEXT_WITHOUT_WINDOW
        room = text if module.lm.window is None else module.lm.window // 2
        shared = data.markers == "suffix"
        target = max(data.max_label_tokens, data.max_rationale_tokens if data.uses_rationales else 0)
        return (min(text, room), target) if shared else (0, min(text, room) + target)
    context = round(data.context_share * data.max_tokens)
    return context, data.max_tokens - context


def _activation_bytes(shape: ModelShape, length: float, tokens: float, value_bytes: int) -> float:
    layers = shape.num_layers + shape.num_decoder_layers
    per_layer = tokens * (34 * shape.hidden_size + 5 * shape.num_heads * length)
    logits = 2.0 * tokens * shape.vocab_size
    return (layers * per_layer + logits) * value_bytes / 2


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return ""
