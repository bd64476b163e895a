"""A data section of another package: listed, validated, shown, checked and forecast like those of this one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from enum import Enum
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from promptcomp import config, datamodules, lightning_modules
from promptcomp.commands.data import data_list
from promptcomp.commands.explain import methods
from promptcomp.config import ConfigError, build
from promptcomp.datamodules.instruction.instruction_config import InstructionConfig
from promptcomp.datamodules.sections import Lengths
from promptcomp.datamodules.sources.records import Found, Problem, tell
from promptcomp.datamodules.tasks import InstructionRow, InstructionSource
from promptcomp.experiment import Experiment
from promptcomp.lightning_modules.method_config import MethodConfig
from promptcomp.reference import yaml_text
from tests.data_sections import byte_tokenizer, module_of, show, validate


class GreetingSource(InstructionSource):
    """The same rows in every split."""

    def __init__(self, greeting: str) -> None:
        self._greeting = greeting

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "test")

    def rows(self, split: str) -> Sequence[InstructionRow]:
        return [InstructionRow("greet", name, f"{self._greeting} {name}", "mine") for name in ("ada", "bob")]

    def check(self, found: Found = None) -> None:
        if not self._greeting:
            tell(Problem("greetings", 1, "no greeting"), found)


class GreetingData(InstructionConfig):
    """Greetings."""

    name: Literal["greetings"] = "greetings"
    greeting: str = "hello"

    def source(self) -> InstructionSource:
        return GreetingSource(self.greeting)


@pytest.fixture
def sections(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    point = SimpleNamespace(name="greetings", value="mine:GreetingData", dist=None, load=lambda: GreetingData)
    monkeypatch.setattr(config, "entry_points", lambda group: [point] if group == "promptcomp.data" else [])
    datamodules._datasets.cache_clear()
    yield datamodules._datasets()
    datamodules._datasets.cache_clear()


def test_it_stands_beside_ours(sections: dict[str, Any]) -> None:
    assert sections["greetings"] is GreetingData
    assert "toy_icl" in sections
    with pytest.raises(ConfigError, match="greting"):
        build(sections["greetings"], {"greting": "hi"})


def test_it_is_validated_shown_and_forecast(sections: dict[str, Any]) -> None:
    data = build(sections["greetings"], {"greeting": "hi", "max_context_tokens": 64})
    assert not [problem for problem in validate(data) if problem.severity == "error"]
    (row,) = show(data, byte_tokenizer(), "test", 1)
    assert "hi ada" in row.options[0]
    assert "greet" in "".join(row.demonstrations)
    assert module_of(data).num_train_items() == 2
    assert data.lengths(None) == Lengths(64, 512, 256)
    assert data.training_queries == 1
    assert not data.file_problems()


def test_its_files_are_checked_alone(sections: dict[str, Any]) -> None:
    (problem,) = build(sections["greetings"], {"greeting": ""}).file_problems()
    assert str(problem) == str(Problem("greetings", 1, "no greeting"))


def test_a_taken_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    value = "promptcomp.toy.toy_sections:ToyICLData"
    point = EntryPoint("toy_icl", value, "promptcomp.data")
    monkeypatch.setattr(config, "entry_points", lambda group: [point])
    datamodules._datasets.cache_clear()
    with pytest.raises(ConfigError, match="the name is taken"):
        datamodules._datasets()
    datamodules._datasets.cache_clear()


def test_what_cannot_be_imported_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = {
        "promptcomp.methods": EntryPoint("broken", "no_such_module:Section", "promptcomp.methods"),
        "promptcomp.data": EntryPoint("worse", "promptcomp.errors:nothing", "promptcomp.data"),
    }
    monkeypatch.setattr(config, "entry_points", lambda group: [points[group]])
    monkeypatch.setattr(config, "NOT_LOADED", {})
    monkeypatch.delitem(vars(lightning_modules), "METHODS", raising=False)
    datamodules._datasets.cache_clear()
    methods(as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert {"mend", "gist"} <= {each["name"] for each in shown["methods"]}
    assert shown["not_loaded"] == {
        "broken": "no_such_module:Section (entry point 'broken' of promptcomp.methods, package unknown) cannot be "
        "imported (ModuleNotFoundError: No module named 'no_such_module'); fix or uninstall unknown"
    }
    methods()
    assert "not loaded: no_such_module:Section" in " ".join(capsys.readouterr().out.split())
    data_list(as_json=True)
    listed = capsys.readouterr()
    assert "toy_icl" in json.loads(listed.out)
    assert "promptcomp.errors:nothing" in listed.err
    tree = {"method": {"name": "broken"}, "data": {"name": "toy_icl"}, "lm": {"path": "gpt2"}}
    with pytest.raises(ConfigError, match=r"method\.name = 'broken': no_such_module:Section .* cannot be imported"):
        build(Experiment, tree)
    datamodules._datasets.cache_clear()


class _Lacking(MethodConfig):
    """A section without a name, a title and a module."""


class _Nameless(_Lacking):
    """Its name may be any text."""

    name: str = "mine"


class _Bare(_Lacking):
    """It has its name alone."""

    name: Literal["mine"] = "mine"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (_Lacking, r"it needs a field `name: Literal\['mine'\] = 'mine'`"),
        (_Nameless, r"it needs a field `name: Literal\['mine'\] = 'mine'`"),
        (_Bare, "it lacks implementation, summary, title"),
    ],
)
def test_a_section_that_lacks_something_is_refused(
    section: type[MethodConfig], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = SimpleNamespace(name="mine", value="mine:Section", dist=None, load=lambda: section)
    monkeypatch.setattr(config, "entry_points", lambda group: [point])
    with pytest.raises(ConfigError, match=message):
        config.with_installed("promptcomp.methods", {}, MethodConfig)


def test_a_package_that_ends_the_program_when_it_is_imported_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    point = SimpleNamespace(name="mine", value="mine:Section", dist=None, load=lambda: sys.exit("no licence"))
    monkeypatch.setattr(config, "entry_points", lambda group: [point])
    monkeypatch.setattr(config, "NOT_LOADED", {})
    assert config.with_installed("promptcomp.methods", {}, MethodConfig) == {}
    assert "cannot be imported (SystemExit: no licence)" in config.NOT_LOADED["mine"]


def test_defaults_of_any_type_are_shown() -> None:
    class Colour(Enum):
        RED = "red"

    values = {Colour.RED: "red", date(2020, 1, 2): "2020-01-02", Path("a/b"): "a/b", frozenset({1}): "[1]"}
    assert {value: yaml_text(value) for value in values} == values
