"""Trainings that stop, save, and go on under other strategies, in one group of processes.

`python -m tests.distributed.checkpoint_runs FOLDER ACTIONS` is one rank; ACTIONS is JSON.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch

from promptcomp.checkpoints import saving
from promptcomp.checkpoints.checkpoint_files import write_shard
from promptcomp.checkpoints.saving import AtomicCheckpoints
from promptcomp.config import ConfigError
from promptcomp.experiment import Precision, TrainerConfig
from promptcomp.lightning_modules.execution import Execution
from promptcomp.run.opening import quiet
from promptcomp.run.processes import cluster_environment
from promptcomp.run.trainer import make_strategy
from tests.distributed.trajectories import Case, Losses, data, make_module

CASES = (
    Case("gist", "llama", {"num_slots": 1}),
    Case("mend", "t5_query_in_encoder", {"num_slots": 3}),
    Case("full_prompt", "gpt2", {"train": "lora", "lora": {"rank": 2}}, Execution(offload_optimizer=True)),
)
WRITERS = ("auto 1 whole", "ddp 2 whole", "fsdp 2 whole", "fsdp 2 sharded")
READERS = ("auto 1", "ddp 2", "fsdp 2")
HALF, WHOLE = 2, 4


@dataclass(frozen=True)
class Action:
    """Train one of CASES as `how` ("fsdp 2 sharded") says."""

    case: int
    how: str
    steps: int
    start: str | None = None
    save: str | None = None
    name: str = ""
    full_disk: bool = False
    """The second rank's disk is full when it writes its part."""
    precision: Precision = "32-true"
    """Of a float64 LM; in mixed precision of a float32 one."""


def fail(*_: Any, **__: Any) -> NoReturn:
    """As a full disk does."""
    raise OSError(errno.ENOSPC, "No space left on device", "shard")


def do(action: Action, folder: Path) -> None:
    """Train, save, and on rank 0 write the losses of the steps and the trained tensors."""
    strategy, devices, *rest = action.how.split()
    layout = " ".join((strategy, devices)) if strategy != "auto" else "1 process"
    case = CASES[action.case]
    losses = Losses()
    config = TrainerConfig.model_validate(
        {"devices": int(devices), "accelerator": "cpu", "strategy": strategy, "checkpoints": (rest or ["whole"])[0]}
    )
    dtype = "float64" if action.precision == "32-true" else "float32"
    module = make_module(case, folder, dtype, steps=WHOLE)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=int(devices),
        strategy=make_strategy(config),
        precision=action.precision,
        max_steps=action.steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        callbacks=[losses],
        plugins=[AtomicCheckpoints(), cluster_environment()],
        default_root_dir=folder,
    )
    start = None if action.start is None else folder / action.start
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        trainer.fit(module, datamodule=data(case, layout), ckpt_path=start, weights_only=True)
        if action.full_disk and trainer.global_rank == 1:
            saving.write_shard = fail
        if action.save is not None:
            trainer.save_checkpoint(folder / action.save)
            trainer.save_checkpoint(folder / f"{action.save}.best", weights_only=True)
        tensors = {name: tensor.clone() for name, tensor in module.trained_tensors().items()}
    finally:
        torch.set_default_dtype(torch.float32)
        saving.write_shard = write_shard
    if trainer.is_global_zero:
        torch.save({"losses": losses.values, "tensors": tensors}, folder / f"{action.name}.pt")


def words_of(actions: list[Action]) -> str:
    """For the command line."""
    return json.dumps([asdict(action) for action in actions])


def main(folder: Path, actions: list[Action]) -> None:
    """All actions, one after the other."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with quiet():
        for action in actions:
            print(action, flush=True)
            try:
                do(action, folder)
            except (ConfigError, OSError) as error:
                (folder / f"{action.name}.error{os.environ['RANK']}").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Action(**each) for each in json.loads(sys.argv[2])])
