"""results.json: fixed keys, round trip, atomic writing, clear errors."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest

from promptcomp.config import ConfigError
from promptcomp.evaluation.predictions import Prediction
from promptcomp.evaluation.results import (
    Cost,
    Estimate,
    Results,
    Size,
    SplitResult,
    TaskResult,
    read_results,
    write_results,
)
from promptcomp.files import write_atomic


def make(**changes) -> Results:
    split = SplitResult(metric="accuracy", count=512, method=0.93, full_prompt=0.96, no_prompt=0.25, retained=0.958)
    fields = {"method": "mend", "family": "decoder", "data": "toy_icl", "lm": "x", "seed": 0, "splits": {"test": split}}
    return Results(**(fields | changes))


def test_round_trip_keeps_everything(tmp_path):
    results = make(size=Size(context_tokens=96.0, memory_slots=8), cost=Cost(steps=10))
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path) == results
    assert read_results(tmp_path / "results.json") == results


def test_agreed_keys_are_there(tmp_path):
    write_results(tmp_path / "results.json", make())
    tree = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert tree["schema"] == 1
    assert {"method", "family", "data", "lm", "seed", "splits", "size", "cost"} <= set(tree)
    split_keys = "metric count method full_prompt no_prompt retained retained_ci others"
    assert set(split_keys.split()) <= set(tree["splits"]["test"])
    size_keys = "context_tokens memory_slots compression context_bytes memory_bytes"
    assert set(size_keys.split()) <= set(tree["size"])
    cost_keys = "train_seconds steps tokens_per_second compress_ms prefill_ms full_prefill_ms flops_ratio"
    assert set(cost_keys.split()) <= set(tree["cost"])


def test_a_file_with_only_the_agreed_keys_is_read(tmp_path):
    split = {"metric": "accuracy", "count": 2, "method": 1, "full_prompt": None, "no_prompt": 0.5, "retained": None}
    tree = {
        "schema": 1,
        "method": "m",
        "family": "decoder",
        "data": "d",
        "lm": "l",
        "seed": 0,
        "splits": {"test": split},
    }
    (tmp_path / "results.json").write_text(json.dumps(tree), encoding="utf-8")
    assert read_results(tmp_path).splits["test"].no_prompt == 0.5


def test_unknown_keys_survive(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, make())
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["later"] = {"a": 1}
    tree["cost"]["watts"] = 7
    path.write_text(json.dumps(tree), encoding="utf-8")
    write_results(path, read_results(path))
    again = json.loads(path.read_text(encoding="utf-8"))
    assert (again["later"], again["cost"]["watts"]) == ({"a": 1}, 7)


def test_numbers_that_are_not_finite_become_null(tmp_path):
    write_results(
        tmp_path / "results.json", make(cost=Cost(tokens_per_second=float("nan"), train_seconds=float("inf")))
    )
    cost = read_results(tmp_path).cost
    assert (cost.tokens_per_second, cost.train_seconds) == (None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 1, "method": "me', "damaged or edited"),
        ("[]", "not a results file"),
        ('{"accuracy": 1}', "not a results file"),
        ('{"schema": "one"}', "not a results file"),
        ('{"schema": 2}', "newer promptcomp .schema 2, this version reads 1"),
        ('{"schema": 1, "method": "m"}', "not a complete results file: family: Field required .and 4 more"),
    ],
)
def test_foreign_files_are_refused_with_a_reason(tmp_path, text, message):
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_results(tmp_path)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(ConfigError, match="no such results file; has the run finished"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_results(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "results.json"
    write_results(path, make())
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ConfigError, match=r"No space left on device.*free space"):
        write_results(path, make(seed=5))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        write_atomic(tmp_path / "none" / "a.txt", "x")


def test_every_key_is_documented():
    page = (Path(__file__).resolve().parents[2] / "docs" / "results_format.md").read_text(encoding="utf-8")
    for model in (Results, SplitResult, TaskResult, Estimate, Size, Cost, Prediction):
        for name, field in model.model_fields.items():
            assert re.search(rf"[`{{, ]{field.alias or name}[`}},]", page), f"{model.__name__}.{name}"
