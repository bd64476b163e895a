"""What `pool` and `icae` share: spans, another encoder, BOS, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import promptcomp
from promptcomp.batch import Context
from promptcomp.config import ConfigError, build
from promptcomp.datamodules.sampler import Draw
from promptcomp.experiment import load
from promptcomp.language_model import LanguageModelConfig
from promptcomp.lightning_modules import METHODS, OptimConfig
from promptcomp.lightning_modules.encoder_config import IcaeConfig, PoolConfig
from promptcomp.lightning_modules.encoder_module import EncoderModule, sharing_weights
from promptcomp.lightning_modules.pool import spans
from promptcomp.memory import SoftPrompt
from promptcomp.run.configured import experiment_of
from promptcomp.run.opening import make_data
from promptcomp.run.run_directory import RunDirectory
from tests.tiny_models import save_tokenizer, tiny_hf, tiny_lm


def made(lm: Any, name: str = "pool", **options: Any) -> EncoderModule:
    module = METHODS[name](**options).module(lm, OptimConfig(), max_steps=1, seed=0)
    assert isinstance(module, EncoderModule)
    module.configure_model()
    return module.eval()


def context(*rows: tuple[int, ...]) -> Context:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return Context(ids, mask, torch.zeros(len(rows), dtype=torch.long))


def test_spans_are_equal_in_order_and_cover_every_token_once() -> None:
    lengths = (11, 3, 0, 1, 4)
    mask = torch.arange(11) >= 11 - torch.tensor(lengths)[:, None]
    member, real = spans(mask, 4)
    assert real.sum(-1).tolist() == [4, 3, 0, 1, 4]
    for length, members, slots in zip(lengths, member, real, strict=True):
        sizes = members[slots][:, 11 - length :].sum(-1)
        assert sizes.sum() == length
        assert not length or sizes.max() - sizes.min() <= 1
        firsts = [int(row.nonzero()[0]) for row in members[slots]]
        assert firsts == sorted(firsts)
        assert not members[~slots].any()
    assert spans(mask[:, :0], 4)[0].shape == (5, 0, 0)


def test_means_leave_bos_out() -> None:
    lm = tiny_lm("llama")
    lm.bos_id = 1
    module = made(lm, num_slots=2, projection="none", train_encoder="none")
    memory = module.compress(context((5, 6, 7, 8), (9, 10)))
    assert isinstance(memory, SoftPrompt)
    states = lm.hf.model(torch.tensor([[1, 5, 6, 7, 8]])).last_hidden_state[0, 1:]
    torch.testing.assert_close(memory.embeds[0], states.view(2, 2, -1).mean(1), rtol=0, atol=1e-5)


def test_a_smaller_encoder_is_projected(tmp_path: Path) -> None:
    tiny_hf("llama", seed=3, width=16).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    for name in ("pool", "icae"):
        module = made(tiny_lm("llama"), name, num_slots=3, encoder={"path": str(tmp_path)})
        memory = module.compress(context((5, 6, 7, 8)))
        assert isinstance(memory, SoftPrompt)
        assert memory.embeds.shape == (1, 3, 32)
    with pytest.raises(ConfigError, match="the encoder has width 16, the LM 32; use 'linear'"):
        made(tiny_lm("llama"), projection="none", encoder={"path": str(tmp_path)})


def test_shared_weights_are_the_same_tensors() -> None:
    lm = tiny_lm("gpt2")
    other = sharing_weights(lm)
    assert other.hf is not lm.hf
    assert all(mine is theirs for mine, theirs in zip(lm.parameters(), other.parameters(), strict=True))


def test_models_that_cannot_read_both_ways_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    made(lm, attention="bidirectional")
    pattern = type(lm.pattern)
    causal = lambda self, sees, *rest, **more: self.padded(sees[:, -1], rest[0], rest[2])  # noqa: E731
    monkeypatch.setattr(pattern, "mask", causal)
    with pytest.raises(ConfigError, match="models of type 'llama' read one way; use causal"):
        made(lm, attention="bidirectional")


def test_keys_and_values_of_another_encoder_are_refused() -> None:
    with pytest.raises(ConfigError, match="keys and values of another encoder mean nothing to the LM"):
        build(IcaeConfig, {"slots": "kv", "encoder": {"path": "somewhere"}})


@pytest.mark.parametrize(
    ("section", "most"),
    [
        (PoolConfig(num_slots=16), 127),
        (PoolConfig(num_slots=16, reconstruction_weight=0.5), 110),
        (IcaeConfig(num_slots=16), 111),
        (IcaeConfig(num_slots=16, reconstruction_weight=0.5), 110),
    ],
)
def test_contexts_that_do_not_fit_the_window(section: Any, most: int) -> None:
    assert section.window_problem(128, most) is None
    assert f"data.max_context_tokens={most} or less" in section.window_problem(128, most + 1)


def test_an_encoder_of_its_own_has_its_own_window(tmp_path: Path) -> None:
    tiny_hf("llama").save_pretrained(tmp_path)  # 128 positions
    section = PoolConfig(encoder=LanguageModelConfig(path=str(tmp_path)))
    assert section.window_problem(64, 127) is None
    assert "the encoder's window of 128; set data.max_context_tokens=127 or" in section.window_problem(512, 128)
    again = section.model_copy(update={"reconstruction_weight": 0.5})
    assert "the LM's window of 64; set data.max_context_tokens=46 or less" in again.window_problem(64, 47)


SHORT = {
    "lm__from_scratch": {"settings": {"max_position_embeddings": 64, "num_hidden_layers": 1}},
    "method__train": "lm",
    "data__max_example_tokens": 16,
    "data__max_context_tokens": 190,
}


def test_contexts_beyond_the_window_are_read_in_segments(tmp_path: Path) -> None:
    settings = {**SHORT, "method__segments": 6, "method__num_slots": 6, "data__max_eval_tasks": 2}
    settings |= {"data__max_eval_queries": 2, "data__max_dev_tasks": 1, "evaluation__measure_cost": False}
    settings |= {"trainer__max_steps": 2, "trainer__batch_size": 2, "trainer__eval_every": 2}
    with pytest.raises(ConfigError, match=r"window of 64.*longer contexts in segments.* evaluation\.bounds=false"):
        promptcomp.fit("autocompressor", run_dir=tmp_path / "whole", **settings)
    with pytest.raises(ConfigError, match=r"method\.segments = 2: a segment of a context of 190 tokens"):
        promptcomp.fit("autocompressor", evaluation__bounds=False, **{**settings, "method__segments": 2})
    slots = {"method__num_slots": 48, "data__max_context_tokens": 48, "data__num_demonstrations": 3}
    with pytest.raises(ConfigError, match=r"num_slots = 48: with a query and its answer of 16 tokens .* window of 64"):
        promptcomp.fit("autocompressor", evaluation__bounds=False, **{**settings, **slots, "method__segments": 48})
    run = promptcomp.fit("autocompressor", run_dir=tmp_path / "run", evaluation__bounds=False, **settings)
    context = make_data(experiment_of(RunDirectory(run.path))).train_context(Draw(0, 0))
    assert len(context.ids) > 64
    assert len(run.metrics) == 1


def test_slots_behind_a_context_count_in_the_window() -> None:
    budgets = [f"data.max_{part}_tokens={size}" for part, size in (("context", 200), ("query", 200), ("target", 111))]
    experiment = load("gist", None, budgets)
    experiment.check(trains=False)
    with pytest.raises(ConfigError, match=r"exceed the LM's window of 511 .*its 512 positions less 1 for the slots"):
        experiment.check()
    load("gist", None, [*budgets, "data.max_target_tokens=110"]).check()
