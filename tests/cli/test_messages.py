"""What a person reads after a mistake: one message, exit code 2, no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The real program in a process of its own."""
    command = [sys.executable, "-m", "promptcomp", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=120)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("fit",), "give either --method NAME"),
        (("fit", "--method", "mned"), "did you mean 'mend'?"),
        (("fit", "--method", "mend", "optim.lrr=1"), "optim.lrr: unknown key; did you mean 'lr'?"),
        (("fit", "--method", "mend", "optim.lr=fast", "seeed=1"), "seeed: unknown key; did you mean 'seed'?"),
        (("fit", "--method", "mend", "method.name=mned"), "did you mean 'mend'?"),
        (("fit", "--method", "mend", "trainer.max_steps"), "an override is written section.key=value"),
        (("fit", "--config", "nowhere.yaml"), "nowhere.yaml: no such configuration file"),
        (("fit", "--resume", "nowhere"), "nowhere: no such run directory"),
        (("fit", "--resume", "x", "seed=1"), "--resume continues a run as it was configured"),
        (("evaluate", "nowhere"), "nowhere: no such run directory"),
        (("compare", "nowhere"), "nowhere"),
        (("pretrain", "toy_decodre"), "did you mean 'toy_decoder'?"),
        (("data", "show", "--method", "mend", "--split", "tset"), "tset"),
    ],
)
def test_one_message_and_exit_code_2(words: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())  # a refused run leaves nothing behind


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    done = run("fit", "--method", "mend", "optim.lr=-1", "method.num_slot=2", "trainer.max_steps=x", cwd=tmp_path)
    assert done.returncode == 2
    for part in ("optim.lr = -1", "did you mean 'num_slots'?", "trainer.max_steps = 'x'"):
        assert part in done.stderr


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected a mapping"),
        (b"- a\n- b\n", "expected a mapping"),
        (b"method: {name: mend", "not valid YAML"),
        (b"\xff\xfe\x00bad", "cannot be read"),
        (b"method: {name: mend}\n", "data: missing"),
        (b"method: {num_slots: 3}\n", "method.name: missing"),
    ],
)
def test_bad_files(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    done = run("fit", "--config", "bad.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_version_and_help() -> None:
    assert run("--version").stdout.startswith("promptcomp ")
    text = run("--help").stdout
    for command in ("fit", "evaluate", "compare", "pretrain", "methods", "data", "doctor"):
        assert command in text
