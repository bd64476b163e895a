"""`promptcomp fit --dry-run`: prints what a run would be, without reading weights or training."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from promptcomp.commands.common import show
from promptcomp.config import ConfigError, dump
from promptcomp.datamodules.sources.records import NotHere
from promptcomp.evaluation.formatting import bytes_text, flops_text, many
from promptcomp.experiment import Experiment
from promptcomp.forecast.estimate import ONE_TASK, StepForecast, estimate
from promptcomp.forecast.placement import layout_of
from promptcomp.language_model import open_tokenizer
from promptcomp.language_model.lm_config import locate
from promptcomp.language_model.pretrained import origin_note
from promptcomp.plain import say
from promptcomp.reference import commented
from promptcomp.run.opening import make_parts, quiet
from promptcomp.terminal import plain_table

_MEMORY = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "AdamW's moments",
    "buffers": "gathered blocks",
    "activations": "activations",
    "working": "one block's backward pass",
    "logits": "logits and loss",
    "teacher_cache": "teacher's keys and values",
    "update": "temporaries of the update",
}


def print_estimate(
    experiment: Experiment,
    console: Console,
    as_json: bool,
    device_memory_gib: float | None = None,
    explain: bool = False,
) -> None:
    """The resolved configuration and the estimate.

    Args:
        experiment: The configuration.
        console: Where people read it.
        as_json: Print one JSON object instead.
        device_memory_gib: What a device offers; None: the GPU that is here, if there is one.
        explain: Write what every key means into the configuration.

    Raises:
        ConfigError: an architecture cannot be read, or the data is bad.
    """
    tasks, unread = _read_data(experiment)
    found = estimate(experiment, device_memory_gib, tasks)
    note = origin_note(locate(experiment.lm.path))
    found.notes.extend([*unread, *([] if note is None else [note])])
    if as_json:
        print(json.dumps({"config": experiment.model_dump(mode="json"), "estimate": found.model_dump()}))
        return
    show(commented(experiment) if explain else dump(experiment))
    right = ("parameters", "trained", "weights", "gradients + AdamW")
    parts = [
        (p.name, f"{p.parameters:,}", f"{p.trained:,}", bytes_text(p.weight_bytes), bytes_text(p.training_bytes))
        for p in found.parts
    ]
    console.print(plain_table(("part", *right), parts, right, title="Parameters", title_style="bold"))
    where = "one device" if found.devices == 1 else f"each of {found.devices} devices ({found.strategy})"
    console.print(f"\nMemory of {where}, {many(found.micro_batch, 'context')} at a time", style="bold", highlight=False)
    sizes = {name: int(getattr(found.device, field)) for field, name in _MEMORY.items()}
    rows = [(name, bytes_text(size)) for name, size in sizes.items() if size]
    console.print(plain_table(("part", "bytes"), rows, right=("bytes",), show_header=False))
    for line in _lines(found, experiment):
        say(console, line)
    for note in found.notes:
        say(console, note, "yellow")


def _read_data(experiment: Experiment) -> tuple[tuple[str, ...], list[str]]:
    """Check the data as `fit` does; returns its tasks. What is not on this machine is only said: a plan may come before
    its data.

    Raises:
        ConfigError: what `fit` would say of the data.
    """
    with quiet():
        try:
            open_tokenizer(experiment.lm, on_disk=True)
        except ConfigError as error:
            if any(Path(locate(experiment.lm.path)).glob("tokenizer*")):  # it is here, and cannot be used
                raise
            return ONE_TASK, [f"the data was not read, because the LM's tokenizer is not here ({error})"]
        try:
            return make_parts(experiment)[0].task_names, []
        except NotHere as error:
            return ONE_TASK, [f"the data was not read, and fit would stop: {error}"]


def _lines(found: StepForecast, experiment: Experiment) -> list[str]:
    """The figures outside of tables."""
    lines = [
        f"\nmemory of a step: {bytes_text(found.total_bytes)} at most at one time on one device",
        f"activations: {bytes_text(found.activation_bytes_plain)}, with activation checkpointing "
        f"{bytes_text(found.activation_bytes_checkpointed)}",
        f"host: {bytes_text(found.host.loading)} a node while the weights are loaded"
        + (f", {bytes_text(found.host.optimizer)} of optimiser state" if found.host.optimizer else ""),
        f"process: {bytes_text(found.host.process)} at most"
        + (" on the host, without CUDA's libraries" if layout_of(experiment.trainer).on_gpu else "")
        + f" (libraries {bytes_text(found.host.libraries)} and loading included)",
        f"checkpoint: {bytes_text(found.checkpoint_bytes)} (trained weights and AdamW's moments)",
    ]
    if found.communication.total:
        parts = found.communication
        lines.append(
            f"communication: each device sends {bytes_text(parts.total)} a step "
            f"(weights {bytes_text(parts.gather_weights)}, gradients {bytes_text(parts.reduce_gradients)})"
        )
    lines += [found.adapters] if found.adapters else []
    lines += [
        f"context at most {many(found.context_tokens, 'token')} -> {many(found.memory_slots, 'slot')}; "
        f"query with target at most {many(found.example_tokens, 'token')}",
        f"work: {flops_text(found.step_flops)} a step, {flops_text(found.train_flops)} in "
        f"{many(experiment.trainer.max_steps, 'step')} (upper bounds)",
    ]
    return lines
