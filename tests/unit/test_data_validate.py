"""`validate` finds every bad row, with file and line, in one pass; a run stops at the first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from promptcomp.config import ConfigError
from promptcomp.datamodules.icl_config import MetaICLData, TableData
from promptcomp.datamodules.sources.metaicl_folder import MetaICLSource
from promptcomp.toy.toy_sections import ToyICLData
from tests.data_sections import validate

GOOD: dict[str, Any] = {"task": "a", "input": "one", "output": "yes", "options": ["no", "yes"]}

BAD_LINES: list[tuple[bytes, str, str]] = [
    (b"{not json}", "error", "not valid JSON: Expecting property name"),
    (b'{"input": "caf\xe9", "output": "x"}', "error", "not UTF-8 text (byte 14 of the line)"),
    (b'["a", "b"]', "error", "expected an object with 'input' and 'output', found list"),
    (b'{"output": "yes"}', "error", "'input' is missing"),
    (b'{"input": "one"}', "error", "'output' is missing"),
    (b'{"input": "one", "output": null}', "error", "'output' is missing"),
    (b'{"input": "one", "output": ""}', "error", "'output' is empty"),
    (b'{"input": 1, "output": "yes"}', "error", "'input' is int, expected text"),
    (b'{"input": "one", "output": ["yes"]}', "error", "'output' is list, expected text"),
    (b'{"input": "one", "output": "yes", "options": "yes"}', "error", "'options' is not a list of texts"),
    (b'{"input": "one", "output": "yes", "options": ["no", 1]}', "error", "'options' is not a list of texts"),
    (
        b'{"input": "one", "output": "yes", "options": ["no"]}',
        "error",
        "'output' 'yes' is not among the options",
    ),
    (b'{"input": "one", "output": "a", "options": ["a", "a"]}', "error", "'options' has an option twice"),
    (b'{"input": "three", "output": "yes", "task": "b"}', "error", "the row belongs to task 'b', not 'a'"),
    (b'{"input": " ", "output": "yes"}', "warning", "'input' is empty"),
    (b'{"input": "two", "output": "yes", "options": ["yes"]}', "warning", "there is only one option"),
    (json.dumps(GOOD).encode(), "warning", "the same input and output as in line 1"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A MetaICL folder whose only training file holds one good row and then every kind of bad row."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "mine.json").write_text(json.dumps({"train": ["a", "gone"], "test": ["a", "t"]}))
    (tmp_path / "data" / "a").mkdir(parents=True)
    lines = [json.dumps(GOOD).encode(), *(line for line, _, _ in BAD_LINES)]
    (tmp_path / "data" / "a" / "a_16384_100_train.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "data" / "t").mkdir()
    (tmp_path / "data" / "t" / "t_16_100_train.jsonl").write_bytes(b"\n \n")
    return tmp_path


def test_metaicl_folder(folder: Path) -> None:
    found = validate(MetaICLData(folder=folder, partition="mine", seeds=(100,), dev="none"))
    train = folder / "data" / "a" / "a_16384_100_train.jsonl"
    in_file = [problem for problem in found if problem.file == str(train)]
    assert [(problem.line, problem.severity) for problem in in_file] == [
        (number, severity) for number, (_, severity, _) in enumerate(BAD_LINES, start=2)
    ]
    for problem, (_, _, message) in zip(in_file, BAD_LINES, strict=True):
        assert problem.message.startswith(message)
        assert str(problem).startswith(f"{train}:{problem.line}: ")
    elsewhere = [str(problem) for problem in found if problem.file != str(train)]
    assert [text.split("/")[-1] for text in elsewhere] == [
        "mine.json: task 'a' is both a train and a test task",
        "gone",  # ... task 'gone' is unknown: no folder ...
        "a_16_100_train.jsonl: no such file",
        "a_16_100_test.jsonl: no such file",
        "t_16_100_train.jsonl: the file has no rows",
        "t_16_100_test.jsonl: no such file",
    ]


def test_a_run_stops_at_the_first_bad_row(folder: Path) -> None:
    config = MetaICLData(folder=folder, partition="mine", seeds=(100,), dev="none")
    with pytest.raises(ConfigError, match=r"a_16384_100_train\.jsonl:2: not valid JSON") as caught:
        MetaICLSource(config).tasks("train")
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    (problem,) = validate(MetaICLData(folder=tmp_path / "gone", partition="mine"))
    assert "no such file or folder" in problem.message
    (problem,) = validate(MetaICLData(folder=tmp_path, partition="mine"))
    assert "data.partition 'mine': no file" in problem.message


def test_tables(tmp_path: Path) -> None:
    bad, twin = tmp_path / "bad.csv", tmp_path / "twin.jsonl"
    bad.write_text("input,output,options\none,yes,no|yes\ntwo,maybe,no|yes\nthree,,\none,yes,no|yes\n")
    twin.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "input": "two"}) + "\n")
    found = validate(TableData(train=(bad,), test=(twin,), dev_share=0))
    assert [(problem.line, problem.severity) for problem in found] == [(3, "error"), (4, "error"), (5, "warning")]
    found = validate(TableData(train=(twin,), test=(twin,), dev_share=0))
    assert [problem.message for problem in found] == [
        "task 'a' is both a train and a test task",
        "test: 2 queries are training rows too (same input and output)",
    ]
    found = validate(TableData(train=(twin,), test=(twin,)))
    assert "with one training task, none can be held out" in found[0].message


def test_generated_data_has_no_files_to_check() -> None:
    assert validate(ToyICLData()) == []


def test_real_data_is_clean(shared_data: Path) -> None:
    for partition in ("class_to_class", "non_class_to_class", "non_paraphrase_to_paraphrase"):
        config = MetaICLData(folder=shared_data / "metaicl_t0", partition=partition)
        assert [problem for problem in validate(config) if problem.severity == "error"] == []
