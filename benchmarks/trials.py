"""What a trial of a sweep costs beside its training: forked from its worker, and started as a new program.

Run: python benchmarks/trials.py [--steps 20] [--workers 2]. The shipped sweep `loss_weight` (seven points, one seed,
all settings but the number of steps as shipped) is run twice by as many workers. The times are those that sweep and
runs have recorded: a trial from its claim to its end, `cost.train_seconds` of its results, and for the evaluation of
the 1,000 test examples the times of the files between which it stands. What is left is the fixed cost: process, data,
models, files.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from promptcomp.checkpoints.trained_state import TENSORS
from promptcomp.evaluation.results import read_results
from promptcomp.run.run_directory import RunDirectory
from promptcomp.sweeps.study import begin, read_state
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.sweep_file import read_sweep
from promptcomp.sweeps.worker import work


def measure(folder: Path, steps: int, workers: int, fork: bool) -> str:
    """One line of the table."""
    directory = SweepDirectory(folder / ("forked" if fork else "new"))
    words = ["sweep.seeds=1", f"trainer.max_steps={steps}", "trainer.accelerator=cpu", "trainer.threads=1"]
    begin(read_sweep("loss_weight", words), directory, None, 1)
    start = time.perf_counter()
    command = [sys.executable, __file__, "--work", str(directory.path), *(["--fork"] if fork else [])]
    crew = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(workers)]
    codes = [each.wait() for each in crew]
    assert not any(codes), codes
    whole = time.perf_counter() - start
    trials = read_state(directory).trials
    training = [read_results(trial.run).cost.train_seconds or 0.0 for trial in trials]
    walls = [(trial.ended - trial.started).total_seconds() for trial in trials if trial.ended and trial.started]
    testing = [evaluation_seconds(RunDirectory(trial.run)) for trial in trials]
    fixed = [wall - a - b for wall, a, b in zip(walls, training, testing, strict=True)]
    name = "forked" if fork else "new program"
    columns = (whole, *(statistics.median(found) for found in (walls, training, testing, fixed)))
    return f"| {name} | {' | '.join(f'{seconds:.1f}' for seconds in columns)} |"


def evaluation_seconds(run: RunDirectory) -> float:
    """From the export, which is written after training, to the predictions."""
    return run.predictions.stat().st_mtime - (run.export / TENSORS).stat().st_mtime


def main() -> None:
    """Measure both, or be a worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--fork", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        sys.exit(work(SweepDirectory(given.work), fork=given.fork))
    print("| trials | all, s | a trial, s | its training | its evaluation | the rest |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for fork in (False, True):
            print(measure(Path(folder), given.steps, given.workers, fork), flush=True)


if __name__ == "__main__":
    main()
