"""The methods, in one explicit list."""

from __future__ import annotations

from typing import NamedTuple

from promptcomp.lightning_modules.base import CompressionModule, LossTerm, MethodConfig
from promptcomp.lightning_modules.controls import (
    FullPrompt,
    FullPromptConfig,
    NoPrompt,
    NoPromptConfig,
    PromptTuning,
    PromptTuningConfig,
)
from promptcomp.lightning_modules.gist import Gist, GistConfig
from promptcomp.lightning_modules.mend import Mend, MendConfig
from promptcomp.lightning_modules.metaicl import MetaICL, MetaICLConfig
from promptcomp.lightning_modules.optim import OptimConfig
from promptcomp.lightning_modules.step_by_step import Finetune, FinetuneConfig, StepByStep, StepByStepConfig

__all__ = ["METHODS", "CompressionModule", "LossTerm", "MethodConfig", "MethodSpec", "OptimConfig"]


class MethodSpec(NamedTuple):
    """One entry of the registry."""

    name: str
    title: str
    """The name in tables."""
    config: type[MethodConfig]
    module: type[CompressionModule]
    summary: str
    paper: str
    families: tuple[str, ...]
    needs: str
    """What the data must offer."""


_BOTH = ("decoder", "encoder_decoder")

METHODS: dict[str, MethodSpec] = {
    spec.name: spec
    for spec in (
        MethodSpec(
            "mend",
            "MEND",
            MendConfig,
            Mend,
            "a distiller LM turns demonstrations into vectors for a frozen LM",
            "Li et al. 2024, arXiv 2403.06914",
            _BOTH,
            "contexts (demonstrations, instructions or text)",
        ),
        MethodSpec(
            "gist",
            "gist",
            GistConfig,
            Gist,
            "the LM learns to put a prompt into the activations of a few gist tokens",
            "Mu, Li, Goodman 2023, arXiv 2304.08467",
            _BOTH,
            "contexts (instructions, demonstrations or text)",
        ),
        MethodSpec(
            "full_prompt",
            "full prompt",
            FullPromptConfig,
            FullPrompt,
            "positive control: the LM reads the whole context",
            "",
            _BOTH,
            "contexts",
        ),
        MethodSpec(
            "no_prompt",
            "no prompt",
            NoPromptConfig,
            NoPrompt,
            "negative control: the LM reads the query alone",
            "",
            _BOTH,
            "queries",
        ),
        MethodSpec(
            "prompt_tuning",
            "prompt tuning",
            PromptTuningConfig,
            PromptTuning,
            "learned vectors per task or for all tasks, independent of the context",
            "Lester et al. 2021, arXiv 2104.08691",
            _BOTH,
            "task names (per task)",
        ),
        MethodSpec(
            "metaicl",
            "MetaICL",
            MetaICLConfig,
            MetaICL,
            "the LM itself is fine-tuned on full demonstrations",
            "Min et al. 2022, arXiv 2110.15943",
            _BOTH,
            "contexts",
        ),
        MethodSpec(
            "step_by_step",
            "step-by-step",
            StepByStepConfig,
            StepByStep,
            "a teacher's rationales are a second task for a small student",
            "Hsieh et al. 2023, arXiv 2305.02301",
            _BOTH,
            "rationales",
        ),
        MethodSpec(
            "finetune",
            "finetuning",
            FinetuneConfig,
            Finetune,
            "baseline of step_by_step: the student learns the labels alone",
            "",
            _BOTH,
            "labels",
        ),
    )
}
"""Every method by name."""
