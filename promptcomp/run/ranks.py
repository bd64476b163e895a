"""The processes of one run: who they are, and that they agree before they train."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import lightning as L
import torch

from promptcomp.config import ConfigError
from promptcomp.experiment import Experiment

_PLACES = ("name", "output_dir")


def fingerprint(experiment: Experiment) -> str:
    """Equal for equal configurations; where results are written does not count."""
    tree = experiment.model_dump(mode="json", exclude=set(_PLACES))
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


class SameExperiment(L.Callback):
    """Ends the run on every rank if the ranks have different configurations (other overrides, other files)."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare, before any model is opened."""
        if trainer.world_size > 1:
            check_same(self._experiment)


def check_same(experiment: Experiment) -> None:
    """Compare the ranks' configurations; a collective.

    Raises:
        ConfigError: on every rank: they differ; names the first keys.
    """
    tree = _flat(experiment.model_dump(mode="json", exclude=set(_PLACES)))
    every: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, tree)
    for rank, other in enumerate(every):
        differing = sorted(key for key in tree.keys() | other.keys() if every[0].get(key) != other.get(key))
        if differing:
            key = differing[0]
            more = f" and {len(differing) - 1} other keys" if len(differing) > 1 else ""
            raise ConfigError(
                f"the processes of this run have different configurations: {key} is {every[0].get(key)} on rank 0 and "
                f"{other.get(key)} on rank {rank}{more}; give all of them the same file and the same overrides"
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and their values as text."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = json.dumps(value)
    return found
