"""Lightning's own loggers beside metrics.csv and TensorBoard (`trainer.loggers`): W&B and MLflow, each an extra."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import uuid
from typing import TYPE_CHECKING, Any

from promptcomp.documents import read_json
from promptcomp.errors import ConfigError, first_line
from promptcomp.experiment import Experiment
from promptcomp.files import write_atomic
from promptcomp.run.run_directory import RunDirectory

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

_PROJECT = "promptcomp"


def check_loggers(experiment: Experiment) -> None:
    """
    Raises:
        ConfigError: one of `trainer.loggers` is not installed.
    """
    for name in experiment.trainer.loggers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f'trainer.loggers: {name} is not installed; pip install "promptcomp[{name}]"')


def open_loggers(experiment: Experiment, run: RunDirectory) -> list[Logger]:
    """Those of `trainer.loggers`; a resumed run goes on in the runs there that loggers.json names.

    Where they write, and as whom, their own environment variables say (WANDB_PROJECT, WANDB_MODE,
    MLFLOW_TRACKING_URI ...).

    Raises:
        ConfigError: one cannot be opened, for want of a key or a network.
    """
    if not experiment.trainer.loggers:
        return []
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    known: dict[str, str] = {}
    with contextlib.suppress(ConfigError):
        known = dict(read_json(run.loggers, "file of the loggers"))
    found: list[Any] = []
    title = run.path.absolute().name
    for name in experiment.trainer.loggers:
        try:
            if name == "wandb":
                number = known.setdefault(name, uuid.uuid4().hex)
                project = os.environ.get("WANDB_PROJECT", _PROJECT)
                found.append(WandbLogger(title, run.path, project=project, id=number))
            else:
                where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.path.absolute() / 'mlflow.db'}"
                found.append(MLFlowLogger(_PROJECT, title, where, run_id=known.get(name)))
                known[name] = str(found[-1].run_id)
            found[-1].log_hyperparams(experiment.model_dump(mode="json"))
        except Exception as error:  # theirs, of many kinds
            raise ConfigError(f"trainer.loggers: {name} cannot be opened: {first_line(error)}") from error
    write_atomic(run.loggers, json.dumps(known) + "\n")
    return found
