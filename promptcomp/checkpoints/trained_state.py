"""What training has changed, as checkpoints and exports hold it: taking it out, checking it, putting it back.

A resumed run is the same trajectory. Data order is a function of (seed, step), and losses are means over whole steps:
the number of ranks and micro-batches may change. Random numbers of dropout are drawn rank by rank and micro-batch by
micro-batch: there it may not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from promptcomp.checkpoints.checkpoint_files import FORMAT, read_checkpoint
from promptcomp.checkpoints.named_state import copy_into, full_tensor, plain_name
from promptcomp.checkpoints.places import TENSORS, trained_at
from promptcomp.config import Config, ConfigError
from promptcomp.documents import read_json
from promptcomp.errors import first_line
from promptcomp.files import replacing, write_atomic
from promptcomp.language_model import LanguageModel, LanguageModelConfig
from promptcomp.memory import tensors_hash

DESCRIPTION = "promptcomp.json"


class Origin(Config):
    """Which method on which LM trained tensors belong to."""

    format: int = 1
    method: str
    family: str
    lm: str
    num_slots: int | None = None
    """Where the shapes of the tensors do not tell it."""
    tasks: tuple[str, ...] | None = None
    """Tasks that have a trained prompt each, in the order of the prompts; None: none has."""
    frozen: str | None = None
    """Types and hash of the weights that training has left as they were (`frozen_hash`); None: not known, or none."""


def check_format(info: Mapping[str, Any], source: str) -> None:
    """Make sure that this version can read it.

    Raises:
        ConfigError: it has no format number, or a newer one.
    """
    found = info.get("format")
    if not isinstance(found, int) or found < 1:
        raise ConfigError(f"{source}: not written by this version of promptcomp (format {found!r})")
    if found > FORMAT:
        raise ConfigError(
            f"{source}: written by a newer promptcomp (format {found}; this one reads up to {FORMAT}); "
            "update promptcomp"
        )


def frozen_hash(parameters: Iterable[tuple[str, nn.Parameter]]) -> str | None:
    """Types of the weights that training leaves as they are, which no checkpoint holds, and their hash; a teacher's are
    not among them. None: there are none."""
    frozen = [(name, each) for name, each in parameters if not each.requires_grad and not name.startswith("teacher.")]
    types = sorted({str(each.dtype).removeprefix("torch.") for _, each in frozen})
    return f"{'+'.join(types)} {tensors_hash(frozen)}" if frozen else None


def check_trained(
    tensors: Mapping[str, Tensor],
    info: Mapping[str, Any],
    expected: Mapping[str, torch.Size],
    origin: Origin,
    source: str,
) -> None:
    """Check that `tensors`, described by `info`, are exactly what the module `origin` trains.

    Raises:
        ConfigError: names the first difference: format, method, family, missing or unknown tensors, shapes, other
            weights beside them. The same weights in another type cannot be told from others, and are not refused.
    """
    check_format(info, source)
    for key, ours in (("method", origin.method), ("family", origin.family)):
        if info.get(key) != ours:
            raise ConfigError(f"{source}: made with {key} {info.get(key)!r}, but this run uses {key} {ours!r}")
    slots = info.get("num_slots")
    if None not in (slots, origin.num_slots) and slots != origin.num_slots:
        raise ConfigError(f"{source}: made with method.num_slots = {slots}, but this run uses {origin.num_slots}")
    tasks, ours_too = info.get("tasks"), origin.tasks
    if tasks is not None and ours_too is not None and (*tasks,) != ours_too:
        theirs, own = (f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" for names in (tasks, ours_too))
        raise ConfigError(
            f"{source}: has a prompt for each of its tasks ({theirs}), and the data here has others or another order "
            f"({own}); use the data that it was trained with"
        )
    differing = {"missing": expected.keys() - tensors.keys(), "too many": tensors.keys() - expected.keys()}
    if said := [f"{len(n)} tensors {what} ({', '.join(sorted(n)[:3])})" for what, n in differing.items() if n]:
        raise ConfigError(f"{source}: does not fit this configuration: {'; '.join(said)}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            was, now = tuple(tensors[name].shape), tuple(shape)
            raise ConfigError(f"{source}: {name} has shape {was}, but this configuration needs {now} (slots, sizes?)")
    before, here = info.get("frozen"), origin.frozen
    if None not in (before, here) and before != here and str(before).split()[0] == str(here).split()[0]:
        raise ConfigError(
            f"{source}: was trained beside other weights than this run's (of the LM, an encoder or a distiller); use "
            f"those that it was trained with (LM {info.get('lm')})"
        )


def check_resumable(info: Mapping[str, Any], ours: Mapping[str, int | str], reason: str | None) -> None:
    """
    Args:
        info: how the examples of a step are divided, as the checkpoint says it.
        ours: the same of the trainer that would go on.
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


def read_trained(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trained tensors and their description from an export folder, a checkpoint file or a run directory.

    Raises:
        ConfigError: there is nothing of the kind, or it cannot be read.
    """
    place = trained_at(path)
    if (place / TENSORS).is_file():
        with _reading_export(place):
            description = read_json(place / DESCRIPTION, "description of an export")
            return load_file(place / TENSORS), Origin.model_validate(description["origin"]).model_dump()
    checkpoint = read_checkpoint(place, weights_only=True)
    info = checkpoint.get("promptcomp", {})
    check_format(info, str(path))
    return checkpoint["state_dict"], info


def read_lora(path: Path) -> dict[str, Any]:
    """The configuration of the adapters in an export folder or a run directory.

    Raises:
        ConfigError: there is none.
    """
    for folder in (path, path / "export"):
        if (folder / DESCRIPTION).is_file():
            with _reading_export(folder):
                return dict(read_json(folder / DESCRIPTION, "description of an export")["method"]["lora"])
    raise ConfigError(f"{path}: the sizes of its adapters are not known; give a finished run or an export")


def write_export(folder: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and description; a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with replacing(folder / TENSORS) as partial:
        save_file(whole, partial)
    write_atomic(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


@contextmanager
def _reading_export(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(f"{folder}: the export cannot be read ({first_line(error)})") from None


class TrainedState(L.LightningModule):
    """The part of a module that knows which of its tensors training changes. Sharded parameters stay sharded."""

    method: Config
    lm: LanguageModel
    lm_config: LanguageModelConfig | None
    task_names: tuple[str, ...]
    _is_in_trainer: bool
    _frozen: str | None = None
    _trained_names: frozenset[str] | None = None
    """Once it is built: a user's model in memory may ask for other gradients later."""

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name; a checkpoint holds these and no others.

        Raises:
            ConfigError: some are gone: an LM in memory was given adapters by somebody else.
        """
        named, names = {plain_name(name): p for name, p in self.named_parameters()}, self._trained_names
        if names is None:
            return {name: p for name, p in named.items() if p.requires_grad}
        if gone := sorted(names - named.keys()):
            raise ConfigError(
                f"the LM was changed after this compressor was made ({gone[0]} is gone; adapters of another one?); "
                "load the LM anew for each compressor that trains it"
            )
        return {name: p for name, p in named.items() if name in names}

    def learning(self) -> Self:
        """The module in training mode, with gradients for what is trained and for nothing else."""
        trained = {id(each) for each in self.trained_parameters().values()}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        return self.train()

    def trained_tensors(self) -> dict[str, Tensor]:
        """The trained tensors by name, whole (a collective where they are sharded; every rank gets them)."""
        return {name: full_tensor(parameter) for name, parameter in self.trained_parameters().items()}

    def origin(self) -> Origin:
        """What a checkpoint or an export of this module says of itself."""
        name = type(self.method).model_fields["name"].default
        path = self.lm_config.path if self.lm_config is not None else "in memory"
        return Origin(method=name, family=self.lm.family, lm=path, frozen=self._frozen)

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
        """How the examples of a step are divided, as a checkpoint says it."""
        ranks, micro_batches = 1, 1
        if self._is_in_trainer:
            ranks, micro_batches = self.trainer.world_size, self.trainer.accumulate_grad_batches
        return {"optimizer_layout": "plain", "ranks": ranks, "micro_batches": micro_batches}

    def depends_on_ranks(self) -> str | None:
        """Why training depends on how a step is divided among ranks and micro-batches; None: it does not."""
        name = rank_dependent_part(self)
        return None if name is None else f"{name} uses dropout"

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

    def export(self, folder: Path) -> None:
        """Write the trained parts (safetensors) and what they are (JSON) to `folder`."""
        description = {
            "origin": self.origin().model_dump(),
            "method": self.method.model_dump(mode="json"),
            "lm": None if self.lm_config is None else self.lm_config.model_dump(mode="json"),
            "task_names": list(self.task_names),
        }
        write_export(folder, self.trained_tensors(), description)
