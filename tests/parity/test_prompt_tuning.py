"""Prompt tuning (P1 per task, P2 shared) against the original: training loss and option scores, in float64."""

from __future__ import annotations

import pytest
import torch
from golden_mend import DATA, Case, gpt2
from safetensors.torch import load_file

from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules import OptimConfig
from promptcomp.lightning_modules.controls import PromptTuning
from promptcomp.lightning_modules.controls_config import PromptTuningConfig


def prompt_tuning(name: str, share: str) -> PromptTuning:
    tensors = load_file(DATA / "weights_A_pooled.safetensors")
    llm = {k.removeprefix("llm.transformer."): v for k, v in tensors.items() if k.startswith("llm.")}
    module = PromptTuning(
        PromptTuningConfig(num_slots=5, share=share),
        LanguageModel.from_parts(gpt2(llm, 48, 3)),
        OptimConfig(),
        max_steps=1,
        seed=0,
        task_names=("a", "b", "c"),
    )
    module.configure_model()
    table = Case(name)["in/prompt_table"].view(3, 5, 48)
    with torch.no_grad():
        module.prompts.copy_(table[: module.prompts.shape[0]])
    return module.double()


@pytest.mark.parametrize(
    ("name", "share"), [("P1_prompt_tuning_per_task", "per_task"), ("P2_prompt_tuning_shared", "shared")]
)
def test_loss_and_scores(name: str, share: str) -> None:
    module = prompt_tuning(name, share)
    batch = Case("A2_finetune_b3_pad").batch()
    tasks = Case(name)["in/task_idx"].flatten()
    batch.context.task.copy_(tasks)
    (term,) = module.losses(batch)
    assert (term.total / term.count).item() == pytest.approx(Case(name).numbers["ce_loss"], abs=1e-9)

    case = Case(f"{name}_eval")
    options = case.option_batch(tasks=[0, 1, 2])
    with torch.no_grad():
        scores = module.score(options)
    ours = (scores.sum_log_prob / scores.num_tokens).tolist()
    theirs = [value for row in case.numbers["option_scores"] for value in row if value > -10000]
    assert ours == pytest.approx(theirs, abs=1e-9)
