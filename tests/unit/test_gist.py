"""Gist tokens: where they start, who teaches them, what trains, and that both arrangements say the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from promptcomp.batch import Batch, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.config import ConfigError, build
from promptcomp.datamodules.sampler import Draw
from promptcomp.datamodules.text import TextConfig, TextDataModule
from promptcomp.language_model import LanguageModel, LanguageModelConfig, open_tokenizer
from promptcomp.lightning_modules import METHODS, CompressionModule, OptimConfig
from promptcomp.lightning_modules.gist import Gist, GistConfig
from promptcomp.memory import EncoderStates, KVCache
from tests.tiny_models import save_tokenizer, tiny_hf, tiny_lm

DECODERS = ("gpt2", "llama", "qwen3", "mistral", "opt")
ENCODERS = ("t5_query_in_encoder", "t5_query_in_decoder", "t5v11_query_in_encoder")
EVERY = [(model, attention) for model in (*DECODERS, *ENCODERS) for attention in ("eager", "sdpa")]
CONTEXTS = (
    EncodedContext(
        tuple(range(5, 17)),
        (EncodedQuery((20, 21, 22), (EncodedTarget((30, 31)),)), EncodedQuery((23,), (EncodedTarget((33, 34)),))),
    ),
    EncodedContext((40, 41), (EncodedQuery((24, 25, 26, 27, 28), (EncodedTarget((36, 37)),)),)),
    EncodedContext((), (EncodedQuery((29, 30), (EncodedTarget((38,)),)),)),
)


def batch(*contexts: EncodedContext) -> Batch:
    return collate(contexts or CONTEXTS, 0)


def method(name: str = "gist", lm: Any = "llama", attention: str = "sdpa", **options: Any) -> Any:
    if isinstance(lm, str):
        lm = tiny_lm(lm)
        lm.hf.set_attn_implementation(attention)
    spec = METHODS[name]
    optim = OptimConfig(lr=1e-2, schedule="constant")
    module = spec.module(spec.config(**options), lm, optim, max_steps=6, seed=0)
    module.configure_model()
    return module.eval()


def gist(lm: Any = "llama", attention: str = "sdpa", **options: Any) -> Gist:
    return method("gist", lm, attention, **{"num_slots": 2, **options})


def saved(folder: Path, kind: str = "llama") -> LanguageModelConfig:
    tiny_hf(kind).save_pretrained(folder)
    save_tokenizer(folder)
    return LanguageModelConfig(path=str(folder))


def total(module: CompressionModule, on: Batch) -> Tensor:
    """The training loss."""
    return torch.stack([term.weight * term.total / term.count for term in module.losses(on)]).sum()


def value(module: CompressionModule) -> float:
    return float(total(module, batch()).detach())


def steps(module: CompressionModule, count: int, on: Batch | None = None) -> list[float]:
    """A few plain optimiser steps; the loss before each."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=5e-3)
    module.train()
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = total(module, on or batch())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    module.eval()
    return losses


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
    names = module.trained_names()
    assert all(".lora_" in each or each == "gist" for each in names)
    assert not any("lm_head" in each for each in names)
    assert sum(".lora_" in each for each in names) >= 2 * 2 * 4
    module.train()
    assert module.lm.training
    assert steps(module, 4)[-1] < before
    assert not module.lm.training


def test_adapters_on_chosen_layers() -> None:
    names = gist(train="lora", lora={"targets": ["q_proj"]}).trained_names()
    assert len(names) == 1 + 2 * 2
    with pytest.raises(ConfigError, match="no linear layer 'c_attn'; it has down_proj"):
        gist(train="lora", lora={"targets": ["c_attn"]})


def test_adapters_need_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r'pip install "promptcomp\[lora\]"'):
        gist(train="lora")


def test_controls_train_only_where_they_are_told_to() -> None:
    for name in ("full_prompt", "no_prompt"):
        untrained, trained = method(name), method(name, train="lm")
        assert not untrained.trainable
        assert trained.trainable
        assert not untrained.trained_names()
        assert set(trained.trained_names()) == {f"lm.{each}" for each, _ in trained.lm.named_parameters()}
        assert torch.equal(untrained.score(batch()).sum_log_prob, trained.score(batch()).sum_log_prob)
        assert not untrained.train().lm.training
        assert trained.train().lm.training
        losses = steps(trained, 5)
        assert losses[-1] < 0.9 * losses[0]


# ---- teachers


def teacher_logits(module: Gist) -> Tensor:
    return module._teach(batch(), "targets")


@pytest.mark.parametrize("train", ["lm", "lora", "none"])
def test_the_initial_teacher_does_not_move(train: str) -> None:
    lm = tiny_lm("t5_query_in_encoder")  # has dropout
    with torch.no_grad():
        first = lm(lm.encode(batch().context), batch()).values
    module = gist(lm, train=train, kl_weight=0.5)
    assert (module.teacher is not None) == (train == "lm")
    assert not any(name.startswith("teacher") for name in module.trained_names())
    before = value(module)
    assert steps(module, 5)[-1] < before
    module.train()
    torch.testing.assert_close(teacher_logits(module), first, rtol=0, atol=1e-6)
    assert module.lm.training is (train != "none")


def test_the_lm_of_the_moment_as_teacher() -> None:
    module = gist(kl_weight=1.0, teacher="self")
    assert module.teacher is None
    steps(module, 2)
    with torch.no_grad():
        now = module.lm(module.lm.encode(batch().context), batch()).values
    torch.testing.assert_close(teacher_logits(module), now, rtol=0, atol=1e-6)


@pytest.mark.parametrize("train", ["lm", "lora"])
@pytest.mark.parametrize("student", ["lm", "lora"])
def test_a_trained_full_prompt_as_teacher(student: str, train: str, tmp_path: Path) -> None:
    control = method("full_prompt", train=train, lora={"rank": 3, "targets": ["q_proj", "up_proj"]})
    steps(control, 3)
    control.export(tmp_path / "export")
    module = gist(train=student, kl_weight=1.0, teacher=str(tmp_path))
    with torch.no_grad():
        theirs = control.lm(control.compress(batch().context), batch()).values
    torch.testing.assert_close(teacher_logits(module), theirs, rtol=0, atol=1e-6)
    assert [term.name for term in module.losses(batch())] == ["ce", "kl"]


def test_teachers_that_do_not_fit(tmp_path: Path) -> None:
    gist(train="none").export(tmp_path / "gist")
    with pytest.raises(ConfigError, match="made with method 'gist'"):
        gist(kl_weight=1.0, teacher=str(tmp_path / "gist"))
    method("full_prompt", "gpt2", train="lm").export(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match="does not fit this configuration"):
        gist(kl_weight=1.0, teacher=str(tmp_path / "gpt2"))
    with pytest.raises(ConfigError, match="does not exist"):
        gist(kl_weight=1.0, teacher=str(tmp_path / "missing"))
    gist(teacher="missing")  # not asked


def test_terms_of_the_loss() -> None:
    module = gist(kl_weight=0.5, full_prompt_weight=0.25, kl_positions="all")
    terms = {term.name: term for term in module.losses(batch())}
    assert [(name, term.weight) for name, term in terms.items()] == [("ce", 1.0), ("full_ce", 0.25), ("kl", 0.5)]
    tokens = int(batch().query_mask.sum() + batch().target_mask.sum())
    assert terms["kl"].count == tokens
    score = method("full_prompt").score(batch())
    torch.testing.assert_close(terms["full_ce"].total, -score.sum_log_prob.sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [*DECODERS, *ENCODERS])
@pytest.mark.parametrize("arrangement", ["joint", "split"])
@torch.no_grad()
def test_the_prompt_is_said_again_from_the_gist_tokens(model: str, arrangement: str) -> None:
    """Equal to prompts as targets, one at a time, behind their own gist tokens."""
    module = gist(model, arrangement=arrangement, reconstruction_weight=0.3)
    terms = {term.name: term for term in module.losses(batch())}
    assert terms["reconstruction"].weight == 0.3
    expected, count = 0.0, 0
    for context in CONTEXTS:
        query = EncodedQuery((module.lm.end_id,), (EncodedTarget(context.ids),))
        if context.ids:
            alone = batch(EncodedContext(context.ids, (query,)))
            expected -= float(module.lm.score(module.compress(alone.context), alone).sum_log_prob)
            count += len(context.ids)
    assert int(terms["reconstruction"].count) == int(module.counts(batch())["reconstruction"]) == count
    assert float(terms["reconstruction"].total) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("model", ["llama", "t5_query_in_encoder"])
def test_nothing_to_say_again(model: str) -> None:
    """Contexts without a token give a term of nothing."""
    on = batch(EncodedContext((), (EncodedQuery((29, 30), (EncodedTarget((38,)),)),)))
    term = next(t for t in gist(model, reconstruction_weight=1.0).losses(on) if t.name == "reconstruction")
    assert (float(term.total.detach()), int(term.count)) == (0.0, 0)


def test_saying_the_prompt_again_is_learnt() -> None:
    """One gist token comes to hold all tokens of three prompts, and nothing but the option asks for them."""
    contexts = [
        EncodedContext(ids, (EncodedQuery((20,), (EncodedTarget((30,)),)),))
        for ids in ((5, 9, 7, 11), (8, 6), (10, 5, 12, 6, 9))
    ]
    found = []
    for weight in (0.0, 1.0):
        module = gist("llama", num_slots=1, reconstruction_weight=weight)
        steps(module, 60, batch(*contexts))
        asked = gist(module.lm, num_slots=1, reconstruction_weight=1.0)
        asked.load_state_dict(module.state_dict())
        term = next(t for t in asked.losses(batch(*contexts)) if t.name == "reconstruction")
        found.append(float(term.total.detach()) / int(term.count))
    assert found[1] < 0.5 < 1.5 < found[0]


# ---- other data


def test_plain_text_pretrains_gist_tokens(tmp_path: Path) -> None:
    """Data of kind `text` has the shape that pretraining needs: a span, then what follows it."""
    lines = "\n\n".join(" ".join(f"w{5 + (i * j) % 50}" for j in range(24)) for i in range(1, 9))
    (tmp_path / "text.txt").write_text(lines)
    config = TextConfig(paths=(tmp_path / "text.txt",), context_share=0.6, dev_documents=0)
    data = TextDataModule(config, open_tokenizer(saved(tmp_path / "lm")), seed=0, batch_size=4)
    module = gist(saved(tmp_path / "lm"), num_slots=2)
    rows = batch(*(data.train_context(Draw(index, index)) for index in range(4)))
    losses = steps(module, 8, rows)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("path", ["huggyllama/llama-7b", "google/flan-t5-xxl", "google/flan-t5-base"])
def test_dry_run_of_the_papers_sizes(path: str) -> None:
    sizes = {"huggyllama/llama-7b": 6_738_415_616, "google/flan-t5-xxl": 11_135_332_352}
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
