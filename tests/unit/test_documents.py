"""YAML and JSON that promptcomp reads itself: whatever is wrong is one message, and nothing hangs."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
import yaml

from promptcomp.config import ConfigError, apply_overrides, build
from promptcomp.documents import DEPTH, JSON_LIMIT, YAML_LIMIT, parse_json, parse_yaml, read_json, read_yaml
from promptcomp.experiment import load
from promptcomp.lightning_modules.method_config import OptimConfig

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
LETTERS = f"a: &a {'x' * 1000}\nb: [{', '.join(['*a'] * 9000)}]"
YAML = {
    "[" * 1000: "nest",
    "[" * 100_000: "nest",
    "- " * 100_000: "nest",
    "{a: " * 1000 + "}" * 1000: "nest",
    "[" * 1000 + "]" * 1000: "nest",
    "!!int abc": "line 1, column 1: 'abc' is not valid as !!int",
    "!!float abc": "!!float",
    "!!int ''": "!!int",
    "!!bool maybe": "!!bool",
    "a: !!python/object/apply:os.system [ls]": "python/object",
    "!mine x": "could not determine a constructor",
    "!!set {a, b}": "could not determine",
    "!!binary aGk=": "could not determine",
    BOMB: "aliases",
    LETTERS: "aliases",
    "&a [*a]": "something that contains it",
    "a: *b": "undefined alias",
    "a: 1\nb: 2\na: 3": "line 3, column 1: the key 'a' occurs twice",
    "? [a]\n: b": "unhashable key",
    "a: " + "9" * 5000: "too large",
    "a: 99999999999999999999": "too large",
    "a: 0x" + "f" * 5000: "too large",
    'a: "x\\0y"': "NUL",
    "a: x\0y": "character 0",
    'a: "\\ud800"': "invalid Unicode character",
    "a: \ud800": "not UTF-8",
    "a: b\n---\nc: d": "single document",
    "a: [": "line 2, column 1: while parsing a flow",
    "<<: 1": "merg",
    "x: " + "y" * YAML_LIMIT: "larger than 1 MiB",
}
JSON = {
    "[" * 100_000: "nest",
    "[" * (DEPTH + 2) + "]" * (DEPTH + 2): "nest",
    '{"a": 1, "a": 2}': "'a' occurs twice",
    "[NaN]": "NaN",
    "[1e999]": "too large",
    "9" * 5000: "too large",
    '"\\ud800"': "surrogate",
    "{": "line 1, column 2",
    "": "line 1",
    "\0": "line 1",
}


@pytest.mark.parametrize("text", YAML, ids=lambda text: ascii(text[:20]))
def test_yaml_that_is_none_is_refused_in_one_line_wherever_it_stands(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        parse_yaml(text)
    assert YAML[text] in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"^['\"]a\.b="):
        apply_overrides({}, [f"a.b={text}"])
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ConfigError) as refused:
        read_yaml(file)
    assert str(file) in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("text", JSON, ids=lambda text: ascii(text[:20]))
def test_json_that_is_none_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        parse_json(text)
    assert JSON[text] in str(error.value)
    file = tmp_path / "results.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{file}: not a results file, not valid JSON"):
        read_json(file, "results file")


def test_values_are_those_of_yaml_but_a_date_and_a_time_are_texts() -> None:
    text = (
        "a: &a {x: 1, y: [true, null, 1.5, 1e-5, 0x10]}\nb: {<<: *a, z: 'text'}\nc: 2024-13-45\nd: 2024-01-02\n"
        "e: 1:30\n? f\n: g\n"
    )
    expected = yaml.safe_load(re.sub(r"2024-\d+-\d+|1:30", r"'\g<0>'", text))
    assert parse_yaml(text) == expected
    assert parse_yaml("[010, -007, +01.50, 0, 0.5, 00, 0x1f, 1_000]") == [10, -7, 1.5, 0, 0.5, 0, 31, 1000]
    assert parse_yaml("a: 1" + ":1" * 500_000 + ".5")["a"].endswith(":1.5")
    assert parse_yaml("time: 2:00:00\nnodes: 2", texts=True) == {"time": "2:00:00", "nodes": "2"}
    assert parse_yaml("") is None
    with pytest.raises(ConfigError, match=r"optim.lr = '2024-13-45': Input should be a valid number"):
        load("no_prompt", None, ["optim.lr=2024-13-45"])


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_a_setting_that_is_no_finite_number_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="finite"):
        build(OptimConfig, {"lr": parse_yaml(value)})


@pytest.mark.parametrize("read", [read_yaml, lambda path: read_json(path, "file")], ids=["yaml", "json"])
def test_what_is_no_readable_file_is_refused_without_waiting(tmp_path: Path, read: object) -> None:
    assert callable(read)
    pipe, door, folder = tmp_path / "pipe", tmp_path / "door", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(door))
        for path, word in ((pipe, "a pipe"), (folder, "a folder"), (Path("/dev/zero"), "a device"), (door, str(door))):
            with pytest.raises(ConfigError, match=word):
                read(path)
    large, latin = tmp_path / "large", tmp_path / "latin"
    with large.open("wb") as file:
        file.truncate(JSON_LIMIT + 1)
    latin.write_bytes(b"a: 1\nb: \xe9")
    with pytest.raises(ConfigError, match="larger than"):
        read(large)
    with pytest.raises(ConfigError, match=r"latin, line 2: not UTF-8 text \(byte 0xe9\)"):
        read(latin)
    for missing in (tmp_path / "missing", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(ConfigError) as error:
            read(missing)
        assert len(str(error.value)) < 400


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 1}


def test_an_override_without_end_and_thousands_of_mistakes_are_told_shortly() -> None:
    with pytest.raises(ConfigError, match="an override is written") as deep:
        apply_overrides({}, [".".join(["a"] * 10_000) + "=1"])
    with pytest.raises(ConfigError, match="and 980 more") as many:
        build(OptimConfig, {f"key{i}": i for i in range(1000)})
    assert len(str(deep.value)) < 400
    assert len(str(many.value)) < 4000
