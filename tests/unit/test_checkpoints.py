"""Checkpoint files: written whole or in parts, never torn, and refused when they are."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from promptcomp.checkpoints import checkpoint_files
from promptcomp.checkpoints.checkpoint_files import (
    consolidate,
    is_sharded,
    read_checkpoint,
    split,
    step_of,
    write_header,
    write_shard,
    write_whole,
)
from promptcomp.checkpoints.describe import damage, describe
from promptcomp.checkpoints.places import existing, places_of
from promptcomp.checkpoints.trained_state import read_trained
from promptcomp.config import ConfigError
from tests.checkpoint_writing import INFO, checkpoint, write_parts
from tests.cli.conftest import run as run  # the program, in this process
from tests.forks import Fork
from tests.prompt_runs import save_lm, save_run


def same(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Two checkpoints hold the same."""
    assert one.keys() == two.keys()
    assert one["global_step"] == two["global_step"]
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())
    first, second = one["optimizer_states"][0], two["optimizer_states"][0]
    assert first["param_groups"] == second["param_groups"]
    for name, moments in first["state"].items():
        assert all(torch.equal(value, second["state"][name][key]) for key, value in moments.items())


@pytest.mark.parametrize("write", [write_whole, write_parts])
@pytest.mark.parametrize("before", [None, write_whole, write_parts])
def test_what_is_written_is_read(tmp_path: Path, write: Any, before: Any) -> None:
    path = tmp_path / "last.ckpt"
    if before is not None:
        before(checkpoint(1.0), path)
    write(checkpoint(2.0), path)
    same(read_checkpoint(path), checkpoint(2.0))
    assert step_of(path) == 2
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]
    tensors, info = read_trained(path)
    assert tensors.keys() == {"slots", "scale"}
    assert info == INFO


def test_a_kill_between_two_renames_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    write_parts(checkpoint(1.0), path)

    def die(source: Path, target: Path) -> None:
        if Path(target) == path:
            raise KeyboardInterrupt
        original(source, target)

    original = os.rename
    monkeypatch.setattr(os, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        write_parts(checkpoint(2.0), path)
    monkeypatch.undo()
    assert not path.exists()
    found = existing(path)
    assert found is not None
    assert step_of(found) == 1
    write_parts(checkpoint(3.0), path)
    assert existing(path) == path
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_kill_at_any_moment_leaves_a_usable_checkpoint(tmp_path: Path) -> None:
    rng = random.Random(0)
    paths = [tmp_path / write.__name__ for write in (write_whole, write_parts)]
    with Fork("tests.checkpoint_writing", str(tmp_path)) as child:
        while not child.printed()[0]:
            assert child.poll() is None, child.printed()
            time.sleep(0.01)
        found = []
        for _ in range(30):  # what a kill at this moment would leave
            time.sleep(rng.random() * 0.01)
            child.send_signal(signal.SIGSTOP)
            _wait_until_stopped(child.pid)
            found.append([_usable_step(path) for path in paths])
            child.send_signal(signal.SIGCONT)
    for path, steps in zip(paths, zip(*found, strict=True), strict=True):
        assert steps[0] >= 1
        assert list(steps) == sorted(steps)
        assert _usable_step(path) >= steps[-1]


def _wait_until_stopped(pid: int) -> None:
    for _ in range(1000):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.001)
    raise AssertionError("the child does not stop")


def _usable_step(path: Path) -> int:
    found = existing(path)
    assert found is not None
    assert damage(found) == []
    return int(read_checkpoint(found)["state_dict"]["slots"][0, 0])


@pytest.mark.parametrize("which", ["shard", "header"])
def test_a_full_disk_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    path = tmp_path / "last.ckpt"
    write_parts(checkpoint(1.0), path)

    def full(*_: Any, **__: Any) -> None:
        if which == "shard":
            raise checkpoint_files.SafetensorError("Error while serializing: I/O error: No space left (os error 28)")
        raise OSError(errno.ENOSPC, "No space left on device")

    target = (checkpoint_files, "save_file") if which == "shard" else (torch, "save")
    monkeypatch.setattr(*target, full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_parts(checkpoint(2.0), path)
    monkeypatch.undo()
    assert raised.value.errno == errno.ENOSPC
    assert step_of(path) == 1


def test_torn_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_parts(checkpoint(), path)
    shard = next(path.glob("*.safetensors"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(ConfigError, match="instead of"):
        read_checkpoint(path)
    assert "instead of" in damage(path)[0]
    shard.unlink()
    with pytest.raises(ConfigError, match="is missing"):
        read_checkpoint(path)
    shard.write_bytes(bytes(len(data)))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_checkpoint(path)
    (path / checkpoint_files.HEADER).write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read as a checkpoint"):
        consolidate(path, None)
    (path / checkpoint_files.HEADER).unlink()
    assert not is_sharded(path)
    with pytest.raises(ConfigError, match="is not a sharded checkpoint"):
        consolidate(path, None)


def test_parts_that_do_not_make_a_tensor_are_refused(tmp_path: Path) -> None:
    header, tensors = split(checkpoint())
    tmp_path.joinpath("last.ckpt").mkdir()
    path = tmp_path / "last.ckpt"
    name, size = write_shard(path, {key: value for key, value in tensors.items() if "slots" not in key}, 0, 1)
    write_header(path, header, {name: size})
    with pytest.raises(ConfigError, match="parts of weights/slots are missing"):
        read_checkpoint(path)


def test_numbers_that_are_not_finite_are_damage(tmp_path: Path) -> None:
    saved = checkpoint()
    saved["optimizer_states"][0]["state"]["slots"]["exp_avg"][1, 1] = float("nan")
    for write in (write_whole, write_parts):
        write(saved, tmp_path / "last.ckpt")
        assert damage(tmp_path / "last.ckpt") == [
            f"{tmp_path}/last.ckpt: optimizer/slots/exp_avg holds 1 numbers that are not finite"
        ]


def test_one_file_of_parts(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_parts(checkpoint(), path)
    file = consolidate(path, tmp_path / "one.ckpt")
    same(read_checkpoint(file), read_checkpoint(path))
    with pytest.raises(ConfigError, match="exists"):
        consolidate(path, file)
    assert consolidate(path, None) == path
    assert path.is_file()
    same(read_checkpoint(path), checkpoint())
    with pytest.raises(ConfigError, match="already one file"):
        consolidate(path, None)


def test_newer_formats_are_refused(tmp_path: Path) -> None:
    path = save_run(tmp_path / "run", save_lm(tmp_path / "lm", "gpt2"), {"name": "mend", "num_slots": 2})
    file = path / "checkpoints" / "best.ckpt"
    saved = read_checkpoint(file)
    saved["promptcomp"]["format"] = 3
    torch.save(saved, tmp_path / "new.ckpt")
    from promptcomp.run.opening import open_trained_module

    _, module = open_trained_module(path)
    with pytest.raises(ConfigError, match="newer promptcomp"):
        module.load_trained(tmp_path / "new.ckpt")
    saved["promptcomp"]["format"] = 1
    torch.save(saved, tmp_path / "old.ckpt")
    module.load_trained(tmp_path / "old.ckpt")


def test_commands(tmp_path: Path, run: Any) -> None:
    path = save_run(tmp_path / "run", save_lm(tmp_path / "lm", "gpt2"), {"name": "mend", "num_slots": 2})
    saved = read_checkpoint(path / "checkpoints" / "best.ckpt")
    write_parts({**checkpoint(7.0), "promptcomp": saved["promptcomp"]}, path / "checkpoints" / "last.ckpt")
    assert [describe(each).kind for each in places_of(path)] == ["whole", "sharded"]
    done = run("checkpoint", "show", "run")
    assert done.returncode == 0, done.stderr
    assert "step 7" in done.stdout
    assert "mend" in done.stdout
    best, last = json.loads(run("checkpoint", "show", "run", "--json").stdout)
    assert best["optimizer"] is None
    assert last["optimizer"] == {"tensors": 1, "numbers": 12}
    assert run("checkpoint", "verify", "run").returncode == 0
    assert run("export", "run", "-o", "out").returncode == 0
    assert (tmp_path / "out" / "README.md").is_file()
    assert run("export", "run", "-o", "out2", "--to", "peft").returncode == 2
    assert run("export", "run", "-o", "out3", "--to", "xml").returncode == 2
    shard = next((path / "checkpoints" / "last.ckpt").glob("*.safetensors"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-4])
    assert run("checkpoint", "verify", "run", "--json").returncode == 1
    assert run("checkpoint", "consolidate", "run").returncode == 2
    shard.write_bytes(data)
    assert run("checkpoint", "consolidate", "run").returncode == 0
    assert (path / "checkpoints" / "last.ckpt").is_file()
    assert run("checkpoint", "show", "nowhere").returncode == 2
