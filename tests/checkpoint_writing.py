"""Small checkpoints; `python -m tests.checkpoint_writing FOLDER` writes them again and again, until it is killed."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import torch

from promptcomp.checkpoints import checkpoint_files
from promptcomp.checkpoints.checkpoint_files import replace, split, write_header, write_shard, write_whole

INFO = {"format": 2, "method": "mend", "family": "decoder", "lm": "somewhere"}


def checkpoint(value: float = 1.0, size: int = 4) -> dict[str, Any]:
    """A checkpoint of two tensors, with an optimiser's state."""
    weights = {"slots": torch.full((size, 3), value), "scale": torch.tensor(value)}
    moments = {name: {"step": torch.tensor(2.0), "exp_avg": weight * 2} for name, weight in weights.items()}
    group = {"lr": 0.1, "params": ["slots", "scale"]}
    return {
        "state_dict": weights,
        "optimizer_states": [{"state": moments, "param_groups": [group]}],
        "global_step": int(value),
        "promptcomp": INFO,
    }


def write_parts(saved: dict[str, Any], path: Path) -> None:
    """As one process writes a sharded checkpoint."""
    header, tensors = split(saved)
    temporary = path.with_name(f".{path.name}.tmp")
    checkpoint_files.remove(temporary)
    temporary.mkdir(parents=True)
    name, size = write_shard(temporary, tensors, 0, 1)
    write_header(temporary, header, {name: size})
    replace(temporary, path)


if __name__ == "__main__":
    for step in itertools.count(1):
        for write in (write_whole, write_parts):
            write(checkpoint(float(step), 20_000), Path(sys.argv[1], write.__name__))
        print(step, flush=True)
