"""Benchmarks that need a GPU run on CPU with tiny models, so that they work when there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_gpu_benchmark_goes_on_when_a_case_fails(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--quick", "--steps", "1"]
    command += ["--cases", "gist_flex", "prompt_tuning", "--output", str(tmp_path / "gpu.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    by_name = {result["case"]["name"]: result for result in found["results"]}
    assert by_name["gist_flex"]["status"] == "failed"
    assert "FlexAttention" in by_name["gist_flex"]["error"]
    assert by_name["prompt_tuning"]["status"] == "ok"
    assert by_name["prompt_tuning"]["tokens_per_second"] > 0
    assert found["quick"]
    assert "gist_flex" in done.stdout
