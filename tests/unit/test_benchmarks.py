"""Benchmarks that need a GPU run on CPU with tiny models, so that they work when there is one."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.forks import run_fork

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_gpu_benchmark_goes_on_when_a_case_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return run_fork("gpu", *command[2:])

    monkeypatch.syspath_prepend(BENCHMARKS)
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr(gpu.subprocess, "run", run)
    words = ["gpu.py", "--device", "cpu", "--quick", "--steps", "1", "--output", str(tmp_path / "gpu.json")]
    monkeypatch.setattr("sys.argv", [*words, "--cases", "gist_flex", "prompt_tuning"])
    gpu.main()
    found = json.loads((tmp_path / "gpu.json").read_text())
    by_name = {result["case"]["name"]: result for result in found["results"]}
    assert by_name["gist_flex"]["status"] == "failed"
    assert "FlexAttention" in by_name["gist_flex"]["error"]
    assert by_name["prompt_tuning"]["status"] == "ok"
    assert by_name["prompt_tuning"]["tokens_per_second"] > 0
    assert found["quick"]
    assert "gist_flex" in capsys.readouterr().out
