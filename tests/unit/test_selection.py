"""Which weights are the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from promptcomp.checkpoints.saving import BestCheckpoint
from promptcomp.config import ConfigError, build
from promptcomp.experiment import Experiment, TrainerConfig
from promptcomp.run.opening import make_parts
from promptcomp.run.trainer import monitor_of


def data(name: str) -> Any:
    lm = {"path": "builtin:toy_decoder" if name == "toy_icl" else "builtin:toy_instructions"}
    tree = {"method": {"name": "prompt_tuning"}, "data": {"name": name}, "lm": lm}
    return make_parts(build(Experiment, tree))[0]


def test_options_are_chosen_by_accuracy_and_free_answers_by_loss_unless_told_otherwise() -> None:
    options, free = data("toy_icl"), data("toy_instructions")
    assert monitor_of(TrainerConfig(), options) == ("dev/accuracy", "max")
    assert monitor_of(TrainerConfig(), free) == ("dev/loss", "min")
    assert monitor_of(TrainerConfig(select_by="exact_match"), free) == ("dev/exact_match", "max")
    with pytest.raises(ConfigError, match="no options; use loss"):
        monitor_of(TrainerConfig(select_by="accuracy"), free)
    assert monitor_of(TrainerConfig(select_by="exact_match"), options) == ("dev/accuracy", "max")


def test_without_a_dev_split_what_would_read_it_is_refused() -> None:
    none = Mock(eval_splits=("test",))
    assert monitor_of(TrainerConfig(), none) is None
    with pytest.raises(ConfigError, match=r"trainer.patience needs a dev split, .* set it to null"):
        monitor_of(TrainerConfig(patience=2), none)
    with pytest.raises(ConfigError, match=r"trainer.select_by needs a dev split, .* set it to auto"):
        monitor_of(TrainerConfig(select_by="loss"), none)


def test_of_equal_results_the_lower_loss_is_better(tmp_path: Path) -> None:
    def chosen(results: list[tuple[float, float]], split_at: int) -> list[bool]:
        found = []
        callback = BestCheckpoint(tmp_path / "best.ckpt", "dev/exact_match", "max")
        for number, (exact, loss) in enumerate(results):
            if number == split_at:  # a stop and a resumption
                state = callback.state_dict()
                callback = BestCheckpoint(tmp_path / "best.ckpt", "dev/exact_match", "max")
                callback.load_state_dict(state)
            current = torch.tensor(exact)
            trainer = Mock(callback_metrics={"dev/exact_match": current, "dev/loss": torch.tensor(loss)})
            trainer.strategy.reduce_boolean_decision = bool
            found.append(callback.check_monitor_top_k(trainer, current))
            if found[-1]:
                callback.best_k_models = {"best": current}
                callback.kth_best_model_path = callback.best_model_path = "best"
                callback.best_model_score = current
        return found

    results = [(0.0, 2.0), (0.0, 3.0), (0.0, 1.0), (0.5, 4.0), (0.5, 4.0), (0.5, 3.0), (0.4, 0.1)]
    expected = [True, False, True, True, False, True, False]
    for split_at in range(len(results)):
        assert chosen(results, split_at) == expected


def test_the_best_weights_of_a_run_that_was_moved_stay_the_best(tmp_path: Path) -> None:
    before = BestCheckpoint(tmp_path / "run" / "best.ckpt", "dev/accuracy", "max")
    before.best_k_models = {str(tmp_path / "run" / "best.ckpt"): torch.tensor(0.9)}
    before.best_model_path = before.kth_best_model_path = str(tmp_path / "run" / "best.ckpt")
    before.best_model_score = torch.tensor(0.9)
    callback = BestCheckpoint(tmp_path / "moved" / "best.ckpt", "dev/accuracy", "max")
    callback.load_state_dict(before.state_dict())
    assert callback.best_model_path == str(tmp_path / "moved" / "best.ckpt")
    trainer = Mock(callback_metrics={"dev/loss": torch.tensor(1.0)})
    trainer.strategy.reduce_boolean_decision = bool
    assert [callback.check_monitor_top_k(trainer, torch.tensor(each)) for each in (0.8, 0.95)] == [False, True]
