"""The sections of the controls, of prompt tuning and of MetaICL."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from promptcomp.lightning_modules.method_config import ExportFormat, LMTraining, LMTrainingConfig, MethodConfig


class FullPromptConfig(LMTrainingConfig):
    """Positive control: the LM reads the full context, untrained or after training with the same data as a method."""

    title: ClassVar[str] = "full prompt"
    summary: ClassVar[str] = "positive control: the LM reads the full context"
    bound: ClassVar[Literal["full_prompt", "no_prompt"] | None] = "full_prompt"
    implementation: ClassVar[str] = "promptcomp.lightning_modules.controls:FullPrompt"
    trains_lm_alone: ClassVar[bool] = True

    name: Literal["full_prompt"] = "full_prompt"


class NoPromptConfig(LMTrainingConfig):
    """Negative control: the LM reads the query alone, untrained or after training with the same data as a method."""

    title: ClassVar[str] = "no prompt"
    summary: ClassVar[str] = "negative control: the LM reads the query alone"
    needs: ClassVar[str] = "queries"
    bound: ClassVar[Literal["full_prompt", "no_prompt"] | None] = "no_prompt"
    implementation: ClassVar[str] = "promptcomp.lightning_modules.controls:NoPrompt"
    trains_lm_alone: ClassVar[bool] = True

    name: Literal["no_prompt"] = "no_prompt"


class PromptTuningConfig(MethodConfig):
    """Learned vectors instead of the context, on which they do not depend."""

    title: ClassVar[str] = "prompt tuning"
    summary: ClassVar[str] = "learned vectors per task or for all tasks, independent of the context"
    paper: ClassVar[str] = "Lester et al. 2021, arXiv 2104.08691"
    needs: ClassVar[str] = "task names (per task)"
    reads_prompt: ClassVar[bool] = False
    difficulty_keys: ClassVar[tuple[str, ...]] = ("num_slots",)
    implementation: ClassVar[str] = "promptcomp.lightning_modules.controls:PromptTuning"

    name: Literal["prompt_tuning"] = "prompt_tuning"
    num_slots: int = Field(100, gt=0)
    """Vectors of a prompt."""
    share: Literal["per_task", "shared"] = "per_task"
    """per_task: a prompt for each task; shared: one for all."""
    slot_init: Literal["random", "vocabulary"] = "vocabulary"
    """vocabulary: embeddings of random tokens; random: N(0, 0.02), times the factor that an LM may
    multiply its token embeddings by."""

    @property
    def export_formats(self) -> tuple[ExportFormat, ...]:
        """peft knows soft prompts."""
        return ("peft", "tensors")

    @property
    def has_task_prompts(self) -> bool:
        """See MethodConfig."""
        return self.share == "per_task"


class MetaICLConfig(MethodConfig):
    """MetaICL: the LM itself is fine-tuned on full demonstrations; nothing is compressed."""

    title: ClassVar[str] = "MetaICL"
    summary: ClassVar[str] = "the LM itself is fine-tuned on full demonstrations"
    paper: ClassVar[str] = "Min et al. 2022, arXiv 2110.15943"
    loss_keys: ClassVar[tuple[str, ...]] = ("loss_average",)
    implementation: ClassVar[str] = "promptcomp.lightning_modules.controls:MetaICL"

    name: Literal["metaicl"] = "metaicl"
    loss_average: Literal["sequence", "token"] = "sequence"
    """sequence: each answer counts the same (MetaICL); token: each answer token does (MEND's baseline)."""

    @property
    def lm_training(self) -> LMTraining:
        """All weights."""
        return "lm"
