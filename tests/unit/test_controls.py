"""Controls, the loop they share with every method, and precisions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from promptcomp.batch import Batch, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.config import ConfigError
from promptcomp.lightning_modules import METHODS, OptimConfig
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.memory import EncoderStates, KVCache, SoftPrompt
from tests.tiny_models import tiny_lm


class Example(NamedTuple):
    """What the running accuracy asks of an example."""

    number: int
    gold: int
    options: tuple[str, ...]


def make(name: str, model: str = "llama", tasks: tuple[str, ...] = ("a", "b"), **options: Any) -> CompressionModule:
    spec = METHODS[name]
    module = spec(**options).module(tiny_lm(model), OptimConfig(), max_steps=4, seed=0, task_names=tasks)
    module.configure_model()
    return module.eval()


def batch(tasks: tuple[int, int] = (0, 1)) -> Batch:
    """Two tasks; the first example has three options of different length, the second two."""
    first = EncodedQuery((3, 4), tuple(EncodedTarget(ids, i) for i, ids in enumerate([(5,), (6, 7), (8, 9, 10)])), 0)
    second = EncodedQuery((11,), tuple(EncodedTarget(ids, i) for i, ids in enumerate([(12,), (13, 14)])), 1)
    return collate([EncodedContext((20, 21, 22), (first,), tasks[0]), EncodedContext((23,), (second,), tasks[1])])


def trainer(**options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def loader(count: int = 1) -> DataLoader[Batch]:
    return DataLoader([batch()] * count, batch_size=None)  # type: ignore[arg-type]


def test_prompts_of_tasks_are_not_taken_for_those_of_others(tmp_path: Path) -> None:
    make("prompt_tuning", num_slots=2).export(tmp_path / "export")
    make("prompt_tuning", num_slots=2).load_trained(tmp_path / "export")
    with pytest.raises(
        ConfigError, match=r"its tasks \(a, b\), and the data here has others or another order \(b, a\)"
    ):
        make("prompt_tuning", tasks=("b", "a"), num_slots=2).load_trained(tmp_path / "export")
    make("prompt_tuning", num_slots=2, share="shared").export(tmp_path / "shared")
    make("prompt_tuning", tasks=("b",), num_slots=2, share="shared").load_trained(tmp_path / "shared")


def test_metaicl_averages_answers_before_batches() -> None:
    for average in ("sequence", "token"):
        module = make("metaicl", loss_average=average)
        (term,) = module.losses(batch())
        with torch.no_grad():
            total, count, _ = module.score(batch())
        expected = -(total / count).mean() if average == "sequence" else -total.sum() / count.sum()
        torch.testing.assert_close(term.total / term.count, expected)


def test_prompts_per_task_and_shared() -> None:
    each, shared = make("prompt_tuning", num_slots=2), make("prompt_tuning", num_slots=2, share="shared")
    for module, rows in ((each, [1, 0]), (shared, [0, 0])):
        memory = module.compress(batch((1, 0)).context)
        assert isinstance(memory, SoftPrompt)
        assert torch.equal(memory.embeds, module.get_parameter("prompts")[rows])
    with pytest.raises(ConfigError, match="names no tasks"):
        make("prompt_tuning", tasks=())
    with pytest.raises(ConfigError, match="task 5 has no prompt"):
        each.compress(batch((0, 5)).context)


def test_running_accuracy_and_loss_of_the_gold_option() -> None:
    module = make("full_prompt")
    with torch.no_grad():
        total, count, _ = module.score(batch())
    mean = total / count
    best = [int(mean[:3].argmax()), int(mean[3:].argmax())]
    module.watch([Example(0, best[0], ("x", "y", "z")), Example(1, 1 - best[1], ("x", "y"))])
    (logged,) = trainer().validate(module, loader(), verbose=False)
    assert logged["dev/accuracy"] == 0.5
    gold = torch.tensor([best[0], 3 + 1 - best[1]])
    assert logged["dev/loss"] == pytest.approx(float(-total[gold].sum() / count[gold].sum()), rel=1e-5)


def test_without_gold_options_only_the_loss_is_known() -> None:
    module = make("no_prompt")
    module.watch([Example(0, 0, ()), Example(1, 0, ())])
    (logged,) = trainer().validate(module, loader(), verbose=False)
    assert set(logged) == {"dev/loss", "dev/exact_match"}


def test_a_greedy_target_is_what_greedy_decoding_writes() -> None:
    module, examples = make("full_prompt"), batch()
    with torch.no_grad():
        written = module.lm.generate(module.compress(examples.context), examples, max_new_tokens=3)
        ids = examples.target_ids.clone()
        ids[2], ids[3, 0] = torch.tensor(written[0]), written[1][0]  # a target of three tokens and one of one
        is_greedy = module.score(replace(examples, target_ids=ids)).is_greedy
    assert is_greedy.tolist() == [False, False, True, True, False]


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    module = make("prompt_tuning", num_slots=2)
    with torch.no_grad():
        module.get_parameter("prompts").fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="loss of step 0 is not finite"):
        trainer(max_steps=1, num_sanity_val_steps=0).fit(module, loader(), loader())
    with pytest.raises(FloatingPointError, match=r"dev loss at step 0 is not finite \(nan\)"):
        trainer().validate(module, loader(), verbose=False)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("model", ["llama", "gpt2", "t5_query_in_decoder"])
@pytest.mark.parametrize("name", ["mend", "metaicl"])
def test_precisions(name: str, model: str, precision: str) -> None:
    options = {"num_slots": 2, "projection": "tanh"} if name == "mend" else {}
    module = make(name, model, **options)
    fit = trainer(max_steps=2, precision=precision, num_sanity_val_steps=0)
    fit.fit(module, loader(2), loader())
    assert torch.isfinite(fit.callback_metrics["train/loss"])
    assert torch.isfinite(fit.callback_metrics["dev/loss"])


def test_refuses_trained_parts_of_something_else(tmp_path: Path) -> None:
    mend = make("mend", num_slots=3)
    mend.export(tmp_path / "mend")
    with pytest.raises(ConfigError, match="made with method 'mend'"):
        make("prompt_tuning", num_slots=3).load_trained(tmp_path / "mend")
    with pytest.raises(ConfigError, match="made with family 'decoder'"):
        make("mend", "t5_query_in_decoder", num_slots=3).load_trained(tmp_path / "mend")
    with pytest.raises(ConfigError, match=r"slots has shape \(3, 32\)"):
        make("mend", num_slots=5).load_trained(tmp_path / "mend")
    with pytest.raises(ConfigError, match="tensors too many"):
        make("mend", "gpt2", num_slots=3).load_trained(tmp_path / "mend")
    with pytest.raises(ConfigError, match="does not exist"):
        mend.load_trained(tmp_path / "nothing")
    (tmp_path / "bad.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigError, match="cannot be read as a checkpoint"):
        mend.load_trained(tmp_path / "bad.ckpt")


@pytest.mark.parametrize(
    ("name", "options", "model", "kind"),
    [
        ("gist", {"num_slots": 3}, "llama", KVCache),
        ("gist", {"num_slots": 3}, "t5_query_in_decoder", EncoderStates),
        ("gist", {"num_slots": 3}, "t5_query_in_encoder", EncoderStates),
        ("mend", {"num_slots": 3}, "t5_query_in_decoder", SoftPrompt),
        ("mend", {"num_slots": 3, "slots_in": "decoder", "slots": "states"}, "t5_query_in_decoder", EncoderStates),
        ("prompt_tuning", {"num_slots": 3}, "gpt2", SoftPrompt),
        ("full_prompt", {}, "gpt2", KVCache),
        ("full_prompt", {}, "t5_query_in_decoder", EncoderStates),
        ("metaicl", {}, "t5_query_in_encoder", SoftPrompt),
    ],
)
def test_kinds_of_memory(name: str, options: dict[str, Any], model: str, kind: type) -> None:
    module, context = make(name, model, **options), batch().context
    memory = module.compress(context)
    assert isinstance(memory, kind)
    length = context.mask.sum(-1).tolist()
    assert memory.num_slots.tolist() == ([3, 3] if "num_slots" in options else length)
