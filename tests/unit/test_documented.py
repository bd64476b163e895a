"""Every code block of the pages: the program understands commands, names of Python exist, YAML is a configuration.

`python -m tests.documented` lists the blocks with what is done here; the notebooks of docs/tutorials are in
test_tutorials.py, the session of docs/python.md in test_api.py.
"""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import promptcomp
from promptcomp import experiment, reference
from promptcomp.cli import app
from promptcomp.config import build
from promptcomp.documents import shipped
from promptcomp.errors import ConfigError
from tests.documented import ROOT, Block, blocks, is_run

BLOCKS = list(blocks())
COMMANDS = [(block.place, words) for block in BLOCKS for words in block.commands]
KEYS = {each.key for each in reference.entries().values()} | {each.path for each in reference.entries().values()}
FREE = ("settings", "environment", "columns", "files", "space", "set", "choices")
"""Sections with keys of their own."""


@pytest.fixture(scope="module")
def program() -> Any:
    """The program with every command replaced by one that notes what it is given."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def note(command: Any, name: str) -> None:
        for word, each in getattr(command, "commands", {}).items():
            note(each, f"{name} {word}".strip())
        if not getattr(command, "commands", {}):
            command.callback = lambda **given: seen.append((name, given))

    root = typer.main.get_command.__wrapped__(app)  # type: ignore[attr-defined]  # not the one that all tests share
    note(root, "")

    def called(words: list[str]) -> tuple[str, dict[str, Any]]:
        seen.clear()
        root.main([*words], prog_name="promptcomp", standalone_mode=False)
        return seen[0]

    return called


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the experiments that pages call their own are that of the README."""
    folder = tmp_path_factory.mktemp("pages")
    own = next(block for block in BLOCKS if block.language == "yaml" and block.page.name == "README.md")
    for name in ("own.yaml", "my.yaml", "my_experiment.yaml"):
        (folder / name).write_text(own.text)
    return folder


@pytest.mark.parametrize(
    ("place", "words"), COMMANDS, ids=[f"{place} {shlex.join(words)[:60]}" for place, words in COMMANDS]
)
def test_a_command_is_understood(place: str, words: list[str], program: Any, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder)
    name, given = program([word for i, word in enumerate(words) if word != "..." or words[i - 1].startswith("-")])
    settings = [word for word in given.get("overrides") or () if not word.endswith("...")]
    method, config = given.get("method"), given.get("config")
    config = config if config is None or Path(config).is_file() else Path("own.yaml")
    if name in ("fit", "data show", "data validate") and not given.get("resume"):
        experiment.load(method, config, [word for word in settings if not word.startswith("slurm.")])
    else:
        settings = [word for word in settings if "=" in word]
        assert method is None or method in shipped() or Path(method).is_file(), method
        for key in (word.partition("=")[0] for word in settings):
            assert _is_known(f"pretrain.{key}" if name == "pretrain" else key), f"{place}: no key {key}"


@pytest.mark.parametrize("words", [words for _, words in COMMANDS if is_run(words)], ids=shlex.join)
def test_a_cheap_command_runs(words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    app(words, standalone_mode=False)


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.language == "python"], ids=lambda block: block.place)
def test_python_names_exist(block: Block) -> None:
    text = block.text
    if ">>>" in text:
        text = "\n".join(line[4:] for line in text.splitlines() if line.startswith((">>>", "...")))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "promptcomp":
            assert node.attr in promptcomp.__all__, node.attr
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("promptcomp"):
            module = __import__(node.module, fromlist=["x"])
            assert all(hasattr(module, each.name) for each in node.names), ast.unparse(node)


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.language == "yaml"], ids=lambda block: block.place)
def test_yaml_is_a_configuration(block: Block) -> None:
    tree = yaml.safe_load(block.text)
    if {"method", "data", "lm"} <= tree.keys():
        build(experiment.Experiment, tree, source=block.place)
        return
    if tree.keys() & {"experiment", "methods", "architecture"}:
        return  # a sweep, a board or a recipe: the tests of each read their examples
    if block.page.stem == "clusters":  # profiles by their names
        tree = {"slurm": next(each for each in tree.values() if isinstance(each, Mapping))}
    for key in _flat(tree):
        assert _is_known(key) or _is_known(f"sweep.{key}"), key


def test_the_pages_have_blocks_of_each_kind() -> None:
    assert len(COMMANDS) > 100
    assert sum(is_run(words) for _, words in COMMANDS) >= 3
    assert (ROOT / "docs" / "tutorials").is_dir()


def test_a_wrong_command_is_found(program: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["fit", "--metod", "mend"], ["fti", "mend"]):
        with pytest.raises(Exception, match="No such"):
            program(words)
    with pytest.raises(ConfigError, match="num_slot"):
        test_a_command_is_understood("", ["fit", "mend", "method.num_slot=3"], program, folder, monkeypatch)


def _is_known(key: str) -> bool:
    section, _, last = key.rpartition(".")
    return (
        key in KEYS or (last in ("name", "pruner") and section in KEYS) or any(each in FREE for each in key.split("."))
    )


def _flat(tree: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"
