"""The parts of an experiment: its data and its module, new or with trained weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from promptcomp.checkpoints.checkpoint_files import existing
from promptcomp.config import ConfigError, apply_overrides, build, read_yaml
from promptcomp.datamodules.base import ContextDataModule
from promptcomp.datamodules.instruction.instruction_config import InstructionConfig
from promptcomp.datamodules.sections import Reader
from promptcomp.errors import command
from promptcomp.experiment import Experiment
from promptcomp.language_model import LanguageModel, open_tokenizer, open_window, reads_queries_in_encoder
from promptcomp.lightning_modules import METHODS
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.lightning_modules.execution import Execution
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
    if module.method.trains and experiment.trainer.max_steps and not datamodule.num_train_items():
        raise ConfigError(f"data {experiment.data.name!r} has no train split, and {experiment.method.name} needs one")


def make_data(experiment: Experiment) -> ContextDataModule:
    """The data of an experiment, not read yet.

    Raises:
        ConfigError: there is none, its budgets do not fit, or data and method do not belong together.
    """
    check_tasks(experiment)
    window = open_window(experiment.lm)
    _check_context(experiment, window)
    reader = Reader(
        open_tokenizer(experiment.lm),
        experiment.seed,
        experiment.trainer.batch_size // experiment.trainer.accumulate,
        window,
        reads_queries_in_encoder(experiment.lm),
        experiment.lm.bos,
    )
    datamodule: ContextDataModule = experiment.data.build(reader)
    return datamodule


def make_module(
    experiment: Experiment, task_names: tuple[str, ...], lm: LanguageModel | None = None
) -> CompressionModule:
    """The module of an experiment, not built yet; `lm`: one that is open already."""
    trainer = experiment.trainer
    module = experiment.method.module(
        experiment.lm if lm is None else lm,
        experiment.optim,
        max_steps=experiment.trainer.max_steps,
        seed=experiment.seed,
        task_names=task_names,
    )
    module.execution = Execution(trainer.activation_checkpointing, trainer.offload_optimizer, trainer.compile)
    return module


def check_tasks(experiment: Experiment) -> None:
    """Two tasks need a method that learns them, and the reverse."""
    data, method = experiment.data, experiment.method
    if method.has_two_tasks and not data.has_two_tasks:
        raise ConfigError(
            f"method {method.name} learns labels and rationales, but data {data.name!r} gives no rationales; use "
            "rationale data with data.targets=label_and_rationale (promptcomp data list)"
        )
    if data.has_two_tasks and not method.has_two_tasks:
        fitting = " or ".join(name for name, section in METHODS.items() if section.has_two_tasks)
        raise ConfigError(
            f"data.targets = 'label_and_rationale' is for method {fitting}, not {method.name}; set data.targets=label "
            "or another single target"
        )


def _check_context(experiment: Experiment, window: int | None) -> None:
    """The longest contexts must leave the method its room in the LM's window."""
    if window is None or not isinstance(experiment.data, InstructionConfig):
        return
    if problem := experiment.method.context_problem(experiment.data.limits("train")[0], window):
        raise ConfigError(problem)


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
    if experiment.method.lm_training == "none":
        return LanguageModel.from_config(experiment.lm)
    return _with_weights(make_module(_without_training(experiment), ()), run).lm


def _without_training(experiment: Experiment) -> Experiment:
    return experiment.model_copy(update={"method": experiment.method.without_training()})


def _with_weights(module: CompressionModule, run: RunDirectory) -> CompressionModule:
    module.configure_model()
    if module.method.trains:
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
