"""A trained run serves without the models that only its training needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from promptcomp.language_model import LanguageModelConfig
from promptcomp.lightning_modules import METHODS, MethodConfig
from promptcomp.run.opening import open_trained, open_trained_lm, open_trained_module
from tests.prompt_runs import DATA, save_lm, save_run

RATIONALES = {"name": "toy_rationales", "train_count": 8, "world": {"dev_rows": 2, "test_rows": 2}}
METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "gist": {"kl_weight": 1.0, "teacher": "gone"},
    "step_by_step": {"teacher": {"path": "gone"}, "jsd_beta": 0.5, "on_policy_share": 0.5},
    "full_prompt": {"train": "lm"},
    "no_prompt": {"train": "lora"},
    "mend": {"num_slots": 2},
    "prompt_tuning": {"num_slots": 2, "share": "shared"},
}
"""Beside `init_from`: what makes a method open models to train."""


def _with(config: Path, settings: dict[str, Any]) -> None:
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    tree["method"] |= settings
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")


@pytest.mark.parametrize("name", list(METHODS))
def test_a_trained_run_needs_neither_its_teacher_nor_its_start(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lm = save_lm(tmp_path / "lm", "gpt2", world="toy_student" if name == "step_by_step" else "toy_decoder")
    settings = METHOD_SETTINGS.get(name, {})
    plain = {key: value for key, value in settings.items() if key in ("train", "num_slots", "share")}
    run = save_run(tmp_path / "run", lm, {"name": name, **plain}, data=RATIONALES if name == "step_by_step" else DATA)
    start = {"init_from": "gone"} if "init_from" in METHODS[name].model_fields else {}
    _with(run / "config.yaml", settings | start)
    experiment, _, _ = open_trained(run)
    assert experiment.method.model_dump(include=set(start)) == start  # told as it was trained
    open_trained_module(run)
    open_trained_lm(run)


@pytest.mark.parametrize("config", METHODS.values())
def test_no_setting_that_opens_a_model_is_left(config: type[MethodConfig]) -> None:
    """Whoever adds such a setting (a path, or a section of another LM) has to say that it is for training alone."""
    stays = {"distiller", "encoder"}  # what is trained has its architecture
    for name, field in config.model_fields.items():
        if name in stays or not (
            name == "init_from" or LanguageModelConfig in getattr(field.annotation, "__args__", ())
        ):
            continue
        value = "x" if name == "init_from" else LanguageModelConfig(path="x")
        filled = config().model_copy(update={name: value})
        assert getattr(filled.without_training(), name) is None, name
