"""The common part of all methods, which no paper describes: freezing, the optimiser, logging and checkpoints.

A method is `build()` (make the trainable parts), `compress(context)`, `num_memory_slots(tokens)` and, where it is more
than the cross-entropy of the targets, `losses(batch)` with its `counts(batch)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from transformers import PreTrainedModel

from promptcomp.batch import Batch, Context
from promptcomp.checkpoints.trained_state import TrainedState, frozen_hash
from promptcomp.config import ConfigError
from promptcomp.evaluation.flops import read_flops
from promptcomp.evaluation.option_accuracy import OptionAccuracy
from promptcomp.language_model import LanguageModel, LanguageModelConfig, Scores, TextEncoder, token_table
from promptcomp.language_model.blending import Blend, blended
from promptcomp.language_model.parts import Prefix
from promptcomp.lightning_modules.adapters import add_lora
from promptcomp.lightning_modules.execution import Execution, one_after_another, prepare_blocks, shard
from promptcomp.lightning_modules.exported import HFExport, Page
from promptcomp.lightning_modules.method_config import BudgetsConfig, LMTrainingConfig, MethodConfig, OptimConfig
from promptcomp.lightning_modules.objective import Counts, LossTerm, StepObjective, cross_entropy
from promptcomp.lightning_modules.optim import learning_rate_factor, make_optimizer
from promptcomp.memory import Memory

__all__ = ["CompressionModule", "Counts", "LossTerm", "Pass", "WholeContext"]


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
    reconstructs: bool = False
    """Reconstruction: its targets are the contexts themselves, each after a query of one token."""
    caches_context: bool = False
    """A decoder reads the context first and keeps its keys and values until the answers are computed."""
    scored: float = 0.0
    """Of a model without a head: positions whose states the LM's head reads."""


class CompressionModule(TrainedState):
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

    method: MethodConfig
    lm: LanguageModel
    answer_term: ClassVar[str] = "ce"
    """The name of the cross-entropy of the targets."""

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
        self.opened: LanguageModel | None = None
        """The LM, where it was opened before the module is built."""
        self.teacher: LanguageModel | None = None
        """A frozen LM that a method compares its own with, if it opens one."""
        self.execution = Execution()
        self._drawn_slots: int | None = None
        self._blend: Blend | None = None
        self._chosen_slots: int | None = None
        self._is_built = self._is_in_trainer = False
        self._objective: StepObjective | None = None
        self.step_loss: Tensor | None = None
        """Loss of the last optimiser step over all ranks and micro-batches."""
        self.tokens_trained: Tensor | int = 0
        """Real tokens since the start or the resumption, over all ranks."""
        self._gold: dict[int, int] = {}
        self._has_free_answers = False
        self.dev_loss = MeanMetric()
        self.dev_exact_match = MeanMetric()
        self.dev_accuracy = OptionAccuracy()

    @property
    def num_slots(self) -> int:
        """Slots of a context: in training as drawn for the step, afterwards as chosen, otherwise the most."""
        assert isinstance(self.method, BudgetsConfig)
        return (self._drawn_slots if self.training else self._chosen_slots) or self.method.num_slots

    def choose_slots(self, slots: int | None) -> None:
        """Compress to so many slots outside of training; None: the most.

        Raises:
            ConfigError: it was not trained for so many.
        """
        if slots is not None and (problem := self.method.slots_problem(slots)):
            raise ConfigError(problem)
        self._chosen_slots = slots

    @property
    def compared(self) -> Literal["nothing", "targets", "all"]:
        """After which tokens its logits are compared with a teacher's, for estimates before a run."""
        return "nothing"

    @property
    def _where(self) -> Literal["targets", "all"]:
        """Where its own logits are needed."""
        return "all" if self.compared == "all" else "targets"

    def build(self) -> None:
        """Make the trainable parts; `self.lm` is there."""

    def compress(self, context: Context) -> Memory | None:
        """The memory of each context; None stands for no prompt."""
        raise NotImplementedError

    def read_for_training(self, context: Context) -> Memory | Prefix | None:
        """What the LM reads before the query in training: the memory, or a prefix with the same numbers in one pass."""
        return self.compress(context)

    def losses(self, batch: Batch) -> list[LossTerm]:
        """The terms of the training objective on this batch; here the cross-entropy of the targets, a token mean."""
        logits = self.lm(self.read_for_training(batch.context), batch, "targets")
        return [cross_entropy(self.answer_term, logits)]

    def counts(self, batch: Batch) -> Counts:
        """The counts of the terms that `losses` would give, from the batch alone; see `Counts`."""
        return {self.answer_term: self.lm.scored_tokens(batch).sum()}

    def num_memory_slots(self, context_tokens: int) -> int:
        """Number of positions that the memory of a context of this length takes in the LM."""
        raise NotImplementedError

    def compress_flops(self, context_tokens: float) -> float:
        """FLOPs of making the memory of one context; 0 where nothing is computed."""
        return 0.0

    def passes(self, context_tokens: int, example_tokens: int, queries: int) -> list[Pass]:
        """What a training step reads for one context with `queries` queries of `example_tokens` tokens each."""
        read, trained = self.lm.num_bos + self.num_memory_slots(context_tokens), self.method.lm_training == "lm"
        return [Pass(self.lm.hf, read + queries * example_tokens, read + example_tokens, True, trained)]

    def as_hf(self) -> HFExport:
        """What `export --to hf` writes; the LM and its tokenizer may be changed in place."""
        return HFExport(self.lm.hf, Page("language_model", {}))

    def adapter_page(self, base: str) -> Page:
        """The README of exported adapters; the LM is there and not built upon.

        Args:
            base: Arguments of `from_pretrained` for the LM that training began with.
        """
        return Page("adapters", {"base": base})

    def score(self, batch: Batch) -> Scores:
        """Log likelihood of every target given the compressed context."""
        return self.lm.score(self.compress(batch.context), batch)

    def open_lm(self, config: LanguageModelConfig) -> LanguageModel:
        """An LM of this configuration: with weights, or shapes (in a dry run; where rank 0 sends the weights)."""
        opened, self.opened = self.opened, None
        if self.skeleton:
            return LanguageModel.skeleton(config, with_tokenizer=self.device_mesh is not None)
        if opened is not None and config is self.lm_config:
            return opened
        return LanguageModel.from_config(config)

    def setup(self, stage: str) -> None:
        """Lightning calls this first; without a trainer there are no other ranks to think of."""
        self._is_in_trainer = True

    def configure_model(self) -> None:
        """Open the LM, build the trainable parts and shard them where the strategy asks for it (runs once)."""
        if self._is_built:
            return
        self._is_built = True
        if self.device_mesh is not None:  # rank 0 opens the weights; the others build shapes and get shards from it
            from_rank_zero = self.lm_config is not None
            self.skeleton = from_rank_zero and self.global_rank > 0
            self._build()
            self.skeleton = False
            methods = ("training_step", "validation_step", "compress", "score")
            mesh, device = self.device_mesh["data_parallel"], self.trainer.strategy.root_device
            shard(self, mesh, methods, device, from_rank_zero=from_rank_zero, precision=self.trainer.precision)
        elif self._is_in_trainer:
            with one_after_another(self.trainer.strategy):
                self._build()
                self.to(self.trainer.strategy.root_device)
        else:
            self._build()

    def _build(self) -> None:
        """Everything on this process, with weights (or all of it as a skeleton)."""
        if self.lm_config is not None:
            with torch.random.fork_rng(devices=[]):  # an LM that starts from scratch follows the run's seed
                torch.manual_seed(self.seed)
                self.lm = self.open_lm(self.lm_config)
        self.lm.requires_grad_(self.method.lm_training == "lm")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.build()
            if isinstance(self.method, LMTrainingConfig) and self.method.train == "lora":
                add_lora(self.lm, self.method.lora, skeleton=self.skeleton)  # `build` may copy the LM as it was
            if not self.skeleton:
                self._frozen = frozen_hash(self.named_parameters())
            start = getattr(self.method, "init_from", None)
            if start is not None and not self.skeleton:
                self.load_trained(Path(start))
        self._trained_names = frozenset(self.trained_parameters())
        prepare_blocks(self, self.execution)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training mode for the trained parts alone: a frozen LM and a teacher must not use dropout."""
        super().train(mode)
        if self._is_built and self.method.lm_training == "none":
            self.lm.eval()
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """This micro-batch's part of the weighted sum of the terms, each divided by its count over the whole step.

        Raises:
            FloatingPointError: the loss of the step is not finite (on every rank at once).
        """
        micro_batches = self.trainer.accumulate_grad_batches
        # dropout is a function of (seed, step, rank), so that a resumed run draws what it would have drawn
        number = self.seed * 1_000_003 + self.global_step * micro_batches + batch_idx % micro_batches
        torch.manual_seed((number * 4099 + self.global_rank) % (1 << 63))
        if isinstance(self.method, BudgetsConfig):
            self._drawn_slots = self.method.draw_slots(self.seed, self.global_step)
        if batch_idx % micro_batches == 0 or self._objective is None:
            whole = (batch, *batch.siblings)
            self._objective = StepObjective(
                [self.counts(each) for each in whole],
                [each.num_tokens for each in whole],
                self.trainer.world_size,
                micro_batches,
                self.device,
            )
        draw = getattr(getattr(self.trainer, "datamodule", None), "draw_blend", None)  # loaders alone have none
        step = (self.seed * 1_000_003 + self.global_step) * 4099 % (1 << 63)  # the same for all ranks and parts
        self._blend = None if draw is None else draw(step)
        with blended(self._token_tables(), self._blend):
            loss = self._objective.add(self.losses(batch))
        if batch_idx % micro_batches == micro_batches - 1:
            self._log_step(self._objective)
            self._objective = None
        return loss

    def _token_tables(self) -> Iterator[nn.Embedding]:
        """Of every LM and encoder that reads, each once; looked for when they are asked for."""
        yield from {token_table(each.hf) for each in self.modules() if isinstance(each, (LanguageModel, TextEncoder))}

    def _log_step(self, objective: StepObjective) -> None:
        """Log the whole step, the same numbers on every rank."""
        values = objective.finish()
        if not torch.isfinite(values["loss"]):
            raise FloatingPointError(
                f"the loss of step {self.global_step} is not finite ({objective.describe(values)})"
            )
        self.step_loss = values["loss"]
        self.tokens_trained = self.tokens_trained + objective.tokens
        self.log("train/loss", values.pop("loss"), prog_bar=True, batch_size=1)
        logs = {f"train/{name}": value for name, value in values.items()}
        self.log_dict({**logs, "train/tokens": objective.tokens.float()}, batch_size=1)

    def watch(self, examples: Sequence[Any]) -> None:
        """Name the gold options of the dev split; without this only a loss is logged.

        Args:
            examples: Each with `number`, `gold` and `options`, as a datamodule lists them.
        """
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
            loss = -scores.sum_log_prob[is_gold].sum() / tokens
            if not torch.isfinite(loss):  # the metric would leave it out
                raise FloatingPointError(f"the dev loss at step {self.global_step} is not finite ({float(loss)})")
            self.dev_loss.update(loss, tokens)
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

    def configure_optimizers(self) -> Any:
        """AdamW over the trainable parameters by name, and the schedule."""
        named = list(self.trained_parameters().items())
        if not named:
            raise ConfigError(f"method {self.origin().method!r} has nothing to train; use evaluate instead of fit")
        optimizer = make_optimizer(named, self.optim, on_host=self.execution.offload_optimizer)
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


class WholeContext(CompressionModule):
    """Base of methods that compress nothing: the LM reads the context itself."""

    def compress(self, context: Context) -> Memory | None:
        """The context, read by the LM."""
        return self.lm.encode(context)

    def compress_flops(self, context_tokens: float) -> float:
        """Reading the context once; an encoder that reads queries beside it reads it with each of them."""
        return 0.0 if self.lm.query_in_encoder else read_flops(self.lm.cost, self.lm.num_bos + context_tokens)

    def num_memory_slots(self, context_tokens: int) -> int:
        """One slot for every token of the context."""
        return context_tokens

    def read_for_training(self, context: Context) -> Memory | Prefix | None:
        """The context, to be read in one pass with the queries."""
        return self.lm.whole_prompt(context)


def check_same_tokenizer(lm: LanguageModel, other: LanguageModel, what: str) -> None:
    """Text reaches an LM and its teacher or distiller as the same ids, so both must mean the same by them.

    `what` names the other in messages.

    Raises:
        ConfigError: the tokenizers or the vocabularies differ.
    """
    if lm.tokenizer is not None and other.tokenizer is not None:
        ours, theirs = lm.tokenizer.get_vocab(), other.tokenizer.get_vocab()
        if ours != theirs:
            odd = sum(1 for token, number in theirs.items() if ours.get(token) != number)
            raise ConfigError(
                f"{what}: its tokenizer is not the LM's ({len(theirs)} tokens, {odd} of them "
                f"unknown to the LM or with other ids; the LM has {len(ours)}); choose one of the LM's family"
            )
    if other.vocab_size < (lm.vocab_size if lm.tokenizer is None else len(lm.tokenizer)):
        raise ConfigError(f"{what}: {other.vocab_size} token embeddings are fewer than the LM's vocabulary")
