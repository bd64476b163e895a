"""MEND's parts: chunks, slots, projections, distillers, stages and dry runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from promptcomp.batch import Batch, Context, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.config import ConfigError
from promptcomp.forecast.activations import Rows, Work, rows_of
from promptcomp.language_model import LanguageModelConfig
from promptcomp.lightning_modules import METHODS, OptimConfig
from promptcomp.lightning_modules.mend import Mend, split_into_chunks
from promptcomp.lightning_modules.mend_config import MendConfig
from promptcomp.lightning_modules.objective import kl_divergence
from promptcomp.lightning_modules.optim import learning_rate_factor
from promptcomp.memory import EncoderStates, SoftPrompt
from tests.tiny_models import save_tokenizer, tiny_hf, tiny_lm


def mend(model: str = "llama", lm: Any = None, **options: Any) -> Mend:
    config = MendConfig(**{"num_slots": 3, **options})
    module = Mend(config, lm or tiny_lm(model), OptimConfig(lr=1e-2, schedule="constant"), max_steps=6, seed=0)
    module.configure_model()
    return module


def saved(folder: Path, kind: str, *, width: int = 32, words: int = 64) -> LanguageModelConfig:
    tiny_hf(kind, seed=width, width=width).save_pretrained(folder)
    save_tokenizer(folder, words=words)
    return LanguageModelConfig(path=str(folder))


def batch(length: int = 11) -> Batch:
    queries = (EncodedQuery((3, 4), (EncodedTarget((5, 6)),)), EncodedQuery((7,), (EncodedTarget((8,)),)))
    return collate([EncodedContext(tuple(range(10, 10 + length)), queries), EncodedContext((9, 10), queries[:1])])


def test_chunks_are_counted_from_the_end() -> None:
    ids = torch.tensor([[0, 0, 1, 2, 3], [4, 5, 6, 7, 8]])
    mask = ids > 0
    chunks, present = split_into_chunks(Context(ids, mask, torch.zeros(2)), 2)
    assert chunks.tolist() == [[[0, 0], [0, 1], [2, 3]], [[0, 4], [5, 6], [7, 8]]]
    assert torch.equal(present, chunks > 0)
    whole, _ = split_into_chunks(Context(ids, mask, torch.zeros(2)), 5)
    assert whole.shape == (2, 1, 5)


@pytest.mark.parametrize("model", ["llama", "gpt2", "t5_query_in_decoder"])
def test_chunks_are_distilled_apart_and_concatenated(model: str) -> None:
    module = mend(model, max_chunk_tokens=4).eval()
    ids = torch.arange(10, 21)[None]
    memory = module.compress(Context(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros(1)))
    assert memory.embeds.shape == (1, 9, 32)
    assert memory.mask.all()
    for chunk, part in zip(((0, 3), (3, 7), (7, 11)), memory.embeds[0].split(3), strict=True):
        piece = ids[:, chunk[0] : chunk[1]]
        alone = module.distiller.read(piece, torch.ones_like(piece, dtype=torch.bool), module.slots)
        torch.testing.assert_close(module.projection(alone)[0], part, rtol=0, atol=1e-5)


def test_contexts_beyond_the_distillers_window_are_chunked_by_themselves() -> None:
    module = mend("gpt2").eval()  # window 128, 3 slots: 125 tokens to a chunk
    memory = module.compress(batch(length=50).context)
    assert memory.num_slots.tolist() == [3, 3]
    ids = torch.arange(126)[None] % 60
    assert module.compress(Context(ids, ids >= 0, torch.zeros(1))).num_slots.tolist() == [6]
    with pytest.raises(ConfigError, match="leaves no room"):
        mend("gpt2", num_slots=128).compress(batch().context)


def test_vectors_do_not_depend_on_chunk_padding() -> None:
    module = mend(max_chunk_tokens=4).eval()
    context = batch().context
    wide = Context(
        torch.nn.functional.pad(context.ids, (7, 0), value=9),
        torch.nn.functional.pad(context.mask, (7, 0)),
        context.task,
    )
    before, after = module.compress(context), module.compress(wide)
    assert before.num_slots.tolist() == after.num_slots.tolist() == [9, 3]
    for row in range(2):
        torch.testing.assert_close(
            after.embeds[row][after.mask[row]], before.embeds[row][before.mask[row]], rtol=0, atol=1e-5
        )


def test_an_empty_context_still_has_slots() -> None:
    context = collate([EncodedContext((), (EncodedQuery((3,), (EncodedTarget((4,)),)),))]).context
    for model in ("llama", "t5_query_in_decoder"):
        memory = mend(model).compress(context)
        assert memory.num_slots.tolist() == [3]
        assert torch.isfinite(memory.embeds).all()


@pytest.mark.parametrize(("kind", "lm"), [("gpt2", "llama"), ("t5", "t5_query_in_encoder"), ("t5", "gpt2")])
def test_smaller_distillers_are_projected(kind: str, lm: str, tmp_path: Path) -> None:
    module = mend(lm, distiller=saved(tmp_path, kind, width=16))
    memory = module.compress(batch().context)
    assert memory.embeds.shape == (2, 3, 32)
    assert isinstance(module.projection, torch.nn.Sequential)
    assert memory.embeds.abs().max() <= 1
    torch.stack([term.total for term in module.losses(batch())]).sum().backward()
    assert all(p.grad is not None for p in module.distiller.parameters())
    with pytest.raises(ConfigError, match="the distiller has width 16, the LM 32"):
        mend(lm, distiller=LanguageModelConfig(path=str(tmp_path)), projection="none")


def test_identity_projection_starts_at_the_scale_of_token_embeddings() -> None:
    module = mend(projection="linear", projection_init="identity").eval()
    context = batch().context
    vectors = module.compress(context).embeds
    hidden = module.distiller.read(context.ids, context.mask, module.slots)
    ratio = vectors / hidden
    torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio))
    tokens = module.lm.embed(torch.arange(64)).norm(dim=-1).mean()
    assert vectors.norm(dim=-1).mean().item() == pytest.approx(tokens.item(), rel=0.1)
    with pytest.raises(ConfigError, match="needs method"):
        mend(projection="tanh", projection_init="identity")


@pytest.mark.parametrize("states", [False, True])
def test_slots_in_the_decoder_are_what_transformers_computes(states: bool) -> None:
    """A row at a time, without padding; an empty context is read as the end of sequence."""
    options = {"slots_in": "decoder", "slots": "states" if states else "inputs"}
    module = mend("t5_query_in_decoder", **options).double().eval()
    hf: Any = module.lm.hf
    rows = [*batch().context.ids.masked_fill(~batch().context.mask, -1).tolist(), []]
    texts = [[token for token in row if token >= 0] for row in rows]
    query = (EncodedQuery((3, 4), (EncodedTarget((5, 6)),)),)
    together = collate([EncodedContext(tuple(text), query) for text in texts])
    memory = module.compress(together.context)
    assert isinstance(memory, EncoderStates if states else SoftPrompt)
    logits = module.lm(memory, together, "targets").values
    for number, text in enumerate(texts):
        encoded = hf.get_encoder()(torch.tensor([text or [module.lm.end_id]])).last_hidden_state
        slots = torch.cat([hf.shared(torch.tensor([[module.lm.start_id]])), module.slots[None]], 1)
        vectors = hf.get_decoder()(inputs_embeds=slots, encoder_hidden_states=encoded).last_hidden_state[:, 1:]
        if not states:
            torch.testing.assert_close(memory.embeds[number], vectors[0])
            vectors = hf.get_encoder()(inputs_embeds=vectors).last_hidden_state
        asked = torch.tensor([[module.lm.start_id, 3, 4, 5]])
        expected = hf(encoder_outputs=(vectors,), decoder_input_ids=asked).logits[0, 2:]
        torch.testing.assert_close(logits[[number, number + len(texts)]], expected)  # all queries, then all answers


def test_a_frozen_encoder_leaves_the_decoder_to_be_trained() -> None:
    module = mend("t5_query_in_decoder", slots_in="decoder", frozen_encoder=True)
    names = module.trained_parameters()
    assert "slots" in names
    assert all(name == "slots" or ".decoder." in name for name in names)
    module.train()
    assert not any(each.training for each in module.distiller.body.get_encoder().modules())
    assert all(each.training for each in module.distiller.body.get_decoder().modules())
    torch.stack([term.total for term in module.losses(batch())]).sum().backward()
    assert all(parameter.grad is not None for parameter in module.trained_parameters().values())
    whole = mend("t5_query_in_decoder", slots_in="decoder")
    assert any(".encoder." in name for name in whole.trained_parameters())
    read = whole.passes(40, 8, 2)[0]
    assert (read.tokens, read.length, rows_of(whole, read, Work(40, 8, 8, 2, 5))[1]) == (40, 40, Rows(5, 4))
    assert module.compress_flops(40) == whole.compress_flops(40) > 0


@pytest.mark.parametrize(
    ("model", "options"),
    [("llama", {}), ("gpt2", {}), ("t5_query_in_encoder", {}), ("t5_query_in_decoder", {"slots_in": "decoder"})],
)
def test_frozen_embeddings_are_all_that_is_not_trained(model: str, options: dict[str, Any]) -> None:
    whole, module = mend(model, **options), mend(model, frozen_embeddings=True, **options)
    left = whole.trained_parameters().keys() - module.trained_parameters().keys()
    assert [whole.trained_parameters()[name].shape[0] for name in left] == [whole.lm.vocab_size]
    assert whole.trained_parameters().keys() - left == module.trained_parameters().keys()
    torch.stack([term.total for term in module.losses(batch())]).sum().backward()
    assert all(parameter.grad is not None for parameter in module.trained_parameters().values())


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("llama", {"slots_in": "decoder"}, "slots_in = 'decoder' is for encoder-decoder distillers"),
        ("llama", {"slots": "states"}, "slots = 'states' is for encoder-decoder LMs"),
        ("t5_query_in_encoder", {"slots": "states"}, "lm.layout=query_in_decoder"),
        ("t5_query_in_decoder", {"frozen_encoder": True}, "needs method.slots_in=decoder"),
    ],
)
def test_halves_that_are_not_there_are_refused(model: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mend(model, **options)


def test_slots_from_the_vocabulary() -> None:
    module = mend(slot_init="vocabulary", num_slots=1)
    table = module.distiller.embed(torch.arange(64))
    assert (module.slots[0] == table).all(-1).any()
    again = mend(slot_init="vocabulary", num_slots=1)
    assert torch.equal(module.slots, again.slots)


def test_a_distiller_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    lm, other = saved(tmp_path / "lm", "llama"), saved(tmp_path / "other", "gpt2", words=50)
    with pytest.raises(ConfigError, match="its tokenizer is not the LM's"):
        mend(lm=lm, distiller=other)
    assert mend(lm=lm, distiller=saved(tmp_path / "same", "gpt2")).distiller.window == 128


def test_stage_two_starts_from_stage_one(tmp_path: Path) -> None:
    first = mend(stage="pretrain")
    with torch.no_grad():
        first.slots.fill_(0.25)
    assert [term.name for term in first.losses(batch())] == ["kl"]
    first.export(tmp_path / "run" / "export")
    second = mend(init_from=str(tmp_path / "run"), slot_init="vocabulary")
    assert torch.equal(second.slots, first.slots)
    assert [term.name for term in second.losses(batch())] == ["ce", "kl"]
    assert [term.name for term in mend(kl_weight=0.0).losses(batch())] == ["ce"]
    with pytest.raises(ConfigError, match="no trained weights"):
        mend(init_from=str(tmp_path))


def test_kl_has_no_square_of_the_temperature() -> None:
    student, teacher = torch.randn(4, 9), torch.randn(4, 9)
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    expected = (p * (p / q).log()).sum()
    torch.testing.assert_close(kl_divergence(student, teacher, 2.0), expected)


def test_the_teacher_reads_its_own_context() -> None:
    plain = batch()
    other = batch()
    other.teacher_context = Context(plain.context.ids[:, -3:], plain.context.mask[:, -3:], plain.context.task)
    module = mend().eval()
    ours, theirs = module.losses(plain), module.losses(other)
    assert torch.equal(ours[0].total, theirs[0].total)
    assert not torch.allclose(ours[1].total, theirs[1].total)


def test_dry_run_of_the_papers_sizes() -> None:
    config = MendConfig(distiller=LanguageModelConfig(path="gpt2"))
    lm = LanguageModelConfig(path="gpt2-large")
    module = Mend(config, lm, OptimConfig(), max_steps=1, seed=0, skeleton=True)
    module.configure_model()
    assert {p.device.type for p in module.parameters()} == {"meta"}
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == 125_500_928
    assert sum(p.numel() for p in module.lm.parameters()) == 774_030_080
    for name in METHODS:
        spec = METHODS[name]
        for path in ("gpt2", "google/flan-t5-small"):
            dry = spec().module(
                LanguageModelConfig(path=path),
                OptimConfig(),
                max_steps=1,
                seed=0,
                task_names=("a",),
                skeleton=True,
            )
            dry.configure_model()


def test_learning_rate_schedules() -> None:
    linear = OptimConfig(warmup_steps=2, min_lr_ratio=0.1)
    assert [round(learning_rate_factor(step, 12, linear), 3) for step in (0, 1, 2, 7, 12, 20)] == [
        0.5,
        1.0,
        1.0,
        0.55,
        0.1,
        0.1,
    ]
    cosine = OptimConfig(schedule="cosine")
    assert learning_rate_factor(5, 10, cosine) == pytest.approx(0.5)
    assert learning_rate_factor(9, 10, OptimConfig(schedule="constant")) == 1.0


class Endless(IterableDataset[Batch]):
    """Batches from a step on, without an end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[Batch]:
        return (batch(4 + step) for step in itertools.count(self.start))


class Steps(L.LightningDataModule):
    """A loader that starts at the trainer's step."""

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        return DataLoader(Endless(self.trainer.global_step), batch_size=None)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:Found .* in eval mode")
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:You defined a `validation_step`")
@pytest.mark.parametrize("model", ["llama", "t5_query_in_decoder"])  # the tiny T5 has dropout
def test_a_resumed_run_ends_with_the_same_weights(model: str, tmp_path: Path) -> None:
    def run(steps: int, checkpoint: Path | None = None) -> tuple[Mend, L.Trainer]:
        module = mend(model)
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=Steps(), ckpt_path=checkpoint, weights_only=True)
        return module, trainer

    whole, _ = run(6)
    _, half = run(3)
    half.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    resumed, trainer = run(6, tmp_path / "half.ckpt")
    assert trainer.global_step == 6
    expected = whole.trained_tensors()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.trained_tensors().items())


def test_a_checkpoint_that_cannot_be_read_rightly_is_not_resumed() -> None:
    module = mend()
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "optimizer_states": [{}]}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    checkpoint["promptcomp"].update(format=1, optimizer_layout="plain")
    module.on_load_checkpoint(checkpoint)
    checkpoint["promptcomp"].update(format=1, optimizer_layout="sharded")
    with pytest.raises(ConfigError, match="sharded run of an older"):
        module.on_load_checkpoint(checkpoint)
    checkpoint["promptcomp"].update(format=99)
    with pytest.raises(ConfigError, match="newer promptcomp"):
        module.on_load_checkpoint(checkpoint)
    with pytest.raises(ConfigError, match="not written by this version"):
        module.on_load_checkpoint({"state_dict": {}})
