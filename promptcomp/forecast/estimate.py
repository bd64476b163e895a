"""What a run would need: parameters, memory of each device, communication and FLOPs, from shapes alone.

The models are built on torch's meta device. Lengths are budgets, so figures are upper bounds where real rows are
shorter: a context is taken at its token budget and a query with its target at theirs.

FLOPs of a step: those of each forward pass (promptcomp.evaluation.flops) and of the logits at the labels, as much again
backward through a frozen model and twice as much through a trained one (Kaplan et al. 2020,
https://arxiv.org/abs/2001.08361, section 2.1); recomputed activations are not counted.
Activations: promptcomp.forecast.activations. Devices: promptcomp.forecast.placement. How far the figures are from
measured ones: benchmarks/memory.py.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel

from promptcomp.evaluation.flops import cross_decoder_flops, encoder_flops, read_flops
from promptcomp.experiment import Experiment
from promptcomp.forecast.activations import Kept, Work, kept_bytes, label_positions, micro_batch_of, rows_of, work_of
from promptcomp.forecast.placement import (
    GIB,
    Communication,
    DeviceMemory,
    Groups,
    Host,
    Layout,
    Step,
    communication,
    device_memory,
    group_weights,
    host_memory,
    layout_of,
    resident_bytes,
)
from promptcomp.language_model.counting import model_cost
from promptcomp.lightning_modules.adapters import adapted
from promptcomp.lightning_modules.base import CompressionModule, Pass


class Part(BaseModel):
    """One named part of the module, whole."""

    name: str
    parameters: int
    trained: int
    weight_bytes: int
    training_bytes: int
    """Gradients and optimiser state."""


class StepForecast(BaseModel):
    """What a run would need."""

    parts: list[Part]
    context_tokens: int
    """Maximum number of tokens of a context: its budget, and BOS where the LM reads one."""
    example_tokens: int
    """Maximum number of tokens of a query with its target."""
    memory_slots: int
    strategy: str
    devices: int
    """On all nodes."""
    micro_batch: int
    """Contexts that a device reads at a time."""
    activation_bytes: int
    """Of one micro-batch on one device, as the run would keep them."""
    activation_bytes_plain: int
    """The same without activation checkpointing."""
    activation_bytes_checkpointed: int
    """The same with it (one block at a time needs more while it works: `device.working`)."""
    block_bytes: int
    """What one block keeps without it."""
    casts_blocks: bool
    """Whether autocast's half-precision copies of the blocks' weights are among the activations."""
    device: DeviceMemory
    total_bytes: int
    """Peak on one device (`device.total`)."""
    communication: Communication
    host: Host
    checkpoint_bytes: int
    """Trained weights and AdamW's moments."""
    step_flops: float
    """Of one optimiser step on all devices together."""
    train_flops: float
    """All steps, all devices together."""
    adapters: str
    """Which layers of the LM have adapters and which matrices have none; empty without any."""
    notes: list[str]
    """What does not fit or is wasteful, each with the nearest fix."""


ONE_TASK = ("task",)
"""The tasks of data that was not read."""


def estimate(
    experiment: Experiment, device_memory_gib: float | None = None, tasks: tuple[str, ...] = ONE_TASK
) -> StepForecast:
    """Parameters, memory, communication and FLOPs of an experiment; nothing big is built.

    Args:
        experiment: The configuration.
        device_memory_gib: What a device offers; None: the memory of the GPU that is here, if there is one.
        tasks: Those of the data, which may have a trained prompt each.

    Raises:
        ConfigError: an architecture cannot be read.
    """
    module, layout = skeleton_of(experiment, tasks), layout_of(experiment.trainer)
    work = work_of(experiment, module, layout)
    libraries = resident_bytes()  # shapes take no memory; all that they need is imported now, as it is in training
    found = estimate_module(module, work, layout, device_memory_gib)
    if layout.on_gpu:
        most = found.host.loading + found.host.optimizer // layout.devices_per_node
    else:  # a step, or the best weights read back beside the trained state
        device = found.device
        trained_state = device.weights + device.gradients + device.optimizer
        most = max(found.total_bytes, found.host.loading, trained_state + device.gradients)
    process = libraries + most
    host = found.host.model_copy(update={"libraries": libraries, "process": process})
    micro_batch = micro_batch_of(experiment, work.context + work.queries * work.example)
    step_flops = found.step_flops * layout.accumulate * micro_batch / work.contexts
    whole = {"host": host, "step_flops": step_flops, "train_flops": step_flops * experiment.trainer.max_steps}
    return found.model_copy(update=whole)


def skeleton_of(experiment: Experiment, tasks: tuple[str, ...] = ONE_TASK) -> CompressionModule:
    """The module's shapes on the meta device.

    Raises:
        ConfigError: an architecture cannot be read.
    """
    lm = experiment.lm
    if lm.attn_implementation == "flex_attention":  # keeps what sdpa keeps; its compiled form cannot be traced
        lm = lm.model_copy(update={"attn_implementation": "sdpa"})
    module = experiment.method.module(
        lm,
        experiment.optim,
        max_steps=experiment.trainer.max_steps,
        seed=experiment.seed,
        task_names=tasks,
        skeleton=True,
    )
    module.configure_model()
    return module


def estimate_module(
    module: CompressionModule,
    work: Work,
    layout: Layout,
    device_memory_gib: float | None = None,
    like: StepForecast | None = None,
) -> StepForecast:
    """The estimate of a module that is there, its weights on any device; FLOPs are those of one micro-batch.

    `like` is an estimate that differs in the number of devices and perhaps in strategy alone: its activations are taken
    over where they are the same.
    """
    groups = group_weights(module, layout)
    passes = module.passes(work.context, work.example, work.queries)
    casts_blocks = layout.autocast is not None and layout.gathered is None
    if like is None or like.micro_batch != work.contexts or like.casts_blocks != casts_blocks:
        found_kept = (kept_bytes(p.model, *rows_of(module, p, work), layout) for p in passes if p.gradient)
        kept = sum(found_kept, Kept())
    else:
        kept = Kept(like.activation_bytes_plain, like.activation_bytes_checkpointed, like.block_bytes)
    block = kept.largest_block
    step = Step(
        activations=kept.checkpointed if layout.activation_checkpointing else kept.total,
        # measured (benchmarks/memory.py): gradients inside a block take up to half of what it keeps, and a quarter
        # besides what is recomputed, as that is freed on the way
        working=block + block // 4 if layout.activation_checkpointing else block // 2,
        logits=_logit_bytes(module, passes, work, layout),
        teacher_cache=_teacher_cache(module, passes, work, layout),
    )
    device = device_memory(groups, step, layout)
    # each pass gathers the blocks, and its backward pass does so again
    read_blocks = [(each.gradient, group_weights(each.model, layout).gathered) for each in passes]
    gathers = sum(block.every * (1 + again) for again, blocks in read_blocks for block in blocks)
    flops = sum(_pass_flops(module, each, work) for each in passes)
    found = StepForecast(
        parts=_parts(module, layout.weight_type),
        context_tokens=work.context + module.lm.num_bos,
        example_tokens=work.example,
        memory_slots=module.num_memory_slots(work.context),
        strategy=layout.strategy,
        devices=layout.devices,
        micro_batch=work.contexts,
        activation_bytes=step.activations,
        activation_bytes_plain=kept.total,
        activation_bytes_checkpointed=kept.checkpointed,
        block_bytes=block,
        casts_blocks=casts_blocks,
        device=device,
        total_bytes=device.total,
        communication=communication(groups, gathers, layout),
        host=host_memory(groups, layout),
        checkpoint_bytes=3 * groups.whole.trained,
        step_flops=flops,
        train_flops=flops,
        adapters=adapted(module.lm.hf),
        notes=[],
    )
    limit = None if device_memory_gib is None else device_memory_gib * GIB
    if limit is None and layout.on_gpu and torch.cuda.is_available():
        limit = float(torch.cuda.get_device_properties(0).total_memory)
    return found.model_copy(update={"notes": _notes(found, groups, layout, work, limit)})


def _pass_flops(module: CompressionModule, each: Pass, work: Work) -> float:
    """Forward and backward, with the logits where labels are."""
    rows, decoder_rows = rows_of(module, each, work)
    cost = model_cost(each.model)
    if decoder_rows is not None:
        decoder = cross_decoder_flops(cost, decoder_rows.length, rows.length) - cost.head
        forward = rows.count * encoder_flops(cost, rows.length) + decoder_rows.count * decoder
    else:
        forward = rows.count * read_flops(cost, rows.length)
    forward += (cost.head or module.lm.cost.head) * label_positions(module, each, work)
    return forward * (1 + each.gradient + each.trained)


def _parts(module: CompressionModule, weight_type: torch.dtype | None) -> list[Part]:
    parts: dict[str, Part] = {}
    for name, parameter in module.named_parameters():  # shared ones come once
        first, count = name.split(".")[0], parameter.numel()
        part = parts.setdefault(first, Part(name=first, parameters=0, trained=0, weight_bytes=0, training_bytes=0))
        size = count * (weight_type or parameter.dtype).itemsize
        part.parameters += count
        part.weight_bytes += size
        part.trained += count * parameter.requires_grad
        part.training_bytes += 3 * size * parameter.requires_grad
    return [*parts.values()]


def _logit_bytes(module: CompressionModule, passes: list[Pass], work: Work, layout: Layout) -> int:
    """Maximum number of bytes of logits at one time: the start of the backward pass.

    In float32: those of each student, three of the largest's size while the gradient of the logarithm of the partition
    sum is made, and with a teacher its logits and both log-softmaxes; in half precision the logits as the head made
    them as well.
    """
    compared = module.compared != "nothing"
    is_half = (layout.autocast or layout.weight_type or module.lm.hf.dtype).itemsize == 2
    students = [label_positions(module, each, work) * module.lm.vocab_size for each in passes if each.gradient]
    largest = max(students, default=0)
    kept = sum(students) + compared * largest
    return round(4 * (sum(students) + (3 + 3 * compared) * largest) + 2 * is_half * kept)


def _teacher_cache(module: CompressionModule, passes: list[Pass], work: Work, layout: Layout) -> int:
    """Keys and values of the full prompt in a decoder-only teacher, at the moment that its answer is computed."""
    lm = module.lm
    if lm.family != "decoder" or not any(each.caches_context for each in passes):
        return 0
    itemsize = (layout.autocast or layout.weight_type or lm.hf.dtype).itemsize
    return lm.cost.kv_bytes_per_token * itemsize // lm.hf.dtype.itemsize * (work.context + lm.num_bos) * work.contexts


def _notes(found: StepForecast, groups: Groups, layout: Layout, work: Work, limit: float | None) -> list[str]:
    """What to change."""
    notes = []
    if layout.weight_type is not None and groups.whole.trained:
        notes.append(
            "precision=bf16-true trains bfloat16 weights without float32 copies: small updates are rounded away; "
            "bf16-mixed with lm.dtype=float32 keeps them"
        )
    if limit is not None and found.total_bytes > limit:
        notes.append(f"does not fit {limit / GIB:.0f} GiB: {_way_out(found, layout, work)}")
    return notes


def _way_out(found: StepForecast, layout: Layout, work: Work) -> str:
    """The nearest settings that lower the peak, the cheapest first."""
    memory, is_sharded = found.device, layout.strategy == "fsdp"
    state = memory.weights + memory.gradients + memory.optimizer
    has_moments = memory.optimizer > found.total_bytes // 4
    kept_less = found.activation_bytes_checkpointed < memory.activations // 2
    ways = {
        "trainer.activation_checkpointing=true": not layout.activation_checkpointing and kept_less,
        f"trainer.accumulate={layout.accumulate * 2}": work.contexts > 1 and not work.by_tokens,
        "a smaller data.max_batch_tokens": work.contexts > 1 and work.by_tokens,
        "trainer.strategy=fsdp on more devices": not is_sharded and state > found.total_bytes // 3,
        "more devices": is_sharded,
        "method.train=lora where the method has it": has_moments,
        "trainer.offload_optimizer=true": has_moments and is_sharded,
    }
    useful = [way for way, helps in ways.items() if helps]
    return "try " + ", ".join(useful or ["a smaller LM or shorter budgets in data.*"])
