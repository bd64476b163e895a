"""Trainings in bf16-mixed precision, and what of the gathered weights outlives a forward pass, on two processes.

`python -m tests.distributed.mixed FOLDER LAYOUT...` is one rank.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from promptcomp.batch import Batch
from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules import METHODS, OptimConfig
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.lightning_modules.execution import Execution, blocks_of, shard, units_of
from promptcomp.run.opening import quiet
from tests.distributed.trajectories import Case, data, train
from tests.tiny_models import tiny_hf

_RECOMPUTE = Execution(activation_checkpointing=True)
CASES = (
    Case("mend", "llama", {"num_slots": 3}),
    Case("mend", "opt", {"num_slots": 3}, lm_dtype="bfloat16"),
    Case("mend", "t5_query_in_encoder", {"num_slots": 3, "stage": "pretrain", "max_chunk_tokens": 5}),
    Case("gist", "qwen3", {"num_slots": 3, "arrangement": "split"}),
    Case("gist", "t5_query_in_encoder", {"num_slots": 3, "arrangement": "split", "kl_weight": 0.5}),
    Case("gist", "llama", {"num_slots": 3, "train": "lora", "kl_weight": 0.5, "reconstruction_weight": 0.5}),
    Case("gist", "gpt2", {"num_slots": 3, "arrangement": "split"}, _RECOMPUTE),
    Case("prompt_tuning", "gpt2", {"num_slots": 3}, _RECOMPUTE),
    Case("metaicl", "t5_query_in_decoder", {}),
    Case("full_prompt", "llama", {"train": "lora", "lora": {"rank": 2}}, lm_dtype="bfloat16"),
    Case("full_prompt", "t5_query_in_encoder", {"train": "lora", "lora": {"rank": 2}}),
    Case("no_prompt", "opt", {"train": "lm"}),
    Case("step_by_step", "llama", {}, Execution(activation_checkpointing=True, offload_optimizer=True)),
    Case("finetune", "gpt2", {}),
)
KINDS = ("llama", "qwen3", "gpt2", "opt", "t5")


def finetuned(kind: str) -> CompressionModule:
    """A module that trains all weights of a tiny LM of KINDS, whose table has the shape of no matrix in a block."""
    lm = LanguageModel.from_parts(tiny_hf(kind, width=48))
    spec = METHODS["finetune"]
    module = spec().module(lm, OptimConfig(), max_steps=9, seed=0, task_names=("a", "b", "c"))
    module.configure_model()
    return module.train()


def first_batch() -> Batch:
    """One batch of the trajectories' data."""
    items = data(Case("finetune", "llama"), "1 process")
    return next(iter(items.train_dataloader()))


class Held:
    """Bytes of the copies of given matrices, in any type, that autograd keeps and nothing has freed."""

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        self._shapes = {tuple(shape) for each in matrices for shape in (each.shape, each.shape[::-1])}
        self._kept: dict[int, torch.UntypedStorage] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        """See what is kept."""
        if tuple(tensor.shape) in self._shapes:
            storage = tensor.untyped_storage()
            self._kept[storage._cdata] = storage
        return tensor

    def num_bytes(self) -> int:
        """Of all that is there now; sharding empties what it has gathered."""
        return sum(storage.nbytes() for storage in self._kept.values())


def matrices_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Weights of their linear layers."""
    named = [each for module in modules for each in module.named_parameters()]
    return [each.detach() for name, each in named if each.ndim == 2 and "relative" not in name]


def held_after_forward(kind: str, precision: str, autocast: bool) -> dict[str, Any]:
    """Bytes of whole block matrices after the forward pass, and the types of the gradients that come of it."""
    module = finetuned(kind)
    units = units_of(module)
    divided, others = (matrices_of(each) for each in (units, [b for b in blocks_of(module) if b not in units]))
    mesh, device = init_device_mesh("cpu", (2,)), torch.device("cpu")
    shard(module, mesh, ("losses",), device, from_rank_zero=False, precision=precision)
    held = Held(divided)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda tensor: tensor):
            loss = torch.stack([term.total / term.count for term in module.losses(first_batch())]).sum()
        kept = held.num_bytes()
    loss.backward()
    gradients = [each.grad for each in module.parameters() if each.grad is not None]
    return {
        "kept": kept,
        "divided": sum(each.numel() for each in divided),
        "others": sum(each.numel() for each in others),
        "sharded": all(isinstance(each, DTensor) for each in gradients),
        "types": sorted({str(each.dtype) for each in gradients}),
    }


def main(folder: Path, layouts: Sequence[str]) -> None:
    """All cases; rank 0 writes."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    is_first = os.environ["RANK"] == "0"
    with quiet():
        for number, case in enumerate(CASES):
            for layout in layouts:
                print(case.name, layout, flush=True)
                found = train(case, layout, folder, "float32", "bf16-mixed")
                if is_first:
                    torch.save(found, folder / f"{number}-{layout}.pt")
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    held = {
        f"{kind} {precision} {autocast}": held_after_forward(kind, precision, autocast)
        for kind in KINDS
        for precision, autocast in (("bf16-mixed", True), ("32-true", True), ("32-true", False))
    }
    if is_first:
        (folder / "held.json").write_text(json.dumps(held))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
