"""What a resumed run must have in common with the run that wrote its checkpoint, so that it is the same trajectory.

Data order is a function of (seed, step), and losses are means over whole steps, so the number of ranks and
micro-batches may change. Random numbers of dropout are drawn rank by rank and micro-batch by micro-batch: there it may
not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import nn

from promptcomp.config import ConfigError


def division_of(trainer: L.Trainer | None) -> dict[str, int | str]:
    """How the examples of a step are divided, as a checkpoint says it."""
    return {
        "optimizer_layout": "plain",
        "ranks": 1 if trainer is None else trainer.world_size,
        "micro_batches": 1 if trainer is None else trainer.accumulate_grad_batches,
    }


def check_resumable(info: Mapping[str, Any], ours: Mapping[str, int | str], reason: str | None) -> None:
    """
    Args:
        info: what the checkpoint says.
        ours: `division_of` the trainer that would go on.
        reason: why random numbers depend on the division; None: they do not.

    Raises:
        ConfigError: the run could not be continued exactly.
    """
    theirs = {**ours, **{key: info[key] for key in ours if key in info}}
    if theirs["optimizer_layout"] != "plain":
        raise ConfigError(
            "the checkpoint was written by a sharded run of an older version and cannot be resumed (the optimiser's "
            "state would be mixed up); start a new run with method.init_from where the method has it"
        )
    if theirs != ours and reason is not None:
        was = f"{theirs['ranks']} process(es) and trainer.accumulate={theirs['micro_batches']}"
        raise ConfigError(
            f"the run was trained with {was}, now it is {ours['ranks']} and {ours['micro_batches']}: it cannot be "
            f"continued exactly, because {reason}, whose random numbers depend on this; resume with {was}"
        )


def rank_dependent_part(module: nn.Module) -> str | None:
    """The name of a part that draws random numbers in training mode, or None."""
    for name, each in module.named_modules():
        if not each.training:
            continue
        if isinstance(each, nn.Dropout) and each.p > 0:
            return name
        for key, value in vars(each).items():  # attention code takes the number from an attribute
            if "dropout" in key and isinstance(value, float) and value > 0:
                return name
    return None
