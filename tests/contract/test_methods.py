"""What every method must keep to, on tiny random models of every kind."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from promptcomp.batch import Batch, Context, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.config import ConfigError, build, dump
from promptcomp.lightning_modules import METHODS, CompressionModule, MethodConfig, OptimConfig
from promptcomp.memory import EncoderStates, KVCache, SoftPrompt, load_memory, save_memory
from tests.tiny_models import MODELS, tiny_lm

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

SMALL: dict[str, list[dict[str, Any]]] = {
    "mend": [
        {"num_slots": 3},
        {"num_slots": 3, "stage": "pretrain", "projection": "linear", "projection_init": "identity"},
        {"num_slots": 3, "max_chunk_tokens": 5, "slot_init": "vocabulary", "kl_positions": "targets"},
    ],
    "prompt_tuning": [{"num_slots": 3}, {"num_slots": 3, "share": "shared", "slot_init": "random"}],
    "metaicl": [{}, {"loss_average": "token"}],
    "gist": [
        {"num_slots": 3},
        {"num_slots": 3, "arrangement": "split", "shared_embedding": False, "kl_weight": 0.5, "kl_positions": "all"},
        {"num_slots": 3, "arrangement": "split", "reconstruction_weight": 0.3},
        {"num_slots": 3, "train": "lora", "kl_weight": 0.5, "full_prompt_weight": 0.5},
        {"num_slots": 3, "train": "none"},
    ],
    "full_prompt": [{}, {"train": "lm"}, {"train": "lora", "lora": {"rank": 2}}],
    "no_prompt": [{}, {"train": "lm"}],
}
"""Options of a method at this size; methods without an entry are tried with their defaults."""

SLOTS_IN_DECODER: list[tuple[str, dict[str, Any]]] = [
    ("t5_query_in_decoder", {"num_slots": 3, "slots_in": "decoder", "max_chunk_tokens": 5}),
    ("t5_query_in_decoder", {"num_slots": 3, "slots_in": "decoder", "slots": "states"}),
    ("t5_query_in_encoder", {"num_slots": 3, "slots_in": "decoder", "stage": "pretrain"}),
]
"""MEND with distillers that have a decoder."""

VARIANTS = [
    pytest.param(name, options, model, id=f"{name}{i}-{model}")
    for name in METHODS
    for i, options in enumerate(SMALL.get(name, [{}]))
    for model in MODELS
    if model != "opt"
]
VARIANTS += [
    pytest.param("mend", options, model, id=f"mend_slots_in_decoder{i}-{model}")
    for i, (model, options) in enumerate(SLOTS_IN_DECODER)
]
CONTROLS = ("full_prompt", "no_prompt")
TRAINED = [v for v in VARIANTS if v.values[0] not in CONTROLS or v.values[1]]


def make(name: str, options: dict[str, Any], model: str, *, lr: float = 1e-2, steps: int = 40) -> CompressionModule:
    spec = METHODS[name]
    optim = OptimConfig(lr=lr, schedule="constant")
    module = spec.module(
        spec.config(**options), tiny_lm(model), optim, max_steps=steps, seed=0, task_names=("a", "b", "c")
    )
    module.configure_model()
    return module.eval()


def contexts(seed: int = 0, *, one_query: bool = False) -> list[EncodedContext]:
    """Three contexts of different length; queries and options too."""
    rng = random.Random(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 64) for _ in range(count))

    def query(example: int) -> EncodedQuery:
        return EncodedQuery(ids(rng.randint(1, 4)), (EncodedTarget(ids(rng.randint(1, 3))),), example)

    counts = (1, 1, 1) if one_query else (2, 1, 3)
    return [
        EncodedContext(ids(length), tuple(query(10 * g + n) for n in range(count)), g)
        for g, (length, count) in enumerate(zip((12, 4, 7), counts, strict=True))
    ]


def scores(module: CompressionModule, rows: list[EncodedContext]) -> Tensor:
    with torch.no_grad():
        return module.score(collate(rows, 0)).sum_log_prob


@pytest.mark.parametrize(("name", "options", "model"), VARIANTS)
def test_memory_kind_and_slots(name: str, options: dict[str, Any], model: str) -> None:
    module = make(name, options, model)
    batch = collate(contexts(), 0)
    memory = module.compress(batch.context)
    if name == "no_prompt":
        assert memory is None
        return
    if name == "gist":
        assert isinstance(memory, KVCache if module.lm.family == "decoder" else EncoderStates)
        assert memory.num_slots.tolist() == [3, 3, 3]
        return
    if name in ("mend", "prompt_tuning"):
        assert isinstance(memory, EncoderStates if options.get("slots") == "states" else SoftPrompt)
        chunk = options.get("max_chunk_tokens")
        chunks = [1, 1, 1] if chunk is None else [-(-int(n) // chunk) for n in batch.context.mask.sum(-1)]
        assert memory.num_slots.tolist() == [3 * count for count in chunks]
        return
    kinds = {"t5_query_in_decoder": EncoderStates, "t5_query_in_encoder": SoftPrompt}
    assert isinstance(memory, kinds.get(model, KVCache))
    assert memory.num_slots.tolist() == batch.context.mask.sum(-1).tolist()


@pytest.mark.parametrize(("name", "options", "model"), VARIANTS)
def test_padding_and_company_change_nothing(name: str, options: dict[str, Any], model: str) -> None:
    module = make(name, options, model)
    rows = contexts()
    alone = torch.cat([scores(module, [row]) for row in rows])
    torch.testing.assert_close(scores(module, rows), alone, rtol=0, atol=1e-5)


def test_extra_padding_columns_change_nothing() -> None:
    module = make("mend", {"num_slots": 3}, "llama")
    batch = collate(contexts(), 0)
    before = module.compress(batch.context).embeds  # type: ignore[union-attr]
    ids = torch.nn.functional.pad(batch.context.ids, (9, 0), value=33)
    mask = torch.nn.functional.pad(batch.context.mask, (9, 0))
    after = module.compress(Context(ids, mask, batch.context.task)).embeds  # type: ignore[union-attr]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "options", "model"), VARIANTS)
def test_training_path_is_inference_path(name: str, options: dict[str, Any], model: str, tmp_path: Path) -> None:
    """Logits inside the loss equal logits from the memory that was written to a file and read back."""
    if name == "step_by_step" and model == "t5_query_in_encoder":
        return  # decodes its tasks one by one; test_step_by_step compares them with separate rows
    module = make(name, options, model)
    batch = collate(contexts(), 0)
    seen: list[Tensor] = []

    def note(_module: Any, _inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled():  # not what a teacher says
            seen.append(output.values.detach())

    handle = module.lm.register_forward_hook(note)
    module.losses(batch)
    handle.remove()
    with torch.no_grad():
        memory = module.compress(batch.context)
        if memory is not None:
            save_memory(tmp_path / "memory.safetensors", memory, {"task": "a"})
            memory, metadata = load_memory(tmp_path / "memory.safetensors")
            assert metadata == {"task": "a"}
        where = "all" if getattr(module.method, "kl_positions", "targets") == "all" else "targets"
        logits = module.lm(memory, batch, where).values
    torch.testing.assert_close(logits, seen[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "options", "model"), VARIANTS)
def test_isolation(name: str, options: dict[str, Any], model: str) -> None:
    """With the memory fixed, nothing of the context reaches the scores."""
    module = make(name, options, model)
    batch = collate(contexts(), 0)
    other = collate(contexts(), 0)
    other.context.ids.fill_(7)
    with torch.no_grad():
        memory = module.compress(batch.context)
        assert torch.equal(module.lm.score(memory, batch)[0], module.lm.score(memory, other)[0])


@pytest.mark.parametrize(("name", "options", "model"), TRAINED)
def test_only_the_method_gets_gradients(name: str, options: dict[str, Any], model: str) -> None:
    module = make(name, options, model).train()
    assert module.lm.training is (module.lm_training != "none")
    terms = module.losses(collate(contexts(), 0))
    torch.stack([term.total for term in terms]).sum().backward()
    for parameter_name, parameter in module.named_parameters():
        in_lm, in_teacher = parameter_name.startswith("lm."), parameter_name.startswith("teacher.")
        trained = {"lm": True, "lora": ".lora_" in parameter_name, "none": False}[module.lm_training]
        assert parameter.requires_grad == (not in_teacher and (trained or not in_lm))
        if not parameter.requires_grad:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, parameter_name


@pytest.mark.parametrize(("name", "options", "model"), TRAINED)
@pytest.mark.parametrize("one_query", [False, True])
def test_counts_are_those_of_the_losses(name: str, options: dict[str, Any], model: str, one_query: bool) -> None:
    module = make(name, options, model)
    batch = collate(contexts(one_query=one_query), 0)
    counts = {key: int(value) for key, value in module.counts(batch).items()}
    assert counts == {term.name: int(term.count) for term in module.losses(batch)}


def trainer(steps: int, **options: Any) -> L.Trainer:
    return L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=steps,
        **options,
    )


def loader(batch: Batch, count: int) -> DataLoader[Batch]:
    return DataLoader([batch] * count, batch_size=None)  # type: ignore[arg-type]


def loss_of(module: CompressionModule, batch: Batch) -> float:
    with torch.no_grad():
        return sum(float(term.weight * term.total / max(1, int(term.count))) for term in module.losses(batch))


@pytest.mark.parametrize(("name", "options", "model"), TRAINED)
def test_fits_one_batch_and_the_checkpoint_holds_what_was_trained(
    name: str, options: dict[str, Any], model: str, tmp_path: Path
) -> None:
    module = make(name, options, model)
    batch = collate(contexts(one_query=True), 0)
    before = loss_of(module, batch)
    frozen = {k: v.clone() for k, v in module.lm.state_dict().items()}
    fit = trainer(25)
    fit.fit(module, loader(batch, 25), loader(batch, 1))
    after = loss_of(module.eval(), batch)
    embeddings_alone = name == "prompt_tuning" or options.get("train") == "none"
    assert after < (0.995 if embeddings_alone else 0.9) * before
    assert "dev/loss" in fit.callback_metrics
    if module.lm_training != "lm":
        assert all(torch.equal(v, frozen[k]) for k, v in module.lm.state_dict().items() if ".lora_" not in k)

    file = tmp_path / "last.ckpt"
    fit.save_checkpoint(file, weights_only=False)
    stored = torch.load(file, weights_only=True)
    assert set(stored["state_dict"]) == set(module.trained_names())
    again = make(name, options, model)
    again.load_trained(file)
    assert loss_of(again, batch) == pytest.approx(after, rel=1e-6)
    module.export(tmp_path / "export")
    third = make(name, options, model)
    third.load_trained(tmp_path / "export")
    assert loss_of(third, batch) == pytest.approx(after, rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_configuration_round_trip(name: str) -> None:
    import yaml

    spec = METHODS[name]
    for options in SMALL.get(name, [{}]):
        config = spec.config(**options)
        assert build(spec.config, yaml.safe_load(dump(config))) == config
        assert isinstance(config, MethodConfig)
        assert spec.config.model_fields["name"].default == name


def test_refuses_trained_parts_of_something_else(tmp_path: Path) -> None:
    mend = make("mend", {"num_slots": 3}, "llama")
    mend.export(tmp_path / "mend")
    with pytest.raises(ConfigError, match="made with method 'mend'"):
        make("prompt_tuning", {"num_slots": 3}, "llama").load_trained(tmp_path / "mend")
    with pytest.raises(ConfigError, match="made with family 'decoder'"):
        make("mend", {"num_slots": 3}, "t5_query_in_decoder").load_trained(tmp_path / "mend")
    with pytest.raises(ConfigError, match=r"slots has shape \(3, 32\)"):
        make("mend", {"num_slots": 5}, "llama").load_trained(tmp_path / "mend")
    with pytest.raises(ConfigError, match="tensors too many"):
        make("mend", {"num_slots": 3}, "gpt2").load_trained(tmp_path / "mend")
    with pytest.raises(ConfigError, match="does not exist"):
        mend.load_trained(tmp_path / "nothing")
    (tmp_path / "bad.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigError, match="cannot be read as a checkpoint"):
        mend.load_trained(tmp_path / "bad.ckpt")


def test_an_untrained_control_has_no_optimiser() -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        make("full_prompt", {}, "gpt2").configure_optimizers()
