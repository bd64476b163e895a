"""Two gloo processes, started by the real program, train as one does."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def fit(folder: Path, devices: int) -> Path:
    """A short MEND run on the embedded world with this many processes."""
    run = folder / f"run{devices}"
    words = [
        "fit", "--method", "mend", "--run-dir", str(run), f"trainer.devices={devices}", "trainer.accelerator=cpu",
        "trainer.threads=1", "trainer.max_steps=3", "trainer.batch_size=4", "trainer.eval_every=2",
        "method.num_slots=2", "data.queries_per_context=2", "data.num_demonstrations=4",
        "data.world.num_test_tasks=3", "data.world.num_dev_tasks=3", "data.world.num_queries=3",
        "evaluation.measure_cost=false", "evaluation.bootstrap_resamples=100",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "promptcomp", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return run


def test_two_processes_give_one_trajectory(tmp_path: Path) -> None:
    one, two = fit(tmp_path, 1), fit(tmp_path, 2)
    first, second = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (one, two)
    )
    assert first.keys() == second.keys()
    for name, value in first.items():
        # AdamW turns the rounding of a gradient near 0 into a visible part of a step (here at most 1e-3)
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=5e-4)
    rows = [list(csv.DictReader((run / "metrics.csv").read_text().splitlines())) for run in (one, two)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    assert float(rows[0][0]["dev/loss"]) == pytest.approx(float(rows[1][0]["dev/loss"]), rel=1e-4)
    results = [json.loads((run / "results.json").read_text()) for run in (one, two)]
    assert results[0]["splits"]["test"]["count"] == results[1]["splits"]["test"]["count"]
