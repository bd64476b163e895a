"""Short trainings of every method under every division of a step, in one group of processes, for comparison.

`python -m tests.distributed.trajectories FOLDER LAYOUT...` is one rank; `run` starts them all.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from promptcomp.batch import ANSWER, RATIONALE, EncodedContext, EncodedQuery, EncodedTarget
from promptcomp.checkpoints.named_state import full_tensor
from promptcomp.datamodules.context_module import ContextDataModule
from promptcomp.datamodules.sampler import Draw
from promptcomp.datamodules.sections import DataConfig, Reader
from promptcomp.experiment import Precision, TrainerConfig
from promptcomp.language_model import LanguageModelConfig, loading
from promptcomp.lightning_modules import METHODS, OptimConfig
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.lightning_modules.execution import Execution
from promptcomp.run.opening import quiet
from promptcomp.run.processes import cluster_environment
from promptcomp.run.trainer import make_strategy
from tests.forks import Fork
from tests.tiny_models import save_tokenizer, tiny_hf

NO_DROPOUT = {
    "llama": (),
    "qwen3": (),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "opt": ("dropout", "attention_dropout"),
    "t5": ("dropout_rate",),
}
STEPS, BATCH, ITEMS, WINDOW = 3, 8, 19, 2
LAYOUTS = (
    "1 process",
    "1 process, 2 micro-batches",
    "ddp 2",
    "ddp 2, 2 micro-batches",
    "fsdp 2",
    "fsdp 2, 2 micro-batches",
)


@dataclass(frozen=True)
class Case:
    """A method, its options and a tiny LM."""

    method: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    execution: Execution = field(default_factory=Execution)
    lm_dtype: str | None = None
    """None: what the others are trained in."""

    @property
    def name(self) -> str:
        """Readable and unique."""
        extra = " ".join(f"{key}={value}" for key, value in self.options.items() if key != "num_slots")
        flags = " ".join(key for key, value in vars_of(self.execution).items() if value)
        kind = " ".join(filter(None, (self.model, self.lm_dtype)))
        return " ".join(part for part in (self.method, extra, flags, f"({kind})") if part)


def vars_of(execution: Execution) -> dict[str, bool]:
    """The options of an execution by name."""
    names = ("activation_checkpointing", "offload_optimizer", "compile")
    return {name: bool(getattr(execution, name)) for name in names}


_RECOMPUTE = Execution(activation_checkpointing=True)
_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "mend": [{"num_slots": 3}, {"num_slots": 3, "stage": "pretrain", "max_chunk_tokens": 5}],
    "gist": [
        {"num_slots": 3},
        {"num_slots": 3, "arrangement": "split", "shared_embedding": False, "kl_weight": 0.5, "kl_positions": "all"},
        {"num_slots": 3, "train": "lora", "kl_weight": 0.5, "full_prompt_weight": 0.5},
        {"num_slots": 3, "train": "none"},
    ],
    "prompt_tuning": [{"num_slots": 3}],
    "metaicl": [{}, {"loss_average": "token"}],
    "full_prompt": [{"train": "lm"}, {"train": "lora", "lora": {"rank": 2}}],
    "no_prompt": [{"train": "lm"}],
    "step_by_step": [{}, {"weighting": "uncertainty", "mutual_information": 0.1}],
    "finetune": [{}],
}
ALL_CASES = [
    Case(method, model, options)
    for method, variants in _OPTIONS.items()
    for options in variants
    for model in ("llama", "gpt2", "t5_query_in_decoder", "t5_query_in_encoder")
]
_TWO = ("llama", "t5_query_in_encoder")
CASES = [case for number, case in enumerate(ALL_CASES) if case.model == _TWO[number // 4 % 2]] + [
    Case("mend", "t5_query_in_encoder", {"num_slots": 3}),
    Case("gist", "t5_query_in_encoder", {"num_slots": 3}),
    Case("gist", "t5_query_in_encoder", {"num_slots": 3, "reconstruction_weight": 0.5}),
    Case("gist", "gpt2", {"num_slots": 3, "train": "lora", "arrangement": "split", "reconstruction_weight": 0.5}),
    Case("step_by_step", "t5_query_in_encoder", {}),
    Case("pool", "llama", {"num_slots": 3, "attention": "bidirectional", "kl_weight": 0.5}),
    Case("pool", "t5_query_in_encoder", {"num_slots": 3, "reconstruction_weight": 0.5}),
    Case("icae", "llama", {"num_slots": 3, "budgets": [1, 3], "slots": "kv"}),
    Case("icae", "gpt2", {"num_slots": 3, "reconstruction_weight": 0.5}, _RECOMPUTE),
    Case("autocompressor", "llama", {"num_slots": 4, "budgets": [2, 4], "backprop_segments": 1}),
    Case("autocompressor", "gpt2", {"num_slots": 3, "segments": 3, "train": "lora", "context_weight": 0.0}, _RECOMPUTE),
    Case("mend", "gpt2", {"num_slots": 3}, _RECOMPUTE),
    Case("gist", "llama", {"num_slots": 3, "arrangement": "split", "attention": "bidirectional"}, _RECOMPUTE),
    Case("gist", "t5_query_in_decoder", {"num_slots": 3, "arrangement": "split"}, _RECOMPUTE),
    Case("metaicl", "gpt2", {}, Execution(activation_checkpointing=True, offload_optimizer=True)),
    Case("full_prompt", "t5_query_in_decoder", {"train": "lm"}, Execution(offload_optimizer=True)),
]


class Items(ContextDataModule):
    """Contexts of different length with one to three queries; some examples of two tasks lack a rationale."""

    eval_splits = ()

    def __init__(self, batch_size: int, two_tasks: bool) -> None:
        tokenizer: Any = SimpleNamespace(pad_token_id=0, eos_token_id=None)
        source: Any = SimpleNamespace(splits=())
        super().__init__(DataConfig(length_window=WINDOW), source, Reader(tokenizer, 0, batch_size))
        self._two_tasks = two_tasks

    @property
    def task_names(self) -> tuple[str, ...]:
        """Three tasks."""
        return ("a", "b", "c")

    def num_train_items(self) -> int:
        """A few, so that epochs end within steps."""
        return ITEMS

    def train_context(self, draw: Draw) -> EncodedContext:
        """Random tokens."""
        rng = random.Random(draw.index)

        def ids(most: int) -> tuple[int, ...]:
            return tuple(rng.randrange(3, 64) for _ in range(rng.randint(1, most)))

        context = ids(12)
        if self._two_tasks:
            roles = (ANSWER, RATIONALE) if draw.index % 3 else (ANSWER,)
            queries = tuple(
                EncodedQuery((role + 3,), (EncodedTarget(ids(4), role=role),), draw.index) for role in roles
            )
        else:
            count = rng.randint(1, 3)
            queries = tuple(EncodedQuery(ids(4), (EncodedTarget(ids(3)),), draw.index) for _ in range(count))
        return EncodedContext(context, queries, draw.index % 3)

    def train_lengths(self, draws: Sequence[Draw]) -> Sequence[int]:
        """Tokens of the contexts."""
        return [len(self.train_context(draw).ids) for draw in draws]


class Losses(L.Callback):
    """The whole tensors before the first step, its gradients, and the loss of every optimiser step."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.start: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the weights, frozen ones too."""
        weights = pl_module.named_parameters(remove_duplicate=False)  # what modules share is copied where it is divided
        self.start = {name: full_tensor(parameter).clone() for name, parameter in weights}

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note the gradients, before they are clipped."""
        assert isinstance(pl_module, CompressionModule)
        if not self.gradients:
            named = pl_module.trained_parameters().items()
            self.gradients = {name: full_tensor(p.grad).clone() for name, p in named if p.grad is not None}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note it."""
        assert isinstance(pl_module, CompressionModule)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            assert pl_module.step_loss is not None
            self.values.append(float(pl_module.step_loss))


def save_models(folder: Path) -> None:
    """The tiny LMs as files, with tokenizers."""
    for kind, dropout in NO_DROPOUT.items():
        model = tiny_hf(kind)
        for key in dropout:
            setattr(model.config, key, 0.0)
        model.save_pretrained(folder / kind)
        save_tokenizer(folder / kind)


def make_module(case: Case, folder: Path, dtype: str = "float64", steps: int = STEPS) -> CompressionModule:
    """The case's module, to be built by a trainer."""
    kind, _, layout = case.model.partition("_")
    config = LanguageModelConfig.model_validate(
        {"path": str(folder / kind), "dtype": case.lm_dtype or dtype, "layout": layout or "query_in_decoder"}
    )
    spec = METHODS[case.method]
    optim = OptimConfig(lr=1e-2, clip_norm=0.5, warmup_steps=1)
    module = spec(**case.options).module(config, optim, max_steps=steps, seed=0, task_names=("a", "b", "c"))
    module.execution = case.execution
    return module


def make_trainer(
    layout: str,
    folder: Path,
    steps: int = STEPS,
    callbacks: Sequence[L.Callback] = (),
    precision: Precision = "32-true",
) -> L.Trainer:
    """A trainer for one of LAYOUTS."""
    strategy, devices, micro_batches = parse(layout)
    config = TrainerConfig.model_validate({"devices": devices, "accelerator": "cpu", "strategy": strategy})
    return L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=make_strategy(config),
        precision=precision,
        max_steps=steps,
        accumulate_grad_batches=micro_batches,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        callbacks=list(callbacks),
        plugins=[cluster_environment()],
        default_root_dir=folder,
    )


def parse(layout: str) -> tuple[str, int, int]:
    """Strategy, processes and micro-batches of a step."""
    first, _, rest = layout.partition(", ")
    name, _, count = first.partition(" ")
    return ("auto", 1, 2 if rest else 1) if name == "1" else (name, int(count), 2 if rest else 1)


def data(case: Case, layout: str) -> Items:
    """The case's data; a micro-batch is smaller where a step has several."""
    return Items(BATCH // parse(layout)[2], case.method == "step_by_step")


def train(
    case: Case, layout: str, folder: Path, dtype: str = "float64", precision: Precision = "32-true"
) -> dict[str, Any]:
    """Losses of the steps, the trained tensors after them, all tensors before them and the first gradients."""
    losses = Losses()
    module = make_module(case, folder, dtype)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        trainer = make_trainer(layout, folder, callbacks=[losses], precision=precision)
        trainer.fit(module, datamodule=data(case, layout))
        tensors: dict[str, Tensor] = {name: tensor.clone() for name, tensor in module.trained_tensors().items()}
    finally:
        torch.set_default_dtype(torch.float32)
    return {"losses": losses.values, "tensors": tensors, "start": losses.start, "gradients": losses.gradients}


def difference(one: dict[str, Any], two: dict[str, Any]) -> tuple[float, float]:
    """The largest difference of a loss and of a weight."""
    assert one["tensors"].keys() == two["tensors"].keys()
    assert len(one["losses"]) == len(two["losses"])
    losses = max(abs(a - b) for a, b in zip(one["losses"], two["losses"], strict=True))
    return losses, max(float((one["tensors"][n] - two["tensors"][n]).abs().max()) for n in one["tensors"])


def start(
    module: str,
    world_size: int,
    *words: str,
    each: Sequence[Sequence[str]] | None = None,
    folder: Path | None = None,
) -> list[Fork]:
    """Fork the ranks of a group, with torchrun's variables and the same words or those of `each`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    found = []
    for rank in range(world_size):
        own = {**shared, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test"}
        environment = {key: str(value) for key, value in own.items()}
        found.append(Fork(module, *(words if each is None else each[rank]), folder=folder, env=environment))
    return found


def finish(ranks: Sequence[Fork], timeout: float = 900) -> list[str]:
    """What they printed; all must succeed."""
    try:
        printed = ["".join(rank.communicate(timeout)) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert not any(rank.returncode for rank in ranks), "\n".join(text[-4000:] for text in printed)
    return printed


@contextmanager
def weights_only_on_rank_zero(layout: str) -> Iterator[None]:
    """With sharded weights only rank 0 may read them from the disk."""

    def refuse(*_: object) -> None:
        raise AssertionError("another rank than 0 opens the weights")

    opened = loading.open_model
    if layout.startswith("fsdp") and os.environ["RANK"] != "0":
        loading.open_model = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        loading.open_model = opened


def divided(number: int) -> tuple[str, str]:
    """The two layouts of two processes that a case of CASES is trained under: one strategy has micro-batches."""
    return (LAYOUTS[2], LAYOUTS[5]) if number % 2 else (LAYOUTS[3], LAYOUTS[4])


def main(folder: Path, dtype: str, cases: Sequence[Case], layouts: Sequence[str]) -> None:
    """One rank: train all cases under the layouts (none: `divided`); rank 0 writes what came out."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with quiet():
        for number, case in enumerate(cases):
            for layout in layouts or divided(number):
                print(case.name, layout, flush=True)
                with weights_only_on_rank_zero(layout):
                    found = train(case, layout, folder, dtype)
                if os.environ["RANK"] == "0":
                    torch.save(found, folder / f"{number}-{LAYOUTS.index(layout)}.pt")


if __name__ == "__main__":
    chosen = {"all": ALL_CASES, "few": CASES}[sys.argv[3]]
    main(Path(sys.argv[1]), sys.argv[2], chosen, sys.argv[4:])
