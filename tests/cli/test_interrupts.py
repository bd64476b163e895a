"""Ctrl-C at any moment of a command's start, and signals around the steps of a run: neither silent nor swallowed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptcomp.run import fitting
from promptcomp.run.callbacks import SaveBetweenSteps
from tests.cli.conftest import Run

PROBE = """
import os, signal, sys
at, command = sys.argv[1], sys.argv[2:]
class Finder:  # sends Ctrl-C when a module is asked for
    def find_spec(self, name, path=None, target=None):
        if name == at:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["promptcomp", *command]
from promptcomp.__main__ import main
main()
"""
COMMANDS = {
    "fit": ("fit", "--method", "mend", "--run-dir", "run"),
    "evaluate": ("evaluate", "run"),
    "compress": ("compress", "run", "--text", "x", "-o", "x.safetensors"),
    "sweep show": ("sweep", "show", "sweep"),
    "data validate": ("data", "validate", "--method", "mend"),
}


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("fit", "promptcomp.cli"),
        ("fit", "torch._C"),
        ("fit", "promptcomp.run.fitting"),
        ("evaluate", "promptcomp.run.configured"),
        ("compress", "promptcomp.run.configured"),
        ("sweep show", "promptcomp.sweeps.sweep_directory"),
        ("data validate", "lightning"),
    ],
)
def test_ctrl_c_while_modules_are_read_ends_with_a_word(command: str, module: str, tmp_path: Path) -> None:
    words = [sys.executable, "-W", "ignore", "-c", PROBE, module, *COMMANDS[command]]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=os.environ, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("seconds", [0.3, 1.1, 3.0])
def test_ctrl_c_at_any_moment_of_the_start(seconds: float, tmp_path: Path) -> None:
    """Whatever is done by then (a slow machine may be at another place): 130 and a word."""
    words = [sys.executable, "-W", "ignore", "-m", "promptcomp", *COMMANDS["fit"], "trainer.max_steps=100000"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(seconds, process.send_signal, (signal.SIGINT,))
        timer.start()
        out, err = process.communicate()
        timer.join()
    assert process.returncode == 130
    assert "interrupted" in err or "Continue with" in out
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [("fit", "--nothing"), ("--version",)])
def test_commands_that_come_to_their_end_keep_their_exit_code(words: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "promptcomp", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == (2 if "fit" in words else 0)
    assert "interrupted" not in done.stderr


def _sent_by(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    def sending(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(number)
        return function(*args, **kwargs)

    return sending


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("on_train_start", signal.SIGTERM),  # Lightning's own handlers are in place, ours not yet
        ("on_train_epoch_end", signal.SIGTERM),
        ("on_train_end", signal.SIGINT),
        ("on_train_end", signal.SIGUSR1),
    ],
)
def test_a_signal_around_the_steps_stops_the_run(
    tiny_run: Run, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SaveBetweenSteps, where, _sent_by(getattr(SaveBetweenSteps, where), number))
        done = tiny_run("run")
    assert done.returncode == (75 if number == signal.SIGUSR1 else 130), done.stderr
    assert "promptcomp fit --resume run" in done.stdout
    assert not (tmp_path / "run" / "results.json").exists()
    assert run("fit", "--resume", "run").returncode == 0
    assert (tmp_path / "run" / "results.json").is_file()


def test_ctrl_c_during_the_evaluation_says_how_to_go_on(
    tiny_run: Run, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "write_results", _sent_by(fitting.write_results, signal.SIGINT))
        done = tiny_run("my run")
    assert done.returncode == 130
    assert "promptcomp fit --resume 'my run'" in done.stderr
    assert not (tmp_path / "my run" / "results.json").exists()
    assert run("fit", "--resume", "my run").returncode == 0


def test_standard_streams_may_be_closed(tmp_path: Path) -> None:
    """As in `promptcomp judge ... <&-` of a service: nobody can be asked, and no traceback is made of it."""
    lines = '{"id": 1, "instruction": "a", "input": "b", "text": "%s"}'
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(lines % name, encoding="utf-8")
    words = ["judge", "a.jsonl", "b.jsonl", "--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--price-in", "1"]
    command = ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-W", "ignore", "-m", "promptcomp", *words]
    done = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("there is no terminal to ask")) == (2, 1)
    silent = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-m", "promptcomp", "fit", "--nothing"]
    assert subprocess.run(silent, cwd=tmp_path, check=False).returncode == 2


def test_the_current_folder_may_have_been_removed(tmp_path: Path) -> None:
    """Importing torch ended the program with "Intel oneMKL FATAL ERROR"."""
    gone = tmp_path / "gone"
    gone.mkdir()
    words = ["sh", "-c", 'rmdir "$1" && shift && exec "$@"', "sh", str(gone), sys.executable, "-m", "promptcomp", "fit"]
    done = subprocess.run(words, cwd=gone, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the current folder was removed")
