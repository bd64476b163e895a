"""One trajectory for every method, however a step is divided among processes and micro-batches.

In float64, because then rounding cannot hide a wrong sum: 1e-9 is far above what another order of additions does, and
far below what any other normalisation, order of the data or start of the weights does. In float32 AdamW turns the
rounding of a gradient near 0 into a visible part of a step (see docs/strategies.md for the figures).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from promptcomp.run.opening import quiet
from tests.distributed.trajectories import CASES, LAYOUTS, difference, divided, finish, save_models, start, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases trained by two processes, all in one group."""
    folder = tmp_path_factory.mktemp("trajectories")
    save_models(folder)
    finish(start("tests.distributed.trajectories", 2, str(folder), "float64", "few"))
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
def test_layouts_agree(trained: Path, number: int) -> None:
    with quiet():
        straight = train(CASES[number], LAYOUTS[0], trained)
        others = {LAYOUTS[1]: train(CASES[number], LAYOUTS[1], trained)}
    for layout in divided(number):
        file = trained / f"{number}-{LAYOUTS.index(layout)}.pt"
        others[layout] = torch.load(file, weights_only=True)
    for layout, found in others.items():
        assert found["start"].keys() == straight["start"].keys()
        assert all(torch.equal(value, straight["start"][name]) for name, value in found["start"].items()), layout
        assert max(difference(found, straight)) < 1e-9, layout
