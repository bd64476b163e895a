"""The parts of an experiment: its data and its module, new or with trained weights."""

from __future__ import annotations

import io
import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from promptcomp.config import ConfigError
from promptcomp.datamodules.context_module import ContextDataModule
from promptcomp.datamodules.sections import Reader, check_split
from promptcomp.datamodules.tasks import InstructionSource
from promptcomp.experiment import Experiment
from promptcomp.files import open_append
from promptcomp.language_model import LanguageModel, open_tokenizer, open_window, reads_queries_in_encoder
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.lightning_modules.execution import Execution
from promptcomp.run.configured import experiment_of, with_lm
from promptcomp.run.run_directory import RunDirectory, open_existing, weights_of

Parts = tuple[ContextDataModule, CompressionModule]
"""The data and the module of an experiment."""


def make_parts(experiment: Experiment, *, trains: bool = True) -> Parts:
    """The data, read and checked, and the module of an experiment; the module builds its models in `configure_model`.

    `trains`: a method that trains must have something to train on.

    Raises:
        ConfigError: files are missing or bad, or data and method do not belong together.
    """
    datamodule = make_data(experiment)
    datamodule.check()
    for split in experiment.evaluation.splits or ():
        check_split(split, datamodule.eval_splits)
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


def make_data(
    experiment: Experiment, lm: LanguageModel | None = None, rows: InstructionSource | None = None
) -> ContextDataModule:
    """The data of an experiment, not read yet.

    Args:
        experiment: The configuration.
        lm: One that is open already.
        rows: Instead of those that a section of instruction data names.

    Raises:
        ConfigError: there is none, or its budgets do not fit.
    """
    if lm is None:
        window, tokenizer, bos = open_window(experiment.lm), open_tokenizer(experiment.lm), experiment.lm.bos
        in_encoder = reads_queries_in_encoder(experiment.lm)
    else:
        assert lm.tokenizer is not None
        window, tokenizer, bos, in_encoder = lm.window, lm.tokenizer, lm.bos_id is not None, lm.query_in_encoder
    experiment.check_window(window)
    micro_batch = experiment.trainer.batch_size // experiment.trainer.accumulate
    room = experiment.data_window(window)
    reader = Reader(tokenizer, experiment.seed, micro_batch, room, in_encoder, bos, rows)
    datamodule: ContextDataModule = experiment.data.build(reader)
    return datamodule


def make_module(
    experiment: Experiment, task_names: tuple[str, ...], lm: LanguageModel | None = None
) -> CompressionModule:
    """The module of an experiment, not built yet; `lm`: one that is open already."""
    trainer = experiment.trainer
    own, steps, seed = experiment.lm if lm is None else lm, trainer.max_steps, experiment.seed
    module = experiment.method.module(own, experiment.optim, max_steps=steps, seed=seed, task_names=task_names)
    module.execution = Execution(trainer.activation_checkpointing, trainer.offload_optimizer, trainer.compile)
    return module


def open_trained(
    path: Path, experiment: Experiment | None = None
) -> tuple[Experiment, ContextDataModule, CompressionModule]:
    """A finished run with its trained weights: the experiment, its data, and the module in eval mode.

    The models that only training needs (`MethodConfig.without_training`) are not opened.

    Args:
        path: The run.
        experiment: Its configuration with changes; None: as it is.

    Raises:
        ConfigError: no run, or no trained weights.
    """
    run = open_existing(path)
    experiment = with_lm(experiment_of(run), path) if experiment is None else experiment
    set_threads(experiment)
    datamodule, module = make_parts(experiment.without_training(), trains=False)
    return experiment, datamodule, _with_weights(module, run)


def open_trained_module(path: Path) -> tuple[Experiment, CompressionModule]:
    """The module of a run with its trained weights, in eval mode; neither the run's data nor a teacher is needed.

    Raises:
        ConfigError: no run, no trained weights, or a method that does not know its tasks without the data.
    """
    run = open_existing(path)
    experiment = with_lm(experiment_of(run), path)
    return experiment, _with_weights(make_module(experiment.without_training(), ()), run)


def open_trained_lm(path: Path) -> LanguageModel:
    """The LM of a run as the run has left it; what the method has beside it is opened only where the LM was trained.

    Raises:
        ConfigError: no run, or no trained weights.
    """
    experiment = with_lm(experiment_of(open_existing(path)), path)
    if experiment.method.lm_training == "none":
        return LanguageModel.from_config(experiment.lm)
    return open_trained_module(path)[1].lm


def _with_weights(module: CompressionModule, run: RunDirectory) -> CompressionModule:
    module.configure_model()
    if module.method.trains:
        module.load_trained(weights_of(run))
    return module.eval()


def set_threads(experiment: Experiment) -> None:
    """Use as many CPU threads as the experiment asks for."""
    if experiment.trainer.threads is not None:
        torch.set_num_threads(experiment.trainer.threads)


@contextmanager
def as_before() -> Iterator[None]:
    """A block whose end finds random generators, torch's threads and Lightning's seed as they were, for programs that
    go on."""
    python, arrays, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    seeds = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_num_threads(threads)
        for name, value in seeds.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _LogFile(logging.FileHandler):
    """A log that is not written through a link."""

    def _open(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(open_append(Path(self.baseFilename)), self.encoding, self.errors)


@contextmanager
def quiet(run: RunDirectory | None = None) -> Iterator[None]:
    """Lightning's and torch's notes go to log.txt, not between the lines a person reads."""
    names = ("lightning.pytorch", "lightning.fabric", "transformers", "py.warnings")
    loggers = [logging.getLogger(name) for name in names]
    previous = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    handler: logging.Handler = logging.NullHandler()
    if run is not None:
        handler = _LogFile(run.log, encoding="utf-8", errors="replace", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if logger.name.startswith("lightning") else logging.WARNING)
    logging.captureWarnings(True)
    had_bars = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        logging.captureWarnings(False)
        if had_bars:
            enable_progress_bar()
        for logger, (level, propagate, handlers) in zip(loggers, previous, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        handler.close()
