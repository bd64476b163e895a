"""The parts of an experiment: its data and its module, new or with trained weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from promptcomp.config import ConfigError, apply_overrides, build, read_yaml
from promptcomp.datamodules import build_datamodule
from promptcomp.datamodules.base import ContextDataModule
from promptcomp.datamodules.instruction_options import InstructionConfig
from promptcomp.datamodules.rationale_options import RationaleConfig
from promptcomp.errors import command
from promptcomp.experiment import Experiment
from promptcomp.language_model import LanguageModel, open_tokenizer, open_window, reads_queries_in_encoder
from promptcomp.lightning_modules import METHODS
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.lightning_modules.checkpoint_files import existing
from promptcomp.lightning_modules.execution import Execution
from promptcomp.lightning_modules.gist import GistConfig
from promptcomp.run.run_directory import RunDirectory, open_existing

Parts = tuple[ContextDataModule, CompressionModule]
"""The data and the module of an experiment."""


def make_parts(experiment: Experiment, *, trains: bool = True) -> Parts:
    """The data, read and checked, and the module of an experiment; the module builds its models in `configure_model`.

    Args:
        experiment: The configuration.
        trains: Whether there must be something to train on, where the method trains.

    Raises:
        ConfigError: files are missing or bad, or data and method do not belong together.
    """
    datamodule = make_data(experiment)
    datamodule.check()
    module = make_module(experiment, datamodule.task_names)
    if trains:
        check_train_split(experiment, datamodule, module)
    return datamodule, module


def check_train_split(experiment: Experiment, datamodule: ContextDataModule, module: CompressionModule) -> None:
    """
    Raises:
        ConfigError: a method that trains has nothing to train on.
    """
    if module.trainable and experiment.trainer.max_steps and not datamodule.num_train_items():
        raise ConfigError(f"data {experiment.data.name!r} has no train split, and {experiment.method.name} needs one")


def make_data(experiment: Experiment) -> ContextDataModule:
    """The data of an experiment, not read yet.

    Raises:
        ConfigError: there is none, its budgets do not fit, or data and method do not belong together.
    """
    check_tasks(experiment)
    window = open_window(experiment.lm)
    _check_reconstruction(experiment, window)
    return build_datamodule(
        experiment.data,
        open_tokenizer(experiment.lm),
        seed=experiment.seed,
        batch_size=experiment.trainer.batch_size // experiment.trainer.accumulate,
        window=window,
        query_in_encoder=reads_queries_in_encoder(experiment.lm),
        writes_bos=experiment.lm.bos,
    )


def make_module(
    experiment: Experiment, task_names: tuple[str, ...], lm: LanguageModel | None = None
) -> CompressionModule:
    """The module of an experiment, not built yet; `lm`: one that is open already."""
    trainer = experiment.trainer
    module = METHODS[experiment.method.name].module(
        experiment.method,
        experiment.lm if lm is None else lm,
        experiment.optim,
        max_steps=experiment.trainer.max_steps,
        seed=experiment.seed,
        task_names=task_names,
    )
    module.execution = Execution(trainer.activation_checkpointing, trainer.offload_optimizer, trainer.compile)
    return module


def check_tasks(experiment: Experiment) -> None:
    """Two tasks need the method that learns them, and the reverse."""
    data, method = experiment.data, experiment.method.name
    two_tasks = isinstance(data, RationaleConfig) and data.has_two_tasks
    if method == "step_by_step" and not two_tasks:
        raise ConfigError(
            f"method step_by_step learns labels and rationales, but data {data.name!r} gives no rationales; use "
            "rationale data with data.targets=label_and_rationale (promptcomp data list)"
        )
    if two_tasks and method != "step_by_step":
        raise ConfigError(
            f"data.targets = 'label_and_rationale' is for method step_by_step, not {method}; set data.targets=label or "
            "another single target"
        )


def _check_reconstruction(experiment: Experiment, window: int | None) -> None:
    """A prompt that is said again stands in the LM's window twice."""
    data, method = experiment.data, experiment.method
    if window is None or not isinstance(method, GistConfig) or not isinstance(data, InstructionConfig):
        return
    longest, slots = data.limits("train")[0], method.num_slots
    most = (window - slots - 2) // 2  # 2: BOS and the request
    if method.reconstruction_weight and longest > most:
        raise ConfigError(
            f"method.reconstruction_weight: a context of {longest} tokens, said again behind {slots} gist token(s), "
            f"exceeds the LM's window of {window}; set data.max_context_tokens={most} or less, or the weight to 0"
        )


def open_trained(path: Path, overrides: Iterable[str] = ()) -> tuple[Experiment, ContextDataModule, CompressionModule]:
    """A finished run with its trained weights: the experiment, its data, and the module in eval mode.

    The models that only training needs (`MethodConfig.without_training`) are not opened.

    Raises:
        ConfigError: no run, no trained weights, or a mistake in the overrides.
    """
    run = open_existing(path)
    experiment = build(Experiment, apply_overrides(read_yaml(run.config), overrides), source=str(run.config))
    set_threads(experiment)
    datamodule, module = make_parts(_without_training(experiment), trains=False)
    return experiment, datamodule, _with_weights(module, run)


def open_trained_module(path: Path) -> tuple[Experiment, CompressionModule]:
    """The module of a run with its trained weights, in eval mode; neither the run's data nor a teacher is needed.

    Raises:
        ConfigError: no run, no trained weights, or a method that does not know its tasks without the data.
    """
    run = open_existing(path)
    experiment = build(Experiment, read_yaml(run.config), source=str(run.config))
    return experiment, _with_weights(make_module(_without_training(experiment), ()), run)


def open_trained_lm(path: Path) -> LanguageModel:
    """The LM of a run as the run has left it; what the method has beside it is opened only where the LM was trained.

    Raises:
        ConfigError: no run, or no trained weights.
    """
    run = open_existing(path)
    experiment = build(Experiment, read_yaml(run.config), source=str(run.config))
    module = make_module(_without_training(experiment), ())
    if module.lm_training == "none":
        return LanguageModel.from_config(experiment.lm)
    return _with_weights(module, run).lm


def _without_training(experiment: Experiment) -> Experiment:
    return experiment.model_copy(update={"method": experiment.method.without_training()})


def _with_weights(module: CompressionModule, run: RunDirectory) -> CompressionModule:
    module.configure_model()
    if module.trainable:
        module.load_trained(weights_of(run))
    return module.eval()


def weights_of(run: RunDirectory) -> Path:
    """The checkpoint to evaluate: the best on dev, or the last where nothing was selected.

    Raises:
        ConfigError: the run has neither.
    """
    for path in (run.best, run.last):
        if found := existing(path):
            return found
    again = command("fit", "--resume", run.path)
    raise ConfigError(f"{run.path} holds no trained weights yet; train it with `{again}`")


def set_threads(experiment: Experiment) -> None:
    """Use as many CPU threads as the experiment asks for."""
    if experiment.trainer.threads is not None:
        torch.set_num_threads(experiment.trainer.threads)
