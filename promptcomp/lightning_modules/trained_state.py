"""What a module trains, as checkpoints and exports: taking it out, checking it, putting it back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor, nn

from promptcomp.language_model import LanguageModel, LanguageModelConfig
from promptcomp.lightning_modules.checkpoint_files import FORMAT
from promptcomp.lightning_modules.method_config import MethodConfig
from promptcomp.lightning_modules.resuming import check_resumable, division_of
from promptcomp.lightning_modules.shards import copy_into, full_tensor, plain_name
from promptcomp.lightning_modules.trained import (
    Origin,
    check_trained,
    read_trained,
    write_export,
)


class TrainedState(L.LightningModule):
    """The part of a module that knows which of its tensors training changes. Sharded parameters stay sharded."""

    method: MethodConfig
    lm: LanguageModel
    lm_config: LanguageModelConfig | None
    task_names: tuple[str, ...]
    _is_in_trainer: bool

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name; a checkpoint holds these and no others."""
        return {plain_name(name): p for name, p in self.named_parameters() if p.requires_grad}

    def trained_names(self) -> list[str]:
        """Their names."""
        return list(self.trained_parameters())

    def trained_tensors(self) -> dict[str, Tensor]:
        """The trained tensors by name, whole (a collective where they are sharded; every rank gets them)."""
        return {name: full_tensor(parameter) for name, parameter in self.trained_parameters().items()}

    def origin(self) -> Origin:
        """What a checkpoint or an export of this module says of itself."""
        name = type(self.method).model_fields["name"].default
        path = self.lm_config.path if self.lm_config is not None else "in memory"
        return Origin(method=name, family=self.lm.family, lm=path)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep trained tensors only and say what they are."""
        checkpoint["state_dict"] = {name: p.detach() for name, p in self.trained_parameters().items()}
        checkpoint["promptcomp"] = {**self.origin().model_dump(), "format": FORMAT, **self._division()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put trained tensors in; refuses those of another method, family or shape and what cannot go on exactly.

        Raises:
            ConfigError: names the difference.
        """
        info: Mapping[str, Any] = checkpoint.get("promptcomp", {})
        self.check_trained(checkpoint["state_dict"], info, "the checkpoint")
        if checkpoint.get("optimizer_states"):
            check_resumable(info, self._division(), self.depends_on_ranks())
        self._put(checkpoint["state_dict"])

    def _division(self) -> dict[str, int | str]:
        return division_of(self.trainer if self._is_in_trainer else None)

    def depends_on_ranks(self) -> str | None:
        """Why training depends on how a step is divided among ranks and micro-batches; None: it does not."""
        raise NotImplementedError

    def check_trained(self, tensors: Mapping[str, Tensor], info: Mapping[str, Any], source: str) -> None:
        """Make sure that tensors (of any device) are what this module trains.

        Raises:
            ConfigError: names the first difference.
        """
        expected = {name: p.shape for name, p in self.trained_parameters().items()}
        check_trained(tensors, info, expected, self.origin(), source)

    def load_trained(self, path: Path) -> None:
        """Load the trained parts from a run directory, an export or a checkpoint.

        Raises:
            ConfigError: nothing readable is there, or it belongs to another method, family or shape.
        """
        tensors, info = read_trained(path)
        self.check_trained(tensors, info, str(path))
        self._put(tensors)

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trained_parameters().items():
            copy_into(parameter, tensors[name])

    def export(self, folder: Path, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Write the trained parts (safetensors) and what they are (JSON) to `folder`.

        Args:
            folder: Made where it does not exist.
            tensors: The trained tensors where they are at hand, so that nothing has to be gathered.
        """
        lm = self.lm_config.model_dump(mode="json") if self.lm_config is not None else None
        description = {
            "origin": self.origin().model_dump(),
            "method": self.method.model_dump(mode="json"),
            "lm": lm,
            "task_names": list(self.task_names),
        }
        write_export(folder, self.trained_tensors() if tensors is None else tensors, description)
