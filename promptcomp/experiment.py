"""The schema of everything that can be configured, and how a configuration is found.

`fit --method mend` loads the shipped `experiments/mend.yaml`; `--config` any file; `key=value` overrides come last.
Method and data are tagged unions: their `name` chooses the class and so the keys that are known.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Union

from pydantic import Field, field_validator, model_validator

from promptcomp.config import Config, ConfigError, apply_overrides, build, read_yaml
from promptcomp.datamodules import DATASETS
from promptcomp.datamodules.sections import check_split
from promptcomp.documents import experiment_file, shipped
from promptcomp.errors import command
from promptcomp.language_model import LanguageModelConfig
from promptcomp.lightning_modules import METHODS
from promptcomp.lightning_modules.method_config import OptimConfig
from promptcomp.plain import shown
from promptcomp.rivals import RIVALS

Precision = Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed"]


class TrainerConfig(Config):
    """How long, on what and how often."""

    max_steps: int = Field(1000, ge=0)
    """Optimiser steps. 0 trains nothing and only evaluates."""
    batch_size: int = Field(8, ge=1)
    """Contexts in one optimiser step, over all devices and accumulated micro-batches."""
    eval_every: int = Field(100, ge=1)
    """Steps between two evaluations of the dev split, at which the best weights are chosen."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between two checkpoints that `--resume` continues from."""
    checkpoints: Literal["whole", "sharded"] = "whole"
    """whole: one file, gathered on the first process; sharded (strategy fsdp): a folder, each process writes its
    part."""
    select_by: Literal["auto", "loss", "accuracy", "exact_match"] = "auto"
    """Which dev result the best weights are chosen by, equal ones by the loss. auto: accuracy where there are options,
    otherwise loss; loss: that of the right answers; accuracy: of the likeliest options; exact_match: that of greedy
    answers, auto where all examples have options."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many dev evaluations without a better result; null: never."""
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    """Where to run. auto: on a GPU if there is one; cpu: on the processor; gpu: on NVIDIA or AMD GPUs; mps: on an Apple
    GPU."""
    devices: int | Literal["auto"] = "auto"
    """Number of devices of a machine; on CPU, of processes ("auto": one)."""
    num_nodes: int = Field(1, ge=1)
    """Number of machines; with more than one, start the program on all of them with torchrun or srun."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: every device holds the full model; fsdp: weights, gradients and optimiser state are sharded among them
    (FSDP2); auto: ddp where there are several devices."""
    precision: Precision = "32-true"
    """Arithmetic of the training steps. 32-true: float32 throughout; bf16-mixed: bfloat16 over float32 weights;
    bf16-true: bfloat16 weights and arithmetic; 16-mixed: float16 over float32 weights, with scaling of the loss
    (GPUs)."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches of one optimiser step; losses are means over the tokens of the whole step."""
    activation_checkpointing: bool = False
    """Keep only the inputs of each transformer block for the backward pass and recompute the rest."""
    offload_optimizer: bool = False
    """Keep AdamW's state in the host's memory and step there."""
    compile: bool = False
    """Compile each transformer block with torch.compile."""
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads of each process; null: torch's choice."""
    loggers: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Where curves go besides metrics.csv and TensorBoard's files (RUN/tensorboard), each an extra of its own. wandb:
    Weights & Biases; mlflow: MLflow."""
    timeout_seconds: int = Field(1800, ge=10, lt=2**31)
    """How long a process waits for the others of the run before it gives up."""

    @model_validator(mode="after")
    def _divisible(self) -> TrainerConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"trainer.batch_size={self.batch_size} is not a multiple of trainer.accumulate={self.accumulate}"
            )
        if self.devices != "auto" and not 1 <= self.devices <= 1024:
            raise ValueError(f"trainer.devices={self.devices}: give a number from 1 to 1024")
        if self.strategy == "fsdp" and self.precision == "16-mixed":
            raise ValueError(
                "trainer.strategy=fsdp does not work with trainer.precision=16-mixed (loss scaling does not work on "
                "sharded gradients); use bf16-mixed, bf16-true or 32-true"
            )
        if self.checkpoints == "sharded" and self.strategy != "fsdp":
            raise ValueError(
                "trainer.checkpoints=sharded needs trainer.strategy=fsdp, where every process has a part to write; "
                "use trainer.checkpoints=whole"
            )
        if self.strategy == "fsdp" and self.accelerator == "mps":
            raise ValueError("trainer.strategy=fsdp does not run on mps; use trainer.accelerator=gpu or cpu")
        return self


class EvaluationConfig(Config):
    """What is measured after training."""

    splits: tuple[str, ...] | None = None
    """Splits to evaluate; null: every test split of the data."""
    bounds: bool = True
    """Also score the full prompt and no prompt with the same weights on the same examples."""
    bootstrap_resamples: int = Field(2000, ge=100, le=10**6)
    """Resamples of contexts behind each 95 % interval."""
    measure_cost: bool = True
    """Time compression and prefill on this machine (a few seconds)."""
    slots: int | None = Field(None, gt=0)
    """Score with this one of `method.budgets`; null: with the largest, which is also what dev is scored with."""
    generate: bool | Literal["auto"] = "auto"
    """Generate an answer (greedily) to every test example, besides scoring; auto: for instruction data."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest generated answer in tokens; less where the LM's window leaves less."""
    rationales: bool = True
    """If a student has learned rationales, generate them for the test examples too (rationales.jsonl)."""
    rivals: tuple[Annotated[Union[tuple(RIVALS)], Field(discriminator="name")], ...] = ()  # type: ignore[valid-type]  # noqa: UP007
    """What else is scored on the same examples: other ways to the same budget, and controls (docs/rivals.md)."""
    sentences: Literal["builtin", "nltk"] = "builtin"
    """How ROUGE-Lsum finds sentences. builtin: by a list of abbreviations; nltk: by nltk's English model (a
    download)."""

    @field_validator("splits")
    @classmethod
    def _each_once(cls, splits: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if twice := [name for name in splits or () if (splits or ()).count(name) > 1]:
            raise ValueError(f"{twice[0]!r} occurs twice; leave one out")
        return splits


class Experiment(Config):
    """One run: a method, data, a language model, and how to train and evaluate."""

    name: str = Field("", pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*)?$")
    """Name of the run directory; empty: method and data."""
    method: Annotated[Union[tuple(METHODS.values())], Field(discriminator="name")]  # type: ignore[valid-type]  # noqa: UP007
    """The compression method or control, chosen by `method.name`."""
    data: Annotated[Union[tuple(DATASETS.values())], Field(discriminator="name")]  # type: ignore[valid-type]  # noqa: UP007
    """The data, chosen by `data.name`."""
    lm: LanguageModelConfig
    """The language model that reads the compressed prompt."""
    optim: OptimConfig = OptimConfig()
    """The optimiser and its schedule."""
    trainer: TrainerConfig = TrainerConfig()
    """Length, devices, checkpoints."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured after training."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the weights, the data order and the dropout masks."""
    output_dir: str = "runs"
    """Folder that run directories are made in."""

    @model_validator(mode="after")
    def _sections_go_together(self) -> Experiment:
        """Among others: two tasks need a method that learns them, and the reverse."""
        if problem := self.method.strategy_problem(self.trainer.strategy):
            raise ValueError(f"trainer.strategy={self.trainer.strategy} {problem}")
        if self.method.has_two_tasks and not self.data.has_two_tasks:
            raise ValueError(
                f"method {self.method.name} learns labels and rationales, but data {self.data.name!r} gives no "
                "rationales; use rationale data with data.targets=label_and_rationale (promptcomp data list)"
            )
        if self.data.has_two_tasks and not self.method.has_two_tasks:
            fitting = " or ".join(name for name, section in METHODS.items() if section.has_two_tasks)
            raise ValueError(
                f"data.targets = 'label_and_rationale' is for method {fitting}, not {self.method.name}; set "
                "data.targets=label or another single target"
            )
        rows = [rival.row for rival in self.evaluation.rivals]
        if twice := [row for row in rows if rows.count(row) > 1]:
            raise ValueError(f"evaluation.rivals: {twice[0]} occurs twice; leave one out")
        for rival in self.evaluation.rivals:
            if rival.needs_demonstrations and self.data.context_kind != "demonstrations":
                raise ValueError(
                    f"evaluation.rivals: {rival.name} needs contexts of demonstrations, and those of data "
                    f"{self.data.name!r} are prompts; use truncate"
                )
        if self.evaluation.slots is not None and (problem := self.method.slots_problem(self.evaluation.slots)):
            raise ValueError(f"evaluation.slots = {self.evaluation.slots}: {problem}")
        if self.evaluation.generate is True and self.data.why_no_answers:
            raise ValueError(f"evaluation.generate=true {self.data.why_no_answers}")
        return self

    def check(self, *splits: str, reads_data: bool = True, trains: bool = True) -> None:
        """Find what is wrong as far as it shows without torch, before anything is begun.

        Args:
            splits: Evaluation splits that are wanted beside the configured ones.
            reads_data: The files of the data, and what training starts from, have to be there.
            trains: Whether it is to be trained: the budgets of a trained run stay as they were.

        Raises:
            ConfigError: the LM or a file is not there, a budget exceeds the LM's window, or a split is unknown.
        """
        self.lm.check_place()
        if reads_data:
            self.data.check_places()
            self.method.check_places()
            for rival in self.evaluation.rivals:
                rival.check_places()
        window = self.lm.window_on_disk()
        self.check_window(window)
        if trains and window is not None and (slots := self.method.slots_behind):
            try:
                self.data.budget(window - slots)
            except ConfigError as error:
                behind = f"its {window} positions less {slots} for the slots behind a context"
                raise ConfigError(f"{error} ({behind})") from None
        if self.data.splits is not None:
            for split in (*(self.evaluation.splits or ()), *splits):
                check_split(split, self.data.eval_splits(self.data.splits))

    def without_training(self) -> Experiment:
        """As it is used after training: without a teacher or weights to start from."""
        return self.model_copy(update={"method": self.method.without_training()})

    def bounds_only(self) -> Experiment:
        """The same data and LM, of which only no prompt and the full prompt are scored, on dev unless splits are named.

        Raises:
            ConfigError: the data has no bounds.
        """
        tree = self.model_dump(mode="json")
        source = self.data.splits or self.data.source().splits
        dev = ("dev",) if "dev" in source else None
        tree |= {"method": {"name": "full_prompt"}, "name": f"bounds-{self.name or self.data.name}"}
        tree["trainer"]["max_steps"] = 0
        tree["evaluation"] |= {"bounds": True, "rivals": (), "slots": None, "splits": self.evaluation.splits or dev}
        return build(Experiment, tree, source="--bounds-only")

    def check_window(self, window: int | None) -> None:
        """Check the budgets of method and data against the LM's window [positions]; None: no limit, or not known.

        Raises:
            ConfigError: they exceed it.
        """
        if window is not None and (problem := self.method.window_problem(window, self.data.context_budget)):
            raise ConfigError(problem)
        room = self.data_window(window)
        try:
            self.data.budget(room)
        except ConfigError as error:
            if not self.method.reads_in_segments:
                raise
            raise ConfigError(
                f"{error}; method {self.method.name} reads longer contexts in segments where nothing reads them whole: "
                "set evaluation.bounds=false, without evaluation.rivals and data.targets=teacher"
            ) from None

    def data_window(self, window: int | None) -> int | None:
        """The window that the budgets of the data have to fit: the LM's [positions], or none where contexts beyond it
        are read in segments alone.

        Raises:
            ConfigError: the segments, or the slots with a query, do not fit the LM's.
        """
        whole = self.evaluation.bounds or bool(self.evaluation.rivals) or self.data.asks is not None
        if window is None or whole or not self.method.reads_in_segments:
            return window
        try:
            self.data.budget(window)
        except ConfigError:
            context, example, _ = self.data.lengths(None)
            slots = getattr(self.method, "num_slots", 0)
            if problem := self.method.window_problem(window, context):
                raise ConfigError(problem) from None
            if slots + example + 1 > window:  # 1: BOS
                raise ConfigError(
                    f"method.num_slots = {slots}: with a query and its answer of {example} tokens and a BOS token they "
                    f"exceed the LM's window of {window}; use fewer slots, or lower the data's budgets of queries and "
                    "answers"
                ) from None
            return None
        return window

    @property
    def title(self) -> str:
        """The run's name, made from method and data where none was given."""
        return self.name or f"{self.method.name}-{self.data.name}"


def load(method: str | None, config: Path | None, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment of a shipped method, or of a file, with overrides applied.

    Args:
        method: A shipped experiment, or a YAML file.
        config: A YAML file. Without either, the first override names the experiment.
        overrides: `key=value` words.

    Raises:
        ConfigError: none or two are named, there is none of the name, or any mistake in the configuration.
    """
    words = list(overrides)
    if method is None and config is None and words and "=" not in words[0]:
        method = words.pop(0)
    if method is not None and method.partition(".")[0] in Experiment.model_fields and not os.path.exists(method):
        raise ConfigError(
            f"{method!r} is a key: name an experiment first, and set keys with =, as in "
            f"`{command('fit', 'mend', 'optim.lr=1e-4')}`"
        )
    if (method is None) == (config is None):
        raise ConfigError(
            "give either --method NAME (a shipped experiment) or --config FILE; `promptcomp experiments` lists them"
        )
    named = str(config if method is None else method)
    file = config if config is not None and os.path.exists(config) else experiment_file(named)
    if other := next((word for word in words if word in shipped()), None):
        raise ConfigError(f"{shown(other)} is another experiment; one is started at a time, and keys are set with =")
    tree = read_yaml(file)
    for key, name in (("experiment", "sweep"), ("architecture", "pretrain")):
        if key in tree and "method" not in tree:
            raise ConfigError(f"{file} is no experiment; {command(name, file)} is what starts it")
    return build(Experiment, apply_overrides(tree, words), source=str(file.name))
