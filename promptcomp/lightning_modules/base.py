"""What every method shares and no paper describes: freezing, the optimiser, logging, sharding and checkpoints.

A method is `build()` (make the trainable parts), `compress(context)` and `losses(batch)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from transformers import PreTrainedModel

from promptcomp.batch import Batch, Context
from promptcomp.config import Config, ConfigError
from promptcomp.evaluation.option_accuracy import OptionAccuracy
from promptcomp.language_model import LanguageModel, LanguageModelConfig, Scores
from promptcomp.lightning_modules.adapters import LMTraining, LoraConfig, add_lora
from promptcomp.lightning_modules.optim import OptimConfig, learning_rate_factor, make_optimizer
from promptcomp.lightning_modules.trained import Origin, check_trained, read_trained, write_export
from promptcomp.memory import Memory


class MethodConfig(Config):
    """Base of the methods' sections; each adds a literal `name`."""


class LMTrainingConfig(MethodConfig):
    """Base of the sections of methods that may train the LM itself."""

    train: LMTraining = "none"
    """lm: all weights of the LM; lora: low-rank adapters beside them; none: the LM stays as it is."""
    lora: LoraConfig = LoraConfig()
    """The adapters of `train: lora`."""
    init_from: str | None = None
    """A run directory, export or checkpoint of the same method whose trained parts training starts from."""


@dataclass(frozen=True, slots=True)
class LossTerm:
    """One part of the objective as a sum and a count, so that ranks of different size average correctly."""

    name: str
    total: Tensor
    """Sum over `count` items on this rank."""
    count: Tensor | int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Pass:
    """One model reading tokens in a training step, for estimates before a run; numbers are for one context."""

    model: PreTrainedModel
    tokens: float
    """Tokens read."""
    length: float
    """Tokens of one sequence (attention grows with it)."""
    gradient: bool
    """Whether a gradient flows through it, so that its activations are kept."""
    trained: bool
    """Whether its weights get a gradient."""


class ExampleGold(Protocol):
    """What the running accuracy needs to know of an example."""

    @property
    def number(self) -> int: ...
    @property
    def gold(self) -> int: ...
    @property
    def options(self) -> Sequence[str]: ...


class CompressionModule(L.LightningModule):
    """Base of all methods.

    Args:
        method: the method's section of the configuration.
        lm: which LM to use, or one that is there already.
        optim: optimiser and schedule.
        max_steps: length of the learning-rate schedule in optimiser steps.
        seed: seeds the initial values of what is trained.
        task_names: the datamodule's tasks in the order of `Context.task`.
        skeleton: shapes only, on the meta device (for a dry run); nothing is read or computed.
    """

    lm: LanguageModel

    def __init__(
        self,
        method: MethodConfig,
        lm: LanguageModelConfig | LanguageModel,
        optim: OptimConfig,
        *,
        max_steps: int,
        seed: int,
        task_names: tuple[str, ...] = (),
        skeleton: bool = False,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold trained tensors only; check_trained is the strict part
        self.method = method
        self.optim = optim
        self.max_steps = max_steps
        self.seed = seed
        self.task_names = task_names
        self.skeleton = skeleton
        self.lm_config = lm if isinstance(lm, LanguageModelConfig) else None
        if isinstance(lm, LanguageModel):
            self.lm = lm
        self._is_built = False
        self._gold: dict[int, int] = {}
        self._has_free_answers = False
        self.dev_loss = MeanMetric()
        self.dev_exact_match = MeanMetric()
        self.dev_accuracy = OptionAccuracy()

    @property
    def lm_training(self) -> LMTraining:
        """What of the LM is trained; "none": it is frozen and stays in eval mode."""
        return self.method.train if isinstance(self.method, LMTrainingConfig) else "none"

    @property
    def trainable(self) -> bool:
        """Whether there is anything to train."""
        return True

    def build(self) -> None:
        """Make the trainable parts; `self.lm` is there."""

    def compress(self, context: Context) -> Memory | None:
        """The memory of each context; None stands for no prompt."""
        raise NotImplementedError

    def losses(self, batch: Batch) -> list[LossTerm]:
        """The terms of the training objective on this batch."""
        raise NotImplementedError

    def num_memory_slots(self, context_tokens: int) -> int:
        """Positions that the memory of a context of this length takes."""
        raise NotImplementedError

    def compress_flops(self, context_tokens: float) -> float:
        """FLOPs of making the memory of one context; 0 where nothing is computed."""
        return 0.0

    def passes(self, context_tokens: int, example_tokens: int, queries: int) -> list[Pass]:
        """What a training step reads for one context with `queries` queries of `example_tokens` tokens each."""
        read = self.num_memory_slots(context_tokens)
        return [
            Pass(self.lm.hf, read + queries * example_tokens, read + example_tokens, True, self.lm_training == "lm")
        ]

    def score(self, batch: Batch) -> Scores:
        """Log likelihood of every target given the compressed context."""
        return self.lm.score(self.compress(batch.context), batch)

    def open_lm(self, config: LanguageModelConfig) -> LanguageModel:
        """An LM of this configuration: with weights, or its skeleton in a dry run."""
        return LanguageModel.skeleton(config) if self.skeleton else LanguageModel.from_config(config)

    def configure_model(self) -> None:
        """Open the LM, build the trainable parts and shard them where the strategy asks for it (runs once)."""
        if self._is_built:
            return
        self._is_built = True
        if self.lm_config is not None:
            with torch.random.fork_rng(devices=[]):  # an LM that starts from scratch follows the run's seed
                torch.manual_seed(self.seed)
                self.lm = self.open_lm(self.lm_config)
        self.lm.requires_grad_(self.lm_training == "lm")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.build()
            if isinstance(self.method, LMTrainingConfig):
                self._start(self.method)
        self.train(self.training)
        if self.device_mesh is not None:
            self._shard()

    def _start(self, method: LMTrainingConfig) -> None:
        """Add adapters (after `build`, which may copy the LM as it was) and load what training starts from."""
        if method.train == "lora":
            add_lora(self.lm, method.lora, skeleton=self.skeleton)
        if method.init_from is not None and not self.skeleton:
            self.load_trained(Path(method.init_from))

    def _shard(self) -> None:
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        blocks = self.lm.block_classes
        for module in list(self.modules()):
            if type(module).__name__ in blocks:
                fully_shard(module, mesh=mesh)
        fully_shard(self, mesh=mesh)
        for name in ("training_step", "validation_step", "compress", "score"):
            register_fsdp_forward_method(self, name)

    def train(self, mode: bool = True) -> CompressionModule:
        """Training mode for the trained parts alone: a frozen LM must not use dropout."""
        super().train(mode)
        if self._is_built and self.lm_training == "none":
            self.lm.eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted sum of the terms, each divided by its count over all ranks.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        self._seed_step(batch_idx)
        terms = self.losses(batch)
        counts = torch.stack([torch.as_tensor(t.count, device=self.device, dtype=t.total.dtype) for t in terms])
        local = counts.clone()
        world_size = self.trainer.world_size
        if world_size > 1:
            torch.distributed.all_reduce(counts)
        # DDP and FSDP average gradients over ranks, hence the factor world_size.
        scale = (world_size / counts.clamp(min=1.0)).unbind()
        loss = torch.stack([t.weight * t.total * s for t, s in zip(terms, scale, strict=True)]).sum()
        if not torch.isfinite(loss):
            values = ", ".join(
                f"{t.name} {float(t.total.detach()):g} over {int(n)}" for t, n in zip(terms, local, strict=True)
            )
            raise FloatingPointError(f"the loss of step {self.global_step} is not finite ({values})")
        logs = {f"train/{t.name}": t.total.detach() / n.clamp(min=1.0) for t, n in zip(terms, local, strict=True)}
        size = batch.context.ids.shape[0]
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size)
        self.log_dict({**logs, "train/tokens": batch.num_tokens.float()}, batch_size=size)
        return loss

    def _seed_step(self, batch_idx: int) -> None:
        """Make dropout a function of (seed, step, rank), so that a resumed run draws what it would have drawn."""
        accumulate = self.trainer.accumulate_grad_batches
        micro_batch = self.global_step * accumulate + batch_idx % accumulate
        number = (self.seed * 1_000_003 + micro_batch) * 4099 + self.global_rank
        torch.manual_seed(number % (1 << 63))

    def watch(self, examples: Sequence[ExampleGold]) -> None:
        """Name the gold options of the dev split; without this only a loss is logged."""
        self._gold = {example.number: example.gold for example in examples if len(example.options) > 1}
        self._has_free_answers = len(self._gold) < len(examples)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Running accuracy (best mean log likelihood among the options), loss of the gold option, and of free answers
        the share that greedy decoding would write exactly."""
        scores = self.score(batch)
        size = batch.context.ids.shape[0]
        numbers = batch.example.tolist()
        gold = torch.tensor([self._gold.get(number, 0) for number in numbers], device=self.device)
        is_gold = batch.choice == gold
        tokens = scores.num_tokens[is_gold].sum()
        if tokens > 0:
            self.dev_loss.update(-scores.sum_log_prob[is_gold].sum() / tokens, tokens)
        self.log("dev/loss", self.dev_loss, on_epoch=True, batch_size=size)
        has_options = torch.tensor([number in self._gold for number in numbers], device=self.device)
        if self._has_free_answers:
            free = is_gold & ~has_options & (scores.num_tokens > 0)
            self.dev_exact_match.update(scores.is_greedy[free].float())
            self.log("dev/exact_match", self.dev_exact_match, on_epoch=True, prog_bar=True, batch_size=size)
        if self._gold:
            mean = scores.sum_log_prob / scores.num_tokens.clamp(min=1)
            rows = (mean, batch.example, batch.choice, gold)
            self.dev_accuracy.update(*(values[has_options] for values in rows))
            self.log("dev/accuracy", self.dev_accuracy, on_epoch=True, prog_bar=True, batch_size=size)

    def trained_names(self) -> list[str]:
        """Names of the tensors that training changes; a checkpoint holds these and no others."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def configure_optimizers(self) -> Any:
        """AdamW over the trainable parameters by name, and the schedule."""
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        if not named:
            raise ConfigError(f"method {self.origin().method!r} has nothing to train; use evaluate instead of fit")
        optimizer = make_optimizer(named, self.optim)
        schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, self.max_steps, self.optim))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by `optim.clip_norm`; the trainer's own setting is not used."""
        self.clip_gradients(optimizer, gradient_clip_val=self.optim.clip_norm, gradient_clip_algorithm="norm")

    def origin(self) -> Origin:
        """What a checkpoint or an export of this module says of itself."""
        name = type(self.method).model_fields["name"].default
        path = self.lm_config.path if self.lm_config is not None else "in memory"
        return Origin(method=name, family=self.lm.family, lm=path)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep trained tensors only and say what they are."""
        kept = set(self.trained_names())
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}
        layout = "plain" if self.device_mesh is None else "sharded"
        checkpoint["promptcomp"] = {**self.origin().model_dump(), "optimizer_layout": layout}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another method, family, shape or (for resuming) sharding.

        Raises:
            ConfigError: names the difference.
        """
        info: Mapping[str, Any] = checkpoint.get("promptcomp", {})
        expected = {name: p.shape for name, p in self.named_parameters() if p.requires_grad}
        check_trained(checkpoint["state_dict"], info, expected, self.origin(), "the checkpoint")
        layout = "plain" if self.device_mesh is None else "sharded"
        found = info.get("optimizer_layout", layout)
        if checkpoint.get("optimizer_states") and found != layout:
            raise ConfigError(
                f"the checkpoint was written by a {found} run and cannot be resumed by a {layout} one "
                "(the optimiser's state would be mixed up); resume with the strategy it was written with"
            )

    def trained_tensors(self) -> dict[str, Tensor]:
        """The trained tensors by name (gathered where they are sharded)."""
        kept = {name: p for name, p in self.named_parameters() if p.requires_grad}
        return {name: full_tensor(parameter) for name, parameter in kept.items()}

    def load_trained(self, path: Path) -> None:
        """Load the trained parts from a run directory, an export or a checkpoint file.

        Raises:
            ConfigError: nothing readable is there, or it belongs to another method, family or shape.
        """
        tensors, info = read_trained(path)
        expected = {name: p.shape for name, p in self.named_parameters() if p.requires_grad}
        check_trained(tensors, info, expected, self.origin(), str(path))
        self.load_state_dict(tensors, strict=False)

    def export(self, folder: Path) -> None:
        """Write the trained parts (safetensors) and what they are (JSON) to `folder`."""
        lm = self.lm_config.model_dump(mode="json") if self.lm_config is not None else None
        description = {
            "origin": self.origin().model_dump(),
            "method": self.method.model_dump(mode="json"),
            "lm": lm,
            "task_names": list(self.task_names),
        }
        write_export(folder, self.trained_tensors(), description)


def full_tensor(parameter: Tensor) -> Tensor:
    """The whole tensor of a sharded parameter (a collective), or the parameter itself."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
