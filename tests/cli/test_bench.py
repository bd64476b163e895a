"""`promptcomp bench`, as a person or a script calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

SHORT = ("--lengths", "16,4096", "--batch-sizes", "1", "--new-tokens", "2", "--repeats", "3", "--device", "cpu")


def test_a_run_is_measured_and_written(run: Run, tiny_run: Run, tmp_path: Path) -> None:
    assert tiny_run("trained").returncode == 0
    done = run("bench", "trained", *SHORT, "--json", "-o", "costs")
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    assert tree["trained"] is True
    assert [r["way"] for r in tree["records"]] == ["no_cache", "prefix_cache", "compressed", "compressed_cached"]
    assert "4,096 prompt tokens" in tree["skipped"][0]
    assert json.loads((tmp_path / "costs" / "bench.json").read_text()) == tree
    assert (tmp_path / "costs" / "bench.csv").read_text().startswith("method,lm,way,prompt_tokens")
    assert all((tmp_path / "costs" / name).is_file() for name in ("bench.png", "bench.svg"))
    again = run("bench", "trained", *SHORT, "-o", "costs")
    assert again.returncode == 2
    assert "is not empty" in again.stderr


def test_an_architecture_is_measured_before_training(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "arch"
    folder.mkdir()
    sizes = {"model_type": "gpt2", "vocab_size": 50, "n_positions": 128, "n_embd": 16, "n_layer": 2, "n_head": 2}
    (folder / "config.json").write_text(json.dumps(sizes))
    words = ("bench", "--method", "mend", "--lm", str(folder), "--slots", "3", *SHORT, "-o", "costs", "lm.bos=null")
    done = run(*words)
    assert done.returncode == 0, done.stderr
    for part in ("16 prompt tokens", "prefix cache", "skipped", "untrained weights", "measuring 16 prompt tokens"):
        assert part in done.stdout
    assert sorted(path.name for path in (tmp_path / "costs").iterdir()) == [
        *("bench.csv", "bench.json", "bench.png", "bench.svg")
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give a run directory"),
        (("nowhere",), "nowhere"),
        (("runs", "--method", "mend"), "brings its own method"),
        (("--method", "mend", "--lengths", "a"), "--lengths"),
        (("--method", "mend", "--device", "tpu"), "choose auto, cpu, cuda or cuda:1"),
        (("--method", "mend", "--lengths", "100000"), "nothing to measure"),
    ],
)
def test_mistakes_are_one_sentence(run: Run, words: tuple[str, ...], message: str) -> None:
    done = run("bench", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
