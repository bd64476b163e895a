"""A sweep over the fake trainer."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from promptcomp.config import build
from promptcomp.sweeps.state import SweepState
from promptcomp.sweeps.study import begin, read_state
from promptcomp.sweeps.sweep_config import SweepConfig
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.worker import work

FAKE = (sys.executable, "-I", "-S", str(Path(__file__).with_name("fake_fit.py")))


def sweep_config(**changes: Any) -> SweepConfig:
    """A grid of two points."""
    tree: dict[str, Any] = {
        "experiment": "mend",
        "set": {"trainer.accelerator": "cpu", "trainer.eval_every": 1, "trainer.max_steps": 4},
        "space": {"method.num_slots": {"values": [2, 4]}},
        "objectives": [{"metric": "retained"}],
    }
    return build(SweepConfig, {**tree, **changes})


def run(config: SweepConfig, path: Path, storage: str | None = None) -> SweepState:
    """Begin (or go on) and work in this process until nothing is left."""
    directory = SweepDirectory(path)
    begin(config, directory, storage, 1).close()
    assert work(directory, command=FAKE) == 0
    return read_state(directory)


def statuses(state: SweepState) -> Counter[str]:
    """How many trials there are of each status."""
    return Counter(trial.status for trial in state.trials)


def starts(path: Path) -> dict[str, int]:
    """How often each run was started."""
    return {file.parent.name: len(file.read_text().splitlines()) for file in path.glob("*/*/starts.txt")}


def assert_exactly_once(state: SweepState, count: int) -> None:
    """Every trial is finished, none was run again after that, and never two trainers in one directory."""
    assert statuses(state) == {"finished": count}
    assert not list(state.directory.path.glob("*/*/repeated.txt"))
    assert not list(state.directory.path.glob("*/*/doubled.txt"))
    assert len({trial.run for trial in state.trials}) == count
