"""A run goes on under any strategy from the checkpoint of any other, and files of parts equal whole ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from promptcomp.checkpoints.checkpoint_files import read_checkpoint, step_of
from promptcomp.checkpoints.describe import damage
from promptcomp.checkpoints.places import is_sharded
from tests.distributed.checkpoint_runs import CASES, HALF, READERS, WHOLE, WRITERS, Action, do, words_of
from tests.distributed.trajectories import finish, save_models, start
from tests.forks import run_fork

TOLERANCE = 1e-9
"""In float64; between layouts sums are taken in another order."""
pytestmark = [pytest.mark.filterwarnings("ignore")]


def name(case: int, *words: str) -> str:
    """A file name."""
    return "-".join((str(case), *words)).replace(" ", "_")


def writers_of(case: int) -> tuple[str, ...]:
    """All of them for the first; the others (T5; the state that lies on the host) start from what FSDP writes: what one
    process and DDP write is the same kind of file."""
    return WRITERS if case == 0 else ("fsdp 2 sharded", "fsdp 2 whole")


COMBINATIONS = [
    pytest.param(case, writer, reader, id=f"{CASES[case].name} {writer} to {reader}")
    for case in range(len(CASES))
    for writer in writers_of(case)
    for reader in READERS
]


def actions(case: int) -> list[Action]:
    """A straight run, a half with each kind of checkpoint, and every continuation."""
    found = [Action(case, reader, WHOLE, name=name(case, "straight", reader)) for reader in READERS]
    for writer in writers_of(case):
        found.append(Action(case, writer, HALF, save=name(case, writer) + ".ckpt", name=name(case, writer)))
        found += [
            Action(case, reader, WHOLE, start=name(case, writer) + ".ckpt", name=name(case, writer, reader))
            for reader in READERS
        ]
    return found


MIXED = [
    Action(0, "fsdp 2", WHOLE, name="mixed", precision="bf16-mixed"),
    Action(0, "fsdp 2 sharded", HALF, save="mixed.ckpt", name="mixed-half", precision="bf16-mixed"),
    Action(0, "fsdp 2", WHOLE, start="mixed.ckpt", name="mixed-fsdp", precision="bf16-mixed"),
    Action(0, "auto 1", WHOLE, start="mixed.ckpt", name="mixed-auto", precision="bf16-mixed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all runs have written: those of two processes in one group, those of one process here."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save_models(folder)
    every = [*MIXED, *(action for case in range(len(CASES)) for action in actions(case))]
    every.append(Action(0, "fsdp 2 sharded", 1, save=name(0, "fsdp 2 sharded") + ".ckpt", name="full", full_disk=True))
    alone = [action for action in every if action.how.startswith("auto")]
    together = [action for action in every if not action.how.startswith("auto")]
    for action in alone:
        if action.start is None:
            do(action, folder)
    finish(start("tests.distributed.checkpoint_runs", 2, str(folder), words_of(together)))
    for action in alone:
        if action.start is not None:
            do(action, folder)
    return folder


def result(folder: Path, *words: str, case: int) -> dict[str, Any]:
    """Losses and tensors of a run."""
    found: dict[str, Any] = torch.load(folder / f"{name(case, *words)}.pt", weights_only=True)
    return found


@pytest.mark.parametrize(("case", "writer", "reader"), COMBINATIONS)
def test_any_strategy_goes_on_from_any_other(folder: Path, case: int, writer: str, reader: str) -> None:
    straight = result(folder, "straight", "auto 1", case=case)
    resumed = result(folder, writer, reader, case=case)
    assert len(resumed["losses"]) == WHOLE - HALF
    assert resumed["losses"] == pytest.approx(straight["losses"][HALF:], abs=TOLERANCE)
    for key, value in straight["tensors"].items():
        torch.testing.assert_close(resumed["tensors"][key], value, rtol=0, atol=TOLERANCE)
    if writer.startswith(reader):  # the same division of the work: bit for bit
        straight = result(folder, "straight", reader, case=case)
        assert resumed["losses"] == straight["losses"][HALF:]
        assert all(torch.equal(value, straight["tensors"][key]) for key, value in resumed["tensors"].items())


def test_mixed_precision_saves_master_weights_and_goes_on(folder: Path) -> None:
    straight, resumed, alone = (
        torch.load(folder / f"{name}.pt", weights_only=True) for name in ("mixed", "mixed-fsdp", "mixed-auto")
    )
    saved = read_checkpoint(folder / "mixed.ckpt")["state_dict"]
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in saved.values())
    assert resumed["losses"] == straight["losses"][HALF:]
    assert all(torch.equal(value, straight["tensors"][key]) for key, value in resumed["tensors"].items())
    assert alone["losses"] == pytest.approx(straight["losses"][HALF:], rel=5e-3)


@pytest.mark.parametrize("case", range(len(CASES)), ids=[case.name for case in CASES])
def test_parts_hold_what_one_file_holds(folder: Path, case: int) -> None:
    parts, whole = (folder / f"{name(case, writer)}.ckpt" for writer in ("fsdp 2 sharded", "fsdp 2 whole"))
    assert is_sharded(parts)
    assert whole.is_file()
    one, two = read_checkpoint(parts), read_checkpoint(whole)
    names = result(folder, "straight", "auto 1", case=case)["tensors"].keys()
    assert one["state_dict"].keys() == two["state_dict"].keys() == names
    assert all(torch.equal(value, two["state_dict"][key]) for key, value in one["state_dict"].items())
    states = [each["optimizer_states"][0]["state"] for each in (one, two)]
    assert states[0].keys() == states[1].keys() == one["state_dict"].keys()
    for key, moments in states[0].items():
        assert all(torch.equal(value, states[1][key][moment]) for moment, value in moments.items())
    assert one["optimizer_states"][0]["param_groups"] == two["optimizer_states"][0]["param_groups"]
    weights = folder / f"{name(case, 'fsdp 2 sharded')}.ckpt.best"
    assert weights.is_file()
    assert all(torch.equal(v, one["state_dict"][k]) for k, v in read_checkpoint(weights)["state_dict"].items())


def test_a_full_disk_of_one_rank_stops_all_and_leaves_the_one_before(folder: Path) -> None:
    for rank in (0, 1):
        assert "No space left" in (folder / f"full.error{rank}").read_text()
    path = folder / f"{name(0, 'fsdp 2 sharded')}.ckpt"
    assert step_of(path) == HALF
    assert damage(path) == []
    assert not list(folder.glob(".*.tmp"))


def test_the_program_trains_in_parts_and_every_command_takes_them(tmp_path: Path) -> None:
    def call(*words: str) -> str:
        done = run_fork("promptcomp", *words, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    words = (
        "fit", "--method", "mend", "--run-dir", "run", "trainer.devices=2", "trainer.accelerator=cpu",
        "trainer.strategy=fsdp", "trainer.checkpoints=sharded", "trainer.threads=1", "trainer.max_steps=2",
        "trainer.batch_size=4", "trainer.eval_every=2", "method.num_slots=2", "data.queries_per_context=2",
        "data.num_demonstrations=4", "data.world.num_test_tasks=3", "data.world.num_dev_tasks=3",
        "data.world.num_queries=3", "evaluation.measure_cost=false", "evaluation.bootstrap_resamples=100",
    )  # fmt: skip
    for rank in (ranks := start("promptcomp", 2, *words, folder=tmp_path)):
        rank.communicate()
    assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].printed()
    run = tmp_path / "run"
    assert is_sharded(run / "checkpoints" / "last.ckpt")
    assert (run / "checkpoints" / "best.ckpt").is_file()
    results = json.loads((run / "results.json").read_text())["splits"]
    (run / "checkpoints" / "best.ckpt").unlink()  # the parts are the only weights now
    again = json.loads(call("evaluate", "run", "--json"))["results"]["splits"]
    assert again["test"]["method"] == pytest.approx(results["test"]["method"])
    call("export", "run", "-o", "out")
    words = ("trainer.strategy=auto", "trainer.devices=1", "trainer.checkpoints=whole")
    call("fit", "--resume", "run", *words)
    assert (run / "checkpoints" / "last.ckpt").is_file()


def test_pytorch_reads_the_parts_too(folder: Path) -> None:
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    path = folder / f"{name(0, 'fsdp 2 sharded')}.ckpt"
    whole = read_checkpoint(path)["state_dict"]
    into = {f"weights/{key}": torch.empty_like(value) for key, value in whole.items()}
    dcp.load(into, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=True)
    assert all(torch.equal(into[f"weights/{key}"], value) for key, value in whole.items())
