"""Files as they are written: whole, with the user's permissions, and never through a link."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from promptcomp.checkpoints.checkpoint_files import read_checkpoint, write_shard, write_whole
from promptcomp.checkpoints.trained_state import write_export
from promptcomp.config import ConfigError
from promptcomp.errors import NoSpace, is_full
from promptcomp.evaluation.results import Results, write_results
from promptcomp.files import (
    cache_folder,
    check_empty,
    check_no_links,
    check_output,
    follow_umask,
    is_file_name,
    locked,
    make_folder,
    new_folder,
    open_append,
    replacing,
    write_atomic,
)
from promptcomp.memory import SoftPrompt, save_memory
from promptcomp.run.opening import quiet
from promptcomp.run.run_directory import MetricsFile, RunDirectory, write_environment
from promptcomp.sweeps.sweep_directory import SweepDirectory

RESULTS = Results(method="mend", family="decoder", data="toy", lm="x", seed=0, splits={})
MEMORY = SoftPrompt(torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.bool))
CHECKPOINT = {"state_dict": {}, "global_step": 0}


def _log(path: Path) -> None:
    import logging

    with quiet(RunDirectory(path.parent)):
        logging.getLogger("transformers").warning("note")


WRITERS: dict[str, Callable[[Path], object]] = {
    "results.json": lambda path: write_results(path, RESULTS),
    "prompt.safetensors": lambda path: save_memory(path, MEMORY, {}),
    "last.ckpt": lambda path: write_whole(CHECKPOINT, path),
    "metrics.csv": lambda path: MetricsFile(path).append(1, {"loss": 1.0}),
    "environment.json": lambda path: write_environment(RunDirectory(path.parent), {}),
    "trained.safetensors": lambda path: write_export(path.parent, {"x": torch.zeros(2)}, {}),
    "promptcomp.json": lambda path: write_export(path.parent, {"x": torch.zeros(2)}, {}),
    "log.txt": lambda path: RunDirectory(path.parent).write_log("begun"),
    "shard-00001-of-00001.safetensors": lambda path: write_shard(path.parent, {"x": torch.zeros(2)}, 0, 1),
}


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_has_the_permissions_of_the_umask(tmp_path: Path, umask: int, name: str) -> None:
    for _ in range(2):  # new, and there already
        WRITERS[name](tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", [*WRITERS, "checkpoint over a folder"])
@pytest.mark.parametrize("is_there", [True, False], ids=["target", "dangling"])
def test_a_planted_link_is_never_written_through(tmp_path: Path, name: str, is_there: bool) -> None:
    target, folder = tmp_path / "target", tmp_path / "run"
    folder.mkdir()
    if is_there:
        target.write_bytes(b'{"history": []}')
    writer = WRITERS.get(name, WRITERS["last.ckpt"])
    if name not in WRITERS:
        name = "last.ckpt"
        if is_there:
            target.unlink()
            target.mkdir()
            (target / "mine").touch()
    path = folder / name
    for link in (path, folder / f".{name}.tmp", folder / f"{name}.partial", folder / f".{name}.old"):
        link.symlink_to(target)
    try:
        writer(path)
    except ConfigError as error:  # a file that grows is not replaced
        assert "is a link" in str(error)  # noqa: PT017
    else:
        assert not path.is_symlink()
    if target.is_dir():
        assert [each.name for each in target.iterdir()] == ["mine"]
    elif is_there:
        assert target.read_bytes() == b'{"history": []}'
    else:
        assert not target.exists()


def test_the_libraries_remarks_do_not_go_through_a_linked_log(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "log.txt").symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError, match="is a link"):
        _log(tmp_path / "log.txt")
    assert (tmp_path / "target").read_bytes() == b""


def test_nothing_else_than_a_file_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(ConfigError, match="not a file"):
            write_atomic(path, "x")
    with pytest.raises(ConfigError, match="a pipe"):
        open_append(tmp_path / "pipe")


def test_what_raises_leaves_the_file_before_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    write_atomic(path, "before")
    with contextlib.suppress(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_as_one_whoever_writes(tmp_path: Path) -> None:
    """safetensors raises an error of its own: `distill`, and `fit` at its end, ended with a traceback."""
    full = pytest.raises(OSError, match="No space left on device")
    with full as found, replacing(tmp_path / "x"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert is_full(found.value)
    assert found.value.filename == str(tmp_path / "x")
    assert not any(tmp_path.iterdir())


def test_folders_that_are_links_are_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to(tmp_path.parent)
    with pytest.raises(ConfigError, match="checkpoints: is a link"):
        check_no_links(tmp_path, ("export", "checkpoints"))


def test_names_that_are_not_utf8_are_told_before_the_work(tmp_path: Path) -> None:
    """TensorBoard ended with a traceback, and what `compress` had written could not be read again."""
    for check in (make_folder, check_empty, partial(check_output, force=True)):
        with pytest.raises(ConfigError, match="the name is not UTF-8"):
            check(tmp_path / "run\udcff")
    assert not any(tmp_path.iterdir())
    check_output(tmp_path / "run.html", force=False)


def test_a_lock_is_held_once_and_gives_up_when_told(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"):
        with pytest.raises(ConfigError, match="in use"), locked(tmp_path / "lock"):
            pass
        with pytest.raises(InterruptedError), locked(tmp_path / "lock", lambda: None, lambda: True):
            pass


def test_names_that_leave_their_folder_are_no_file_names() -> None:
    assert all(map(is_file_name, ("task", "a.b", "..x", "é" * 120)))
    assert not any(map(is_file_name, ("", ".", "..", "../x", "a/b", "/etc", "a\0b", "é" * 130)))


def test_a_whole_folder_follows_the_umask_but_for_its_links(tmp_path: Path, umask: int) -> None:
    outside = tmp_path / "outside"
    outside.touch(0o600)
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").touch(0o600)
    (folder / "link").symlink_to(outside)
    follow_umask(folder)
    assert stat.S_IMODE((folder / "deep" / "file").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE(outside.stat().st_mode) == 0o600


def test_a_checkpoint_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.mkdir()
    write_whole(CHECKPOINT, path)
    assert read_checkpoint(path)["global_step"] == 0
    assert SweepDirectory(tmp_path).log_of("x").parent == tmp_path / "logs"


@pytest.mark.parametrize("is_there", [False, True])
def test_a_new_folder_is_whole_or_not_there(is_there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "out"
    if is_there:
        folder.mkdir(parents=True)
    full = OSError(errno.ENOSPC, "No space left on device")
    rust = RuntimeError("I/O error: No space left on device (os error 28)")
    for error, found in (
        (KeyboardInterrupt(), KeyboardInterrupt),
        (full, NoSpace),
        (rust, NoSpace),
        (OSError(), OSError),
    ):
        with pytest.raises(found):
            _half_way(folder, error)
        assert (folder.exists(), [*folder.parent.rglob("*")]) == (is_there, [folder] if is_there else [])
    with new_folder(folder) as new:
        (new / "sub").mkdir()
        (new / "sub" / "file").touch()
    assert [*folder.parent.rglob("*")] == [folder, folder / "sub", folder / "sub" / "file"]
    for place, words in ((folder, "is not empty"), (folder / "sub" / "file", "is no folder")):
        with pytest.raises(ConfigError, match=words), new_folder(place):
            pass
    with pytest.raises(ConfigError, match="file/x: cannot be written"), new_folder(folder / "sub" / "file" / "x"):
        pass


def test_a_user_without_a_home_is_told_where_the_cache_may_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", none)
    for name in ("PROMPTCOMP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="set PROMPTCOMP_CACHE to a folder"):
        cache_folder()
    monkeypatch.setenv("PROMPTCOMP_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def _half_way(folder: Path, error: BaseException) -> None:
    with new_folder(folder) as new:
        (new / "file").touch()
        assert not (folder / "file").exists()
        raise error
