"""What every method must keep to, on tiny random models of every kind."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader

from promptcomp.batch import Batch, Context, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.config import ConfigError, build, dump, read_yaml
from promptcomp.lightning_modules import METHODS, MethodConfig, OptimConfig
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.lightning_modules.method_config import BudgetsConfig
from promptcomp.memory import EncoderStates, KVCache, SoftPrompt, load_memory, save_memory
from tests.tiny_models import MODELS, tiny_lm

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

SETTINGS: dict[str, list[dict[str, Any]]] = read_yaml(Path(__file__).with_name("settings.yaml"))
VARIANTS = [
    pytest.param(
        name, {key: value for key, value in options.items() if key != "models"}, model, id=f"{name}{i}-{model}"
    )
    for name in METHODS
    for i, options in enumerate(SETTINGS.get(name, [{}]))
    for model in options.get("models", [model for model in MODELS if model != "opt"])
    if ("encoder_decoder" if model.startswith("t5") else "decoder") in METHODS[name].families
]
TRAINED = [v for v in VARIANTS if METHODS[v.values[0]](**v.values[1]).trains]  # type: ignore[index, arg-type]

FITTED = [  # every second of them, and what only one LM has
    v for n, v in enumerate(TRAINED) if n % 2 == 0 or sum(v.values[:2] == each.values[:2] for each in TRAINED) == 1
]


def make(name: str, options: dict[str, Any], model: str, *, lr: float = 1e-2, steps: int = 40) -> CompressionModule:
    optim = OptimConfig(lr=lr, schedule="constant")
    module = METHODS[name](**options).module(tiny_lm(model), optim, max_steps=steps, seed=0, task_names=("a", "b", "c"))
    module.configure_model()
    return module.eval()


@functools.cache
def _made(name: str, options: str, model: str) -> CompressionModule:
    return make(name, json.loads(options), model)


def untrained(name: str, options: dict[str, Any], model: str) -> CompressionModule:
    """Shared by the tests that change nothing of it: making it takes as long as they do."""
    return _made(name, json.dumps(options), model)


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
        return module.score(collate(rows)).sum_log_prob


@pytest.mark.parametrize(("name", "options", "model"), VARIANTS)
def test_memory_kind_and_slots(name: str, options: dict[str, Any], model: str) -> None:
    module = untrained(name, options, model)
    batch = collate(contexts())
    memory = module.compress(batch.context)
    slots = [module.num_memory_slots(int(tokens)) for tokens in batch.context.mask.sum(-1)]
    if memory is None:
        assert not any(slots)
        assert module.method.bound == "no_prompt"
        return
    assert isinstance(memory, SoftPrompt | (KVCache if module.lm.family == "decoder" else EncoderStates))
    assert memory.num_slots.tolist() == slots


@pytest.mark.parametrize(("name", "options", "model"), VARIANTS)
def test_padding_and_company_change_nothing(name: str, options: dict[str, Any], model: str) -> None:
    module = untrained(name, options, model)
    rows = contexts()
    alone = torch.cat([scores(module, [row]) for row in rows])
    torch.testing.assert_close(scores(module, rows), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_extra_padding_columns_change_nothing(name: str) -> None:
    module = make(name, SETTINGS.get(name, [{}])[0], "llama")
    batch = collate(contexts())
    before = module.score(batch).sum_log_prob
    ids = torch.nn.functional.pad(batch.context.ids, (9, 0), value=33)
    mask = torch.nn.functional.pad(batch.context.mask, (9, 0))
    batch.context = Context(ids, mask, batch.context.task)
    torch.testing.assert_close(module.score(batch).sum_log_prob, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "options", "model"), VARIANTS)
def test_training_path_is_inference_path(name: str, options: dict[str, Any], model: str, tmp_path: Path) -> None:
    """Logits inside the loss equal logits from the memory that was written to a file and read back."""
    module = untrained(name, options, model)
    if module.method.has_two_tasks and module.lm.query_in_encoder:
        return  # tasks are decoded one by one; the tests of such a method compare them with separate rows
    batch = collate(contexts())
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
        logits = module.lm(memory, batch, "all" if module.compared == "all" else "targets").values
    torch.testing.assert_close(logits, seen[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "options", "model"), VARIANTS)
def test_isolation(name: str, options: dict[str, Any], model: str) -> None:
    """With the memory fixed, nothing of the context reaches the scores."""
    module = untrained(name, options, model)
    batch = collate(contexts())
    other = collate(contexts())
    other.context.ids.fill_(7)
    with torch.no_grad():
        memory = module.compress(batch.context)
        assert torch.equal(module.lm.score(memory, batch)[0], module.lm.score(memory, other)[0])


@pytest.mark.parametrize(("name", "options", "model"), TRAINED)
def test_only_the_method_gets_gradients(name: str, options: dict[str, Any], model: str) -> None:
    module = make(name, options, model).train()
    assert module.lm.training is (module.method.lm_training != "none")
    terms = module.losses(collate(contexts()))
    torch.stack([term.total for term in terms]).sum().backward()
    for parameter_name, parameter in module.named_parameters():
        in_lm, in_teacher = parameter_name.startswith("lm."), parameter_name.startswith("teacher.")
        trained = {"lm": True, "lora": ".lora_" in parameter_name, "none": False}[module.method.lm_training]
        assert parameter.requires_grad == (not in_teacher and (trained or not in_lm))
        if not parameter.requires_grad:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, parameter_name


@pytest.mark.parametrize(("name", "options", "model"), TRAINED)
@pytest.mark.parametrize("one_query", [False, True])
def test_counts_are_those_of_the_losses(name: str, options: dict[str, Any], model: str, one_query: bool) -> None:
    module = untrained(name, options, model)
    batch = collate(contexts(one_query=one_query))
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


@pytest.mark.parametrize(("name", "options", "model"), FITTED)
def test_fits_one_batch_and_the_checkpoint_holds_what_was_trained(
    name: str, options: dict[str, Any], model: str, tmp_path: Path
) -> None:
    module = make(name, options, model)
    batch = collate(contexts(one_query=True))
    before = loss_of(module, batch)
    frozen = {k: v.clone() for k, v in module.lm.state_dict().items()}
    fit = trainer(15)
    fit.fit(module, loader(batch, 15), loader(batch, 1))
    after = loss_of(module.eval(), batch)
    vectors_alone = len(module.trained_parameters()) == 1
    assert after < (0.995 if vectors_alone else 0.9) * before
    assert "dev/loss" in fit.callback_metrics
    if module.method.lm_training != "lm":
        assert all(torch.equal(v, frozen[k]) for k, v in module.lm.state_dict().items() if ".lora_" not in k)

    file = tmp_path / "last.ckpt"
    fit.save_checkpoint(file, weights_only=False)
    stored = torch.load(file, weights_only=True)
    assert set(stored["state_dict"]) == set(module.trained_parameters())
    again = make(name, options, model)
    again.load_trained(file)
    assert loss_of(again, batch) == pytest.approx(after, rel=1e-6)
    module.export(tmp_path / "export")
    third = make(name, options, model)
    third.load_trained(tmp_path / "export")
    assert loss_of(third, batch) == pytest.approx(after, rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_configuration_round_trip(name: str) -> None:
    for options in SETTINGS.get(name, [{}]):
        config = METHODS[name](**{key: value for key, value in options.items() if key != "models"})
        assert build(METHODS[name], yaml.safe_load(dump(config))) == config
        assert isinstance(config, MethodConfig)


@pytest.mark.parametrize("name", METHODS)
def test_a_section_says_what_is_asked_of_it(name: str) -> None:
    section = METHODS[name]
    assert section.model_fields["name"].default == name
    assert section.title
    assert section.summary
    assert section.needs
    assert set(section.difficulty_keys) | set(section.loss_keys) <= set(section.model_fields)
    assert section().trains == bool(section().export_formats)


@pytest.mark.parametrize("name", [name for name in METHODS if not METHODS[name]().trains])
def test_what_trains_nothing_has_no_optimiser(name: str) -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        make(name, {}, "gpt2").configure_optimizers()


@pytest.mark.parametrize("name", [name for name, section in METHODS.items() if issubclass(section, BudgetsConfig)])
def test_several_budgets_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(name, {"num_slots": 4, "budgets": [2, 4]}, "llama")
    batch = collate(contexts(one_query=True))
    trained: list[int] = []
    losses = module.losses

    def note(batch: Batch) -> Any:
        trained.append(module.num_slots)
        return losses(batch)

    monkeypatch.setattr(module, "losses", note)
    trainer(12).fit(module.train(), loader(batch, 12), loader(batch, 1))
    assert isinstance(module.method, BudgetsConfig)
    assert trained == [module.method.draw_slots(0, step) for step in range(12)]
    assert {*trained} == {2, 4}
    module.eval()
    for chosen, count in ((None, 4), (2, 2), (4, 4)):
        module.choose_slots(chosen)
        memory = module.compress(batch.context)
        assert memory is not None
        assert memory.num_slots.tolist() == [module.num_memory_slots(int(n)) for n in batch.context.mask.sum(-1)]
        assert memory.num_slots.tolist() == [count] * 3
    with pytest.raises(ConfigError, match=r"^3 slots were not trained: the run has 2, 4; choose one of them$"):
        module.choose_slots(3)
    with pytest.raises(ConfigError, match=r"^5 slots are too many: the run has 2, 4; choose one of them$"):
        module.choose_slots(5)
    with pytest.raises(ConfigError, match=r"largest is method\.num_slots = 4"):
        build(METHODS[name], {"num_slots": 4, "budgets": [1, 2]})
