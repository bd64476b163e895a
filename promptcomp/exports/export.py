"""Trained parts as folders that other programs read: Hugging Face models, peft adapters and prompts, plain tensors.

Each has a README.md on how to load it without promptcomp; what only a method can say comes from its module
(`CompressionModule.as_hf`, `adapter_page`).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor

from promptcomp.checkpoints.trained_state import DESCRIPTION, Origin, read_trained, write_export
from promptcomp.config import ConfigError, Measured, dump
from promptcomp.documents import read_json
from promptcomp.experiment import Experiment
from promptcomp.exports.card import CARD, of_run, with_card
from promptcomp.files import new_folder, write_atomic
from promptcomp.language_model import LanguageModel
from promptcomp.language_model.lm_config import locate
from promptcomp.language_model.pretrained import origin_note
from promptcomp.lightning_modules.adapters import adapted, add_lora, lora_settings
from promptcomp.lightning_modules.exported import EXTRA, Page, literal
from promptcomp.lightning_modules.method_config import ExportFormat
from promptcomp.prompts.artifact import weights_hash
from promptcomp.run.configured import trained_experiment
from promptcomp.run.opening import open_trained_module, quiet
from promptcomp.run.run_directory import RunDirectory, weights_of

_LM = "lm.hf."


class Exported(Measured):
    """What has been written."""

    folder: Path
    format: ExportFormat | Literal["transformers", "vllm"]
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What has been found while it was tried."""


def export(path: Path, folder: Path, wanted: ExportFormat | None) -> Exported:
    """Write a run's trained parts to a new folder, with a README on how to load them.

    Args:
        path: The run directory.
        folder: Must be empty or new.
        wanted: The format; None: the best that the method allows.

    Raises:
        ConfigError: no run, no trained weights, `folder` holds something, or the method does not allow the format.
    """
    run, experiment = RunDirectory(path), trained_experiment(path)
    chosen = experiment.method.export_format(wanted)
    write = {"hf": _write_hf, "peft": _write_peft, "tensors": _write_tensors}[chosen]
    with new_folder(folder) as new:
        with quiet():
            text = write(experiment, run, new)
        files = [file.relative_to(new).as_posix() for file in new.rglob("*") if file.is_file()]
        page = with_card(text, of_run(run, experiment), experiment.lm.path, experiment.method.name, chosen, files)
        write_atomic(new / CARD, page)
    return Exported(folder=folder, format=chosen, files=tuple(sorted([*files, CARD])))


def _write_tensors(experiment: Experiment, run: RunDirectory, folder: Path) -> str:
    tensors, info = read_trained(weights_of(run))
    said = Origin.model_fields.keys() & info.keys() - {"format"}
    description: dict[str, Any] = {
        "origin": Origin(**{key: info[key] for key in said}).model_dump(),
        "method": experiment.method.model_dump(mode="json"),
        "lm": experiment.lm.model_dump(mode="json"),
        "task_names": list(_task_names(run)),
    }
    if experiment.lm.from_scratch is None:
        description["lm_hash"] = weights_hash(LanguageModel.from_config(experiment.lm).hf)
    write_export(folder, tensors, description)
    write_atomic(folder / "config.yaml", dump(experiment))
    return _page(experiment, None, Page("tensors", {}))


def _write_hf(experiment: Experiment, run: RunDirectory, folder: Path) -> str:
    _, module = open_trained_module(run.path)
    tensors = module.trained_tensors()
    exported = module.as_hf()
    exported.model.save_pretrained(folder)
    if module.lm.tokenizer is not None:
        module.lm.tokenizer.save_pretrained(folder)
    _save_extra(folder, {name: tensor for name, tensor in tensors.items() if not name.startswith(exported.inside)})
    return _page(experiment, module.lm, exported.page)


def _save_extra(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    if whole:
        save_file(whole, folder / EXTRA)


def _write_peft(experiment: Experiment, run: RunDirectory, folder: Path) -> str:
    if experiment.lm.from_scratch is not None:
        raise ConfigError("the LM started from random weights, so there is no base for peft; use --to tensors")
    method = experiment.method
    if method.lm_training != "lora":
        return _write_prompts(experiment, run, folder)
    lm = LanguageModel.from_config(experiment.lm)
    settings = lora_settings(lm, method.lora)
    _name_base(settings, experiment, lm)
    add_lora(lm, method.lora)
    _check_that_peft_agrees(settings, experiment, lm)
    tensors, _ = read_trained(weights_of(run))
    adapters = {
        f"base_model.model.{name.removeprefix(_LM).replace('.default.', '.')}": tensor.contiguous().clone()
        for name, tensor in tensors.items()
        if ".lora_" in name
    }
    settings.save_pretrained(str(folder))
    save_file(adapters, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    _save_extra(folder, {name: tensor for name, tensor in tensors.items() if ".lora_" not in name})
    module = method.module(lm, experiment.optim, max_steps=0, seed=experiment.seed)
    return _page(experiment, lm, module.adapter_page(_origin(experiment)))


def _check_that_peft_agrees(settings: Any, experiment: Experiment, lm: LanguageModel) -> None:
    """Make sure that peft, told the same, puts adapters where they were trained (it moves those of some mixtures)."""
    import peft

    other = LanguageModel.skeleton(experiment.lm).hf
    with warnings.catch_warnings(action="ignore"), suppress(ValueError):
        peft.inject_adapter_in_model(copy.deepcopy(settings), other, low_cpu_mem_usage=True)
    ours, theirs = ({n for n, _ in hf.named_parameters() if ".lora_" in n} for hf in (lm.hf, other))
    if ours != theirs:
        raise ConfigError(
            f"peft puts adapters of {lm.hf.config.model_type!r} models beside other layers than those that were "
            "trained; use --to tensors"
        )


def _write_prompts(experiment: Experiment, run: RunDirectory, folder: Path) -> str:
    import peft

    lm = LanguageModel.from_config(experiment.lm)
    if lm.bos_id is not None:
        raise ConfigError(
            "this LM reads BOS before the learned vectors, peft puts vectors before everything; use --to tensors"
        )
    if lm.family == "encoder_decoder" and not lm.query_in_encoder:
        raise ConfigError(
            "with lm.layout=query_in_decoder the encoder reads the learned vectors alone, which peft cannot do; use "
            "--to tensors"
        )
    prompts = read_trained(weights_of(run))[0]["prompts"]
    places, names = [folder], _task_names(run)
    if len(prompts) > 1:
        known = names if len(names) == len(prompts) else ("",) * len(prompts)
        plain = ["".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in name) for name in known]
        places = [folder / f"task_{number:03}_{name}".rstrip("_") for number, name in enumerate(plain)]
    for place, prompt in zip(places, prompts, strict=True):
        settings = peft.PromptTuningConfig(
            num_virtual_tokens=len(prompt),
            token_dim=lm.hidden_size,
            num_layers=lm.num_layers,
            num_attention_heads=lm.hf.config.num_attention_heads,
            num_transformer_submodules=1,
        )
        _name_base(settings, experiment, lm)
        place.mkdir(parents=True, exist_ok=True)
        settings.save_pretrained(str(place))
        values = {"prompt_embeddings": prompt.contiguous().clone()}
        save_file(values, place / "adapter_model.safetensors", metadata={"format": "pt"})
    tasks = [place.name for place in places] if len(prompts) > 1 else []
    return _page(experiment, lm, Page("soft_prompts", {"tasks": tasks, "base": _origin(experiment)}))


def _name_base(settings: Any, experiment: Experiment, lm: LanguageModel) -> None:
    import peft

    is_t5 = lm.family == "encoder_decoder"
    settings.task_type = peft.TaskType.SEQ_2_SEQ_LM if is_t5 else peft.TaskType.CAUSAL_LM
    settings.base_model_name_or_path = locate(experiment.lm.path)
    settings.revision = experiment.lm.revision
    settings.inference_mode = True


def _task_names(run: RunDirectory) -> tuple[str, ...]:
    """The tasks in the order of the run's prompts, as its export says; empty where it has none."""
    file = run.export / DESCRIPTION
    if not file.is_file():
        return ()
    description = read_json(file, "description of an export")
    found = description.get("task_names") if isinstance(description, dict) else None
    return tuple(str(name) for name in found) if isinstance(found, list) else ()


def _page(experiment: Experiment, lm: LanguageModel | None, page: Page) -> str:
    beside = "" if lm is None else adapted(lm.hf)
    note = origin_note(locate(experiment.lm.path))
    return page.text(lm, method=experiment.method.name, path=experiment.lm.path, adapted=beside, note=note)


def _origin(experiment: Experiment) -> str:
    """Arguments of `from_pretrained` for the LM that training began with."""
    revision = f", revision={literal(experiment.lm.revision)}" if experiment.lm.revision else ""
    return f"{literal(locate(experiment.lm.path))}{revision}"
