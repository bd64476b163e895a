"""How far trainings with different divisions of a step drift apart, as a Markdown table.

    python -m benchmarks.trajectories [--all] [--dtype float32]

Every method is trained for three steps with tiny random LMs under each layout; the table holds the largest difference
of a loss and of a trained weight to one process with one micro-batch. CPU, gloo.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import torch

from promptcomp.run.opening import quiet
from tests.distributed.trajectories import ALL_CASES, CASES, LAYOUTS, difference, finish, save_models, start, train


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every method with every LM, not the tests' choice")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cases = ALL_CASES if options.all else CASES
    print(f"| {options.dtype}: largest difference of a loss / of a weight | {' | '.join(LAYOUTS[1:])} |")
    print(f"|---|{'---|' * (len(LAYOUTS) - 1)}")
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        save_models(folder)
        which = "all" if options.all else "few"
        finish(start("tests.distributed.trajectories", 2, name, options.dtype, which, *LAYOUTS[2:]), timeout=3600)
        for number, case in enumerate(cases):
            straight = train(case, LAYOUTS[0], folder, options.dtype)
            cells = []
            for layout in LAYOUTS[1:]:
                file = folder / f"{number}-{LAYOUTS.index(layout)}.pt"
                found = torch.load(file) if file.is_file() else train(case, layout, folder, options.dtype)
                cells.append("{:.0e} / {:.0e}".format(*difference(found, straight)))
            print(f"| {case.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
