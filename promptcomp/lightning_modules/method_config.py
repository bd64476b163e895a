"""Sections of methods: what other code needs to know of a method. Neither these files nor what they import need torch.

A section is one file beside its LightningModule, which is imported when it is wanted; it is registered in
`promptcomp.lightning_modules.METHODS`, or by another package with an entry point (see `promptcomp.config`).
"""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from promptcomp.checkpoints.places import trained_at
from promptcomp.config import Config, ConfigError, Decay
from promptcomp.language_model.lm_config import LanguageModelConfig

if TYPE_CHECKING:
    from promptcomp.language_model import LanguageModel
    from promptcomp.lightning_modules.base import CompressionModule

ExportFormat = Literal["hf", "peft", "tensors"]
"""hf: a Hugging Face model (`CompressionModule.as_hf`); peft: adapters where the LM trains with LoRA, otherwise learned
vectors in the trained tensor `prompts` [tasks or 1, K, D]; tensors: the trained tensors by name."""
LMTraining = Literal["lm", "lora", "none"]
"""lm: all weights of the LM; lora: adapters on its matrices; none: it is not trained."""


class LoraConfig(Config):
    """Low-rank adapters beside the LM's frozen matrices."""

    rank: int = Field(16, gt=0)
    """Rank of the update of a matrix."""
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the inputs of the adapters."""
    targets: tuple[str, ...] = ()
    """Names of the layers that get adapters ("q_proj", "v_proj", ...); empty: every linear layer but the head. Experts
    of a mixture whose matrices are one tensor, and their router, are no linear layers: they get no adapters."""


class OptimConfig(Config):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(1e-3, gt=0)
    """Highest learning rate."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, on matrices only (no biases, no norms)."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of AdamW's two moments."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up. linear: in a straight line; cosine: along half a cosine; constant:
    not at all."""
    warmup_steps: int = Field(0, ge=0)
    """Steps in which the learning rate rises linearly."""
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    """Where the schedule ends, as a share of `lr`."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest gradient norm; null: no clipping."""


class MethodConfig(Config):
    """Base of the methods' sections; each adds a literal `name` and what is said here."""

    title: ClassVar[str]
    """The name in tables."""
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    families: ClassVar[tuple[str, ...]] = ("decoder", "encoder_decoder")
    """LMs that it runs with."""
    needs: ClassVar[str] = "contexts"
    """What the data must offer, in words."""
    has_two_tasks: ClassVar[bool] = False
    """Whether it learns labels and rationales as two tasks: data that gives both goes with such methods alone."""
    reads_prompt: ClassVar[bool] = True
    """Whether its memory depends on the prompt."""
    reads_in_segments: ClassVar[bool] = False
    """Whether its contexts may be longer than the LM's window, because it never reads one as a whole."""
    bound: ClassVar[Literal["full_prompt", "no_prompt"] | None] = None
    """The bound of every result that it is itself."""
    difficulty_keys: ClassVar[tuple[str, ...]] = ()
    """Keys that change how hard the task is: during training, runs that differ in them cannot be compared."""
    loss_keys: ClassVar[tuple[str, ...]] = ()
    """Keys that change the terms of the loss."""
    implementation: ClassVar[str]
    """Its LightningModule: "package.file:Class"."""

    def module(
        self, lm: LanguageModelConfig | LanguageModel, optim: OptimConfig, *, max_steps: int, seed: int, **options: Any
    ) -> CompressionModule:
        """Its module, imported now and not built yet; the arguments are those of `CompressionModule`."""
        module_class: type[CompressionModule] = resolve_name(self.implementation)
        return module_class(self, lm, optim, max_steps=max_steps, seed=seed, **options)

    @property
    def lm_training(self) -> LMTraining:
        """What of the LM is trained; "none": it is frozen and stays in eval mode."""
        return "none"

    @property
    def slots_behind(self) -> int:
        """Slots whose positions a decoder-only LM counts behind those of the whole context: keys and values."""
        return 0

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return True

    @property
    def export_formats(self) -> tuple[ExportFormat, ...]:
        """What `export` can write of it, the best first; empty where nothing is trained."""
        of_the_lm: dict[LMTraining, tuple[ExportFormat, ...]] = {"lm": ("hf",), "lora": ("peft",), "none": ()}
        return (*of_the_lm[self.lm_training], "tensors") if self.trains else ()

    def export_format(self: Any, wanted: ExportFormat | None) -> ExportFormat:
        """The format to export in; `wanted`: None means the best.

        Raises:
            ConfigError: nothing is trained, or it cannot be exported so.
        """
        if not self.export_formats:
            raise ConfigError(f"method {self.name} has trained nothing that could be exported")
        if wanted is not None and wanted not in self.export_formats:
            raise ConfigError(
                f"method {self.name} as it was trained cannot be exported as {wanted!r}; use --to "
                + " or ".join(self.export_formats[:2])
            )
        found: ExportFormat = wanted or self.export_formats[0]
        return found

    @property
    def trained_places(self) -> tuple[Path, ...]:
        """The runs, exports and checkpoints whose trained tensors its training reads."""
        start = getattr(self, "init_from", None)
        return () if start is None else (Path(start),)

    def check_places(self) -> None:
        """Look whether the LMs that it uses, what its training starts from, and the package for its adapters are here.

        Raises:
            ConfigError: one is not.
        """
        for place in self.trained_places:
            trained_at(place)
        for key, value in self:
            if isinstance(value, LanguageModelConfig):
                value.check_place()
            elif key in ("train", "train_encoder") and value == "lora":
                check_peft(f"method.{key}")

    @property
    def has_task_prompts(self) -> bool:
        """Whether a task's name chooses its memory."""
        return False

    def without_training(self) -> Self:
        """The method as it is used after training: without a teacher or weights to start from."""
        return self

    def strategy_problem(self, strategy: str) -> str | None:
        """Why it cannot be trained with this `trainer.strategy`, in words that follow it; None: it can."""
        return None

    def slots_problem(self, slots: int) -> str | None:
        """Why a trained module cannot be used with so many slots, in a sentence; None: it can."""
        return f"method {self.name} has no numbers of slots to choose from; leave it out"  # type: ignore[attr-defined]

    def window_problem(self, window: int, longest: int | None = None) -> str | None:
        """Why its slots, or contexts of up to `longest` tokens, do not fit an LM's window; None: they do."""
        return None


class BudgetsConfig(MethodConfig):
    """Base of the sections of methods that one run can train for several numbers of slots."""

    num_slots: int = Field(1, gt=0)
    """Number of slots of a context."""
    budgets: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Numbers of slots to train for, the largest is num_slots: one of them is drawn for each step, and its slots are
    the first of num_slots (`evaluation.slots`, `compress --slots`); empty: num_slots alone."""

    @model_validator(mode="after")
    def _largest_budget(self) -> Self:
        if self.budgets and (len({*self.budgets}) < len(self.budgets) or max(self.budgets) != self.num_slots):
            raise ValueError(
                f"method.budgets = {[*self.budgets]}: needs different numbers of which the largest is "
                f"method.num_slots = {self.num_slots}"
            )
        return self

    def draw_slots(self, seed: int, step: int) -> int:
        """Slots of a training step, the same on every rank and in every micro-batch."""
        return random.Random(f"{seed} {step}").choice(self.budgets or (self.num_slots,))

    def slots_problem(self, slots: int) -> str | None:
        """See MethodConfig."""
        known = self.budgets or (self.num_slots,)
        if slots in known:
            return None
        asked = f"{slots} slots were not trained" if slots <= self.num_slots else f"{slots} slots are too many"
        if not self.budgets:
            return f"{asked}: the run has {self.num_slots} alone; method.budgets trains several numbers in one run"
        return f"{asked}: the run has {', '.join(map(str, sorted(known)))}; choose one of them"


class TeacherCacheConfig(MethodConfig):
    """Base of the sections of methods whose teacher is an LM behind the full context; each adds `kl_weight` and
    `kl_positions`."""

    temperature: float = Field(1.0, gt=0)
    """Both distributions are taken at this temperature."""
    teacher_cache: bool = False
    """Keep what the teacher predicts behind each context on disk, so that it reads each row once, in this run and in
    later ones; the KL is then taken over classes, the teacher's likeliest tokens and all others as one."""
    teacher_top_k: int = Field(64, gt=0)
    """Tokens of a position that are kept with `teacher_cache`; with the whole vocabulary the KL is that without it."""

    @property
    def term_weights(self) -> dict[str, float]:
        """Weights of the terms of the loss: ce (of the answers), reconstruction (of the contexts) and kl (teacher).
        One that weighs nothing is left out, and not computed."""
        known = {"ce": 1.0, "reconstruction": getattr(self, "reconstruction_weight", 0.0)}
        known["kl"] = self.kl_weight  # type: ignore[attr-defined]
        return {name: weight for name, weight in known.items() if weight}

    @property
    def compares(self) -> bool:
        """Whether the loss has a term with the teacher."""
        return "kl" in self.term_weights

    @property
    def teacher_changes(self) -> bool:
        """Whether the teacher is trained as well."""
        return False

    @model_validator(mode="after")
    def _can_keep(self) -> Self:
        if self.teacher_cache and not self.compares:
            raise ValueError("method.teacher_cache keeps what a teacher predicts: set method.kl_weight above 0")
        if self.teacher_cache and self.teacher_changes:
            raise ValueError(
                "method.teacher_cache: the teacher of method.teacher=self changes with every step, so nothing it "
                "predicts can be kept; use method.teacher=initial"
            )
        return self

    def strategy_problem(self, strategy: str) -> str | None:
        """See MethodConfig."""
        if self.teacher_cache and strategy == "fsdp":
            return "does not go with method.teacher_cache: no process has the teacher's weights; use ddp"
        return super().strategy_problem(strategy)


def check_peft(key: str = "method.train") -> None:
    """
    Raises:
        ConfigError: peft, which `key` = 'lora' takes its adapters from, is not installed.
    """
    if find_spec("peft") is None:
        raise ConfigError(f"{key} = 'lora' needs the package peft; install it with: pip install \"promptcomp[lora]\"")


class LMTrainingConfig(MethodConfig):
    """Base of the sections of methods that may train the LM itself."""

    trains_lm_alone: ClassVar[bool] = False
    """Whether there is nothing to train where the LM is not."""

    train: LMTraining = "none"
    """lm: all weights of the LM; lora: low-rank adapters beside them; none: the LM is not trained."""
    lora: LoraConfig = LoraConfig()
    """The adapters of `train: lora`."""
    init_from: str | None = None
    """A run directory, export or checkpoint of the same method whose trained parts training starts from."""

    @property
    def lm_training(self) -> LMTraining:
        """As the configuration says."""
        return self.train

    @property
    def trains(self) -> bool:
        """See MethodConfig."""
        return self.train != "none" or not self.trains_lm_alone

    def without_training(self) -> Self:
        """See MethodConfig."""
        return self.model_copy(update={"init_from": None})
