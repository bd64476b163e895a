"""The sections of distilling step-by-step and of its baseline."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from promptcomp.language_model.lm_config import LanguageModelConfig
from promptcomp.lightning_modules.method_config import LMTraining, LMTrainingConfig


class StepByStepConfig(LMTrainingConfig):
    """Distilling step-by-step: a teacher's rationales are a second task for a small student."""

    title: ClassVar[str] = "step-by-step"
    summary: ClassVar[str] = "a teacher's rationales are a second task for a small student"
    paper: ClassVar[str] = "Hsieh et al. 2023, arXiv 2305.02301"
    needs: ClassVar[str] = "rationales"
    has_two_tasks: ClassVar[bool] = True
    loss_keys: ClassVar[tuple[str, ...]] = (
        *("alpha", "lambda_", "weighting", "mutual_information", "teacher", "teacher_weight", "temperature"),
        *("jsd_beta", "on_policy_share", "on_policy_tokens"),
    )
    implementation: ClassVar[str] = "promptcomp.lightning_modules.step_by_step:StepByStep"
    trains_lm_alone: ClassVar[bool] = True

    name: Literal["step_by_step"] = "step_by_step"
    train: LMTraining = "lm"
    """lm: all weights of the student, as in the paper; lora: adapters; none: the student is not trained."""
    alpha: float | None = Field(None, ge=0, le=1)
    """Weight of the labels; rationales weigh 1 - alpha (the released code). null with lambda_ null: 0.5."""
    lambda_: float | None = Field(None, ge=0)
    """Weight of the rationales, with labels of weight 1 (the paper's form)."""
    weighting: Literal["fixed", "uncertainty"] = "fixed"
    """Weights of the two losses. fixed: those of alpha or lambda_; uncertainty: both weights are learned."""
    mutual_information: float = Field(0.0, ge=0)
    """Weight of the mutual-information term; its authors use 0.1."""
    teacher: LanguageModelConfig | None = None
    """A white-box teacher with the student's tokenizer."""
    teacher_weight: float = Field(1.0, ge=0)
    """Weight of the distance to the teacher."""
    temperature: float = Field(1.0, gt=0)
    """tau: teacher and student are compared at this temperature."""
    jsd_beta: float | None = Field(None, gt=0, lt=1)
    """Compare by the generalised Jensen-Shannon divergence; null: tau^2 KL(teacher || student)."""
    on_policy_share: float = Field(0.0, ge=0, le=1)
    """Share of the steps whose comparison uses rationales sampled from the student."""
    on_policy_tokens: int = Field(64, ge=1)
    """Maximum number of tokens of a drawn rationale."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.alpha is not None and self.lambda_ is not None:
            raise ValueError("alpha and lambda_ are two forms of one weight; give one of them")
        if self.weighting == "uncertainty" and (self.alpha, self.lambda_) != (None, None):
            raise ValueError("weighting 'uncertainty' learns the weights; leave alpha and lambda_ out")
        if self.teacher is None and (self.on_policy_share > 0 or self.jsd_beta is not None):
            raise ValueError("on_policy_share and jsd_beta need a teacher")
        return self

    def strategy_problem(self, strategy: str) -> str | None:
        """See MethodConfig."""
        if strategy != "fsdp" or not self.on_policy_share:
            return None
        return (
            "cannot run method.on_policy_share: ranks would draw answers of different length and wait for each other; "
            "use trainer.strategy=ddp or method.on_policy_share=0"
        )

    def without_training(self) -> Self:
        """See MethodConfig."""
        unneeded = {"teacher": None, "jsd_beta": None, "on_policy_share": 0.0}
        return super().without_training().model_copy(update=unneeded)

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of the loss of labels and of that of rationales."""
        if self.weighting == "uncertainty":
            return (1.0, 1.0)
        if self.lambda_ is not None:
            return (1.0, self.lambda_)
        alpha = 0.5 if self.alpha is None else self.alpha
        return (alpha, 1.0 - alpha)


class FinetuneConfig(LMTrainingConfig):
    """Baseline: the student learns the labels alone; whose labels is the data section's `label_source`."""

    title: ClassVar[str] = "finetuning"
    summary: ClassVar[str] = "baseline of step_by_step: the student learns the labels alone"
    needs: ClassVar[str] = "labels"
    implementation: ClassVar[str] = "promptcomp.lightning_modules.step_by_step:Finetune"
    trains_lm_alone: ClassVar[bool] = True

    name: Literal["finetune"] = "finetune"
    train: LMTraining = "lm"
    """lm: all weights of the student; lora: adapters; none: the student is not trained."""
