"""The original's 90/10 split and its subsamples, row by row."""

from __future__ import annotations

from pathlib import Path

import pytest

from promptcomp.datamodules.rationale.rationale_config import RationaleConfig, RationaleFolderData
from promptcomp.datamodules.rationale.rationale_module import reference_split, split_rows
from promptcomp.datamodules.tasks import RationaleRow
from tests.parity.golden_step_by_step import Rows, numbers


@pytest.mark.parametrize("name", ["svamp_train_valid", "cqa_train_valid"])
def test_ninety_ten_split(name: str) -> None:
    wanted = numbers("splits")[name]
    train, dev = reference_split(wanted["n"], wanted["test_size"], wanted["seed"])
    assert (len(train), len(dev)) == (wanted["n_train"], wanted["n_valid"])
    assert train[:10].tolist() == wanted["first10_train"]
    assert dev[:10].tolist() == wanted["first10_valid"]


@pytest.mark.parametrize(
    ("name", "share", "count", "seed"),
    [
        ("subsample_0.2_of_800_run0", 0.2, 800, 0),
        ("subsample_0.7_of_800_run0", 0.7, 800, 0),
        ("subsample_0.5_of_800_run1", 0.5, 800, 1),
        ("subsample_0.125_of_9741_run0", 0.125, 9741, 0),
    ],
)
def test_subsamples(name: str, share: float, count: int, seed: int) -> None:
    """Also with the float error that costs a row at 0.7 of 800; the subset is drawn before the dev split."""
    wanted = numbers("splits")[name]
    rows = [RationaleRow(str(i), f"question {i}", "answer") for i in range(count)]
    config: RationaleConfig = RationaleFolderData(
        folder=Path(), task="svamp", subset="reference", train_share=share, dev_share=0
    )
    kept, dev = split_rows(config, Rows(rows), seed)
    assert len(kept) == wanted["n_kept"]
    assert [int(row.id) for row in kept[:10]] == wanted["first10_kept"]
    assert not len(dev)
