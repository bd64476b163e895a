"""Token ids of both tasks and of plain fine-tuning equal the original's collated batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from promptcomp.batch import ANSWER, RATIONALE, Batch, collate
from promptcomp.datamodules.rationale.rationale_config import RationaleFolderData
from promptcomp.datamodules.rationale.rationale_module import RationaleDataModule
from promptcomp.datamodules.sampler import Draw
from promptcomp.datamodules.sections import Reader
from promptcomp.datamodules.sources.rationale_sources import FolderSource
from promptcomp.datamodules.tasks import RationaleRow, RationaleSource
from tests.parity.golden_step_by_step import Rows, batches, svamp_rows, tokenizer


def _batch(source: RationaleSource, standard: bool, **options: object) -> Batch:
    wanted = {"targets": "label", "markers": "none"} if standard else {}
    config = RationaleFolderData(folder=Path(), task="svamp", **{**wanted, "dev_share": 0, **options})
    module = RationaleDataModule(config, source, Reader(tokenizer(), 0, 4))
    return collate([module.train_context(Draw(i, i)) for i in range(4)])


def _same_rows(ids: Tensor, mask: Tensor, expected: np.ndarray, padding: int) -> None:
    """The same real tokens row by row (the original pads on the right)."""
    for row, kept, wanted in zip(ids, mask, expected, strict=True):
        assert row[kept].tolist() == wanted[wanted != padding].tolist()


@pytest.mark.parametrize("standard", [False, True])
def test_svamp_batches(standard: bool) -> None:
    found, wanted = _batch(Rows(svamp_rows()), standard), batches()
    assert not found.context.ids.shape[1]
    for role, name in ((ANSWER, "standard"),) if standard else ((ANSWER, "pred"), (RATIONALE, "expl")):
        of_role = found.role == role
        queries = found.query_of[of_role]
        _same_rows(found.query_ids[queries], found.query_mask[queries], wanted[f"svamp__{name}__input_ids"], 0)
        labels = wanted[f"svamp__{name}__labels"]
        _same_rows(found.target_ids[of_role], found.target_mask[of_role], labels, -100)
        width = labels.shape[1]  # what a T5 decoder reads: the target behind the start token, without its end
        shifted = torch.cat([torch.zeros(4, 1, dtype=torch.long), found.target_ids[of_role][:, : width - 1]], 1)
        assert shifted.tolist() == wanted[f"svamp__{name}__decoder_input_ids"].tolist()


def test_the_released_files_give_the_same_batch(shared_data: Path) -> None:
    """From the files through the 90/10 split to token ids; newlines of the input come out as blanks."""
    config = RationaleFolderData(folder=shared_data / "step_by_step", task="svamp", parsing="reference")
    module = RationaleDataModule(config, FolderSource(config), Reader(tokenizer(), 0, 4))
    assert (module.num_train_items(), len(module.rows("dev"))) == (720, 80)
    wanted = batches()
    first = collate([module.train_context(Draw(i, i)) for i in range(4)])
    queries = first.query_of[first.role == RATIONALE]
    _same_rows(first.query_ids[queries], first.query_mask[queries], wanted["svamp__expl__input_ids"], 0)
    targets = first.role == ANSWER
    _same_rows(first.target_ids[targets], first.target_mask[targets], wanted["svamp__pred__labels"], -100)
    assert isinstance(module.training_rows[0].row, RationaleRow)
