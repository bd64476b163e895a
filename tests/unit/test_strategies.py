"""What strategies refuse, the counts behind losses, and the parts that save memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from promptcomp.checkpoints.trained_state import check_resumable, rank_dependent_part
from promptcomp.config import ConfigError, build
from promptcomp.datamodules.sampler import StepSampler
from promptcomp.errors import NoSpace, RankLost
from promptcomp.experiment import Experiment, TrainerConfig, load
from promptcomp.lightning_modules.base import LossTerm
from promptcomp.lightning_modules.execution import Execution, prepare_blocks
from promptcomp.lightning_modules.objective import StepObjective
from promptcomp.lightning_modules.optim import HostAdamW
from promptcomp.run.configured import check_overrides
from promptcomp.run.processes import Ranks, check_attention, check_precision, device_count, noticing_lost_ranks
from tests.tiny_models import tiny_hf


def config(**options: object) -> TrainerConfig:
    return build(TrainerConfig, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "fsdp", "precision": "16-mixed"}, "use bf16-mixed"),
        ({"strategy": "fsdp", "accelerator": "mps"}, "does not run on mps"),
        ({"devices": 0}, "give a number from 1"),
        ({"strategy": "zero"}, "trainer|strategy"),
    ],
)
def test_combinations_that_cannot_work(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**options)


def test_drawn_answers_are_refused_with_divided_weights() -> None:
    tree = {
        "method": {"name": "step_by_step", "teacher": {"path": "builtin:toy_decoder"}, "on_policy_share": 0.5},
        "data": {"name": "toy_rationales", "targets": "label_and_rationale"},
        "lm": {"path": "builtin:toy_decoder"},
        "trainer": {"strategy": "fsdp"},
    }
    with pytest.raises(ConfigError, match="on_policy_share"):
        build(Experiment, tree)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_devices_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="accelerator=cpu"):
        device_count(config(accelerator="gpu", devices=2))
    with pytest.raises(ConfigError, match="needs a GPU"):
        check_precision(config(precision="16-mixed"))
    flexible = "lm.attn_implementation=flex_attention"
    with pytest.raises(ConfigError, match=f"{flexible}: torch trains through it on GPUs only; use sdpa or eager"):
        check_attention(load("pool", None, [flexible]))
    assert device_count(config()) == 1
    assert device_count(config(accelerator="cpu", devices=3)) == 3


def test_torchrun_says_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert device_count(config(accelerator="cpu", num_nodes=2)) == 4
    with pytest.raises(ConfigError, match=r"set trainer.devices=4 trainer.num_nodes=2"):
        device_count(config(accelerator="cpu", devices=2, num_nodes=2))


def test_only_the_division_of_the_work_changes_on_resume() -> None:
    check_overrides(["trainer.devices=4", "trainer.strategy=fsdp", "trainer.accumulate=2"])
    for item in ("trainer.max_steps=9", "optim.lr=1", "trainer.batch_size=2", "seed=1"):
        with pytest.raises(ConfigError, match="only the keys that distribute its work"):
            check_overrides([item])


def test_dropout_ties_a_run_to_its_division() -> None:
    ours = {"optimizer_layout": "plain", "ranks": 2, "micro_batches": 1}
    check_resumable({**ours, "ranks": 4}, ours, None)
    check_resumable(ours, ours, "lm uses dropout")
    with pytest.raises(ConfigError, match=r"resume with 4 process\(es\) and trainer.accumulate=1"):
        check_resumable({**ours, "ranks": 4}, ours, "lm uses dropout")
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)).train()
    assert rank_dependent_part(model) is not None
    assert rank_dependent_part(model.eval()) is None
    assert rank_dependent_part(tiny_hf("llama").train()) is None


def test_a_lost_process_is_told_from_other_errors() -> None:
    with pytest.raises(RankLost, match="--resume"), noticing_lost_ranks(2):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2")
    for world_size, text in ((1, "Connection closed by peer"), (2, "shape mismatch")):
        with pytest.raises(RuntimeError, match=text) as caught, noticing_lost_ranks(world_size):
            raise RuntimeError(text)
        assert not isinstance(caught.value, RankLost)


def test_one_process_agrees_with_itself() -> None:
    assert Ranks().once(lambda: 3) == 3
    with pytest.raises(ConfigError, match="bad"):
        Ranks().agreed(lambda: build(TrainerConfig, {"bad": 1}))


def test_a_full_disk_stays_one_for_all_ranks() -> None:
    def full() -> None:
        raise NoSpace("x: the run directory cannot be made")

    with pytest.raises(NoSpace, match="cannot be made"):
        Ranks().once(full)


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_holds_the_same_items_however_it_is_divided(micro_batches: int, world_size: int) -> None:
    def lengths(draws: Sequence[object]) -> list[int]:
        return [hash(str(draw)) % 7 for draw in draws]

    def steps(parts: int, ranks: int) -> list[list[int]]:
        same = {"window": 3, "world_size": ranks, "lengths_of": lengths, "micro_batches": parts, "start_step": 2}
        samplers = [StepSampler(23, 8, 0, rank=rank, **same) for rank in range(ranks)]  # type: ignore[arg-type]
        rows = [list(islice(sampler, 4 * parts)) for sampler in samplers]
        return [
            sorted(draw.number for row in rows for part in row[i * parts : (i + 1) * parts] for draw in part)
            for i in range(4)
        ]

    assert steps(micro_batches, world_size) == steps(1, 1)


def test_the_loss_of_a_step_is_a_mean_over_all_its_tokens() -> None:
    counts = [{"ce": 3, "kl": 2}, {"ce": 1, "kl": 0}]
    objective = StepObjective(counts, [torch.tensor(5), torch.tensor(4)], 1, 2, torch.device("cpu"))
    parts = [
        objective.add([LossTerm("ce", torch.tensor(6.0), 3), LossTerm("kl", torch.tensor(8.0), 2, 0.5)]),
        objective.add([LossTerm("ce", torch.tensor(2.0), 1), LossTerm("kl", torch.tensor(0.0), 0, 0.5)]),
    ]
    values = {name: float(value) for name, value in objective.finish().items()}
    assert values == pytest.approx({"loss": 8 / 4 + 0.5 * 8 / 2, "ce": 2.0, "kl": 4.0})
    assert float(sum(parts)) / 2 == pytest.approx(values["loss"])  # Lightning divides by the micro-batches
    assert int(objective.tokens) == 9


def test_adamw_with_its_state_on_the_host_is_adamw() -> None:
    def run(kind: type[torch.optim.AdamW]) -> nn.Linear:
        torch.manual_seed(0)
        layer = nn.Linear(5, 4)
        optimizer = kind([{"params": [layer.weight], "weight_decay": 0.1}, {"params": [layer.bias]}], lr=0.1)
        for step in range(4):
            if step == 2:  # the state survives being saved
                state = optimizer.state_dict()
                optimizer = kind([{"params": [layer.weight]}, {"params": [layer.bias]}], lr=0.1)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            layer(torch.full((2, 5), float(step))).square().sum().backward()
            optimizer.step()
        return layer

    one, two = run(torch.optim.AdamW), run(HostAdamW)
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_recomputed_activations_give_the_same_gradients_and_are_not_kept(kind: str) -> None:
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    def gradients(recompute: bool) -> tuple[list[torch.Tensor], int]:
        model = tiny_hf(kind)
        if recompute:
            prepare_blocks(model, Execution(activation_checkpointing=True))
        ids = torch.arange(2 * 6).view(2, 6)
        extra = {"decoder_input_ids": ids} if kind == "t5" else {}
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(input_ids=ids, use_cache=kind != "t5", **extra).logits.square().mean()
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None], sum(kept)

    (one, much), (two, little) = gradients(False), gradients(True)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert little < much / 2


def test_what_rank_zero_makes_is_everywhere(tmp_path: Path) -> None:
    assert Ranks(rank=0).once(lambda: tmp_path) == tmp_path
