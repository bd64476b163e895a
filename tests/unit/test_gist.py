"""Gist tokens: where they start, what trains, and that both arrangements say the same."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from promptcomp.batch import Batch, EncodedContext, EncodedQuery, EncodedTarget
from promptcomp.config import ConfigError, build
from promptcomp.datamodules.sampler import Draw
from promptcomp.datamodules.sections import Reader, TextConfig
from promptcomp.datamodules.text import Documents, TextDataModule
from promptcomp.experiment import load
from promptcomp.language_model import LanguageModel, LanguageModelConfig, open_tokenizer
from promptcomp.lightning_modules import OptimConfig
from promptcomp.lightning_modules.gist import Gist
from promptcomp.lightning_modules.gist_config import GistConfig
from promptcomp.memory import EncoderStates, KVCache
from tests.gist_modules import CONTEXTS, DECODERS, EVERY, batch, gist, method, saved, steps, total, value
from tests.tiny_models import tiny_lm

# ---- one method for every family


@pytest.mark.parametrize(("model", "attention"), EVERY)
def test_joint_and_split_have_the_same_loss_and_gradients(model: str, attention: str) -> None:
    found = []
    for arrangement in ("joint", "split"):
        module = gist(model, attention, arrangement=arrangement)
        loss = total(module, batch())
        loss.backward()
        assert module.gist.grad is not None
        table = module.lm.hf.get_input_embeddings().weight.grad
        found.append((loss.detach(), module.gist.grad, table))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("model", "attention"), EVERY)
@torch.no_grad()
def test_a_memory_stands_alone(model: str, attention: str) -> None:
    """No peeking: once compressed, a prompt may be overwritten; company, padding and the query change nothing."""
    module = gist(model, attention)
    whole = batch()
    memory = module.compress(whole.context)
    assert isinstance(memory, KVCache if model in DECODERS else EncoderStates)
    assert memory.num_slots.tolist() == [2, 2, 2]
    before = module.lm.score(memory, whole).sum_log_prob
    whole.context.ids.fill_(1)
    assert torch.equal(module.lm.score(memory, whole).sum_log_prob, before)
    alone = torch.cat([module.score(batch(context)).sum_log_prob for context in CONTEXTS])
    torch.testing.assert_close(alone, before, rtol=0, atol=2e-5)
    assert module.score(whole).sum_log_prob[0] != before[0]  # another prompt, another memory


def test_a_window_shorter_than_prompt_and_query() -> None:
    """Mistral's layers look back 7 tokens: behind a query longer than that even the gist tokens are out of sight."""
    module = gist("mistral")
    assert module.lm.pattern is not None
    assert module.lm.pattern.window == 7
    long = EncodedContext(tuple(range(5, 20)), (EncodedQuery(tuple(range(20, 36)), (EncodedTarget((40, 41)),)),))
    joint, split = (total(gist("mistral", arrangement=a), batch(long)) for a in ("joint", "split"))
    torch.testing.assert_close(joint, split, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("arrangement", ["joint", "split"])
def test_positions_behind_a_memory_are_held_against_the_window(model: str, arrangement: str) -> None:
    """Two columns stand for a prompt of 22 positions: what is behind them is at 22 and not at 2."""
    module = gist(model, arrangement=arrangement)
    module.lm._window = replace(module.lm._window, size=30)
    long = EncodedContext(tuple(range(5, 25)), (EncodedQuery(tuple(range(20, 30)), (EncodedTarget((40, 41)),)),))
    with pytest.raises(ConfigError, match=r"positions, more than the LM's window of 30"):
        total(module, batch(long))


# ---- the embedding


def test_the_embedding_starts_at_the_mean_of_the_tokens() -> None:
    table = tiny_lm("llama").hf.get_input_embeddings().weight
    shared, own = gist(num_slots=3), gist(num_slots=3, shared_embedding=False)
    torch.testing.assert_close(shared.gist.detach(), table.mean(0, keepdim=True))
    assert shared.slots().shape == own.slots().shape == (3, 32)
    assert own.gist.shape == (3, 32)
    assert not torch.equal(own.gist[0], own.gist[1])
    assert torch.equal(own.gist, gist(num_slots=3, shared_embedding=False).gist)


def test_the_embedding_of_a_token_that_is_there(tmp_path: Path) -> None:
    config = saved(tmp_path)
    module = gist(config, gist_token="w9")
    assert torch.equal(module.gist[0], module.lm.embed(torch.tensor(9)))
    with pytest.raises(ConfigError, match="'<GIST>': the LM's tokenizer has no such token"):
        gist(config, gist_token="<GIST>")
    assert open_tokenizer(config).get_vocab() == module.lm.tokenizer.get_vocab()  # type: ignore[union-attr]


def test_numbers_of_gist_tokens_that_make_no_sense() -> None:
    for number in (0, -1):
        with pytest.raises(ConfigError, match="num_slots"):
            build(GistConfig, {"num_slots": number})
    with pytest.raises(ConfigError, match=r"num_slots = 126 leaves no room .* window of 128; use at most 125"):
        gist(num_slots=126)
    assert gist("t5_query_in_encoder", num_slots=126).slots().shape == (126, 32)


def test_parts_of_another_number_of_gist_tokens_are_refused(tmp_path: Path) -> None:
    gist(num_slots=1, train="none").export(tmp_path)
    with pytest.raises(ConfigError, match=r"made with method\.num_slots = 1, but this run uses 2"):
        gist(init_from=str(tmp_path), train="none")
    assert gist(num_slots=1, init_from=str(tmp_path), train="none").gist.shape == (1, 32)


def test_training_starts_from_another_run(tmp_path: Path) -> None:
    for train in ("lm", "lora", "none"):
        first = gist(train=train)
        steps(first, 2)
        first.export(tmp_path / train / "export")
        second = gist(train=train, init_from=str(tmp_path / train))
        assert value(second) == pytest.approx(value(first), rel=1e-5)


# ---- what is trained


@pytest.mark.parametrize("model", ["gpt2", "llama", "opt", "t5_query_in_encoder"])
@pytest.mark.parametrize("name", ["gist", "full_prompt", "no_prompt"])
def test_adapters(name: str, model: str) -> None:
    module = method(name, model, train="lora", lora={"rank": 2, "dropout": 0.1})
    before = value(module)
    plain = method(name, model, train="lm")
    assert before == pytest.approx(value(plain), rel=1e-6)  # adapters start as nothing
    names = module.trained_parameters()
    assert all(".lora_" in each or each == "gist" for each in names)
    assert not any("lm_head" in each for each in names)
    assert sum(".lora_" in each for each in names) >= 2 * 2 * 4
    module.train()
    assert module.lm.training
    assert steps(module, 4)[-1] < before
    assert not module.lm.training


def test_adapters_on_chosen_layers() -> None:
    names = gist(train="lora", lora={"targets": ["q_proj"]}).trained_parameters()
    assert len(names) == 1 + 2 * 2
    with pytest.raises(ConfigError, match="no linear layer 'c_attn'; it has down_proj"):
        gist(train="lora", lora={"targets": ["c_attn"]})


def test_adapters_need_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r'pip install "promptcomp\[lora\]"'):
        gist(train="lora")
    with pytest.raises(ConfigError, match="needs the package peft"):  # before there is a run directory
        load("gist_lora", None).check()


def test_controls_train_only_where_they_are_told_to() -> None:
    for name in ("full_prompt", "no_prompt"):
        untrained, trained = method(name), method(name, train="lm")
        assert not untrained.method.trains
        assert trained.method.trains
        assert not untrained.trained_parameters()
        assert set(trained.trained_parameters()) == {f"lm.{each}" for each, _ in trained.lm.named_parameters()}
        assert torch.equal(untrained.score(batch()).sum_log_prob, trained.score(batch()).sum_log_prob)
        assert not untrained.train().lm.training
        assert trained.train().lm.training
        losses = steps(trained, 5)
        assert losses[-1] < 0.9 * losses[0]


# ---- other data


def test_plain_text_pretrains_gist_tokens(tmp_path: Path) -> None:
    """Data of kind `text` has the shape that pretraining needs: a span, then what follows it."""
    lines = "\n\n".join(" ".join(f"w{5 + (i * j) % 50}" for j in range(24)) for i in range(1, 9))
    (tmp_path / "text.txt").write_text(lines)
    config = TextConfig(paths=(tmp_path / "text.txt",), context_share=0.6, dev_documents=0)
    data = TextDataModule(config, Documents(config), Reader(open_tokenizer(saved(tmp_path / "lm")), 0, 4))
    module = gist(saved(tmp_path / "lm"), num_slots=2)
    rows = batch(*(data.train_context(Draw(index, index)) for index in range(4)))
    losses = steps(module, 8, rows)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("path", ["huggyllama/llama-7b", "google/flan-t5-base"])
def test_dry_run_of_the_papers_sizes(path: str) -> None:
    """T5-xxl through the program: tests/cli/test_other_commands.py."""
    sizes = {"huggyllama/llama-7b": 6_738_415_616}
    for options in ({}, {"train": "lora"}, {"kl_weight": 1.0, "teacher": "a/run", "init_from": "a/run"}):
        config = GistConfig(**options)
        module = Gist(config, LanguageModelConfig(path=path), OptimConfig(), max_steps=1, seed=0, skeleton=True)
        module.configure_model()
        assert {p.device.type for p in module.parameters()} == {"meta"}
        assert isinstance(module.lm, LanguageModel)
        base = sum(p.numel() for name, p in module.lm.named_parameters() if ".lora_" not in name)
        assert base == sizes.get(path, base)
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        assert (trained < 0.1 * base) == (config.train == "lora")
        assert module.compress_flops(26) > 0
        assert len(module.passes(26, 40, 1)) == 1 + bool(config.kl_weight)


# ---- in a trainer


def trainer(**options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(accelerator="cpu", enable_model_summary=False, num_sanity_val_steps=0, **quiet, **options)


def loader(count: int) -> DataLoader[Batch]:
    return DataLoader([batch()] * count, batch_size=None)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:Found .* in eval mode")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("model", ["llama", "gpt2", "t5_query_in_encoder"])
@pytest.mark.parametrize("train", ["lm", "lora"])
def test_precisions(train: str, model: str, precision: str) -> None:
    module = gist(model, train=train, kl_weight=0.5)
    fit = trainer(max_steps=2, precision=precision)
    fit.fit(module, loader(2), loader(1))
    assert torch.isfinite(fit.callback_metrics["train/loss"])
    assert torch.isfinite(fit.callback_metrics["dev/loss"])


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:Found .* in eval mode")
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:You defined a `validation_step`")
@pytest.mark.parametrize("train", ["lm", "lora"])
def test_a_resumed_run_ends_with_the_same_weights(train: str, tmp_path: Path) -> None:
    """With the dropout of T5 and of the adapters."""

    def run(start: int, end: int, checkpoint: Path | None = None) -> tuple[Gist, L.Trainer]:
        module = gist("t5_query_in_encoder", train=train, kl_weight=0.5, lora={"dropout": 0.2})
        fit = trainer(max_steps=end)
        fit.fit(module, loader(end - start), ckpt_path=checkpoint, weights_only=True)
        return module, fit

    whole, _ = run(0, 4)
    _, half = run(0, 2)
    half.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    resumed, _ = run(2, 4, tmp_path / "half.ckpt")
    expected = whole.trained_tensors()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.trained_tensors().items())
