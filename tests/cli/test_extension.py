"""A package of its own adds a method (tests/extension), and every command follows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

EXTENSION = Path(__file__).resolve().parents[1] / "extension"
COMMANDS = """
import json, sys
import mean_pool_config
assert 'torch' not in sys.modules
import mean_pool
from promptcomp.cli import app
for words in json.loads(sys.argv[1]):
    app(words, standalone_mode=False)
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""
"""The package's files imported first, then several commands and tests by one process: most of the time of each is the
start."""
Program = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> Path:
    """A working directory with an experiment, and the package as pip would have installed it."""
    folder = tmp_path_factory.mktemp("extension")
    site = folder / "site"
    project = tomllib.loads((EXTENSION / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    for file in EXTENSION.glob("*.py"):
        shutil.copy(file, site)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    experiment = {
        "method": {"name": "mean_pool", "num_slots": 2},
        "data": {
            "name": "toy_icl",
            "num_demonstrations": 4,
            "queries_per_context": 2,
            "world": {"num_test_tasks": 2, "num_dev_tasks": 2, "num_queries": 2},
        },
        "lm": {"path": str(tiny_lm)},
        "trainer": {"max_steps": 3, "batch_size": 4, "eval_every": 3, "accelerator": "cpu", "threads": 1},
        "evaluation": {"measure_cost": False, "bootstrap_resamples": 100},
    }
    (folder / "mean_pool.yaml").write_text(yaml.safe_dump(experiment))
    sweep = {
        "experiment": "mean_pool.yaml",
        "set": {"trainer.max_steps": 1},
        "space": {"method.num_slots": [1, 2]},
        "objectives": [{"metric": "size.memory_slots", "direction": "minimize"}],
    }
    (folder / "slots.yaml").write_text(yaml.safe_dump(sweep))
    return folder


@pytest.fixture(scope="module")
def program(folder: Path) -> Program:
    """Python with that package, in that directory."""
    path = os.pathsep.join([str(folder / "site"), str(EXTENSION.parents[1]), os.environ.get("PYTHONPATH", "")])

    def call(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


@pytest.fixture(scope="module")
def trained(folder: Path, program: Program) -> Path:
    """A run of two processes."""
    program("-m", "promptcomp", "fit", "--config", "mean_pool.yaml", "--run-dir", "run", "trainer.devices=2")
    return folder / "run"


def test_it_is_trained_by_two_processes(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert (results["method"], results["title"]) == ("mean_pool", "mean pooling")
    assert results["size"]["memory_slots"] == 2
    assert json.loads((trained / "environment.json").read_text())
    assert load_file(trained / "export" / "trained.safetensors").keys() == {"linear.weight", "linear.bias"}


@pytest.fixture(scope="module")
def said(trained: Path, program: Program) -> str:
    """Its files are imported first, as a package's own tests do: the registry asks for the section while nothing of it
    is half imported. Then come the commands and the contract tests, which know no method by name and take this one too.
    """
    words = [
        ["methods", "--json"],
        ["compress", "run", "--output", "prompt.safetensors", "--text", "we like cat . so happy"],
        ["inspect", "prompt.safetensors", "--json"],
        ["export", "run", "--output", "out"],
        ["sweep", "slots.yaml", "--output", "sweep", "--json"],
    ]
    tests, few = EXTENSION.parent / "contract", "mean_pool0-llama or mean_pool0-t5_query_in_decoder"
    return program("-c", COMMANDS, json.dumps(words), "-x", "-p", "no:cacheprovider", str(tests), "-k", few)


def test_it_is_listed_compresses_and_is_exported(said: str, folder: Path) -> None:
    assert "stretches of the context become their mean embedding" in said
    assert '"mean_pool"' in said
    assert load_file(folder / "prompt.safetensors")["embeds"].shape[:2] == (1, 2)
    assert "method `mean_pool`" in (folder / "out" / "README.md").read_text()
    assert load_file(folder / "out" / "trained.safetensors").keys() == {"linear.weight", "linear.bias"}


def test_it_is_swept(said: str, folder: Path) -> None:
    found = [json.loads(file.read_text()) for file in (folder / "sweep").rglob("results.json")]
    assert sorted(each["size"]["memory_slots"] for each in found) == [1, 2]


def test_it_keeps_to_the_contract(said: str) -> None:
    assert re.search(r"\d\d passed", said)
