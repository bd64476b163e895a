"""Who sees whom, for every golden case: gist first, last, missing, mixed numbers, padding on either side.

Ours is compared at real tokens: the original's padding rows hold junk. Cases with two gist spans are left out, as a
prompt of ours has one (there the original shows what lies between them to everything behind).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from promptcomp.language_model import LanguageModel, t5_encoder
from promptcomp.language_model.packing import pack, tree_mask
from tests.parity.golden_gist import GIST, Arrays, Row, batch_of, prefix_of, split, tiny_t5

ARRAYS = Arrays("masks")
CASES = sorted({name.rpartition("/")[0] for name in ARRAYS.names if not name.startswith("hand_two_spans")})
VISIBLE = {"gist": "gist", "neg_control": "none", "pos_control": "all"}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_t5()


def rows_of(case: str) -> list[tuple[Tensor, Row]]:
    """The columns of each row's real tokens, and the row."""
    ids = ARRAYS[f"{case}/input_ids"]
    return [((row != 0).nonzero()[:, 0], split(row[row != 0].tolist(), (1,))) for row in ids]


@pytest.mark.parametrize("condition", list(VISIBLE))
@pytest.mark.parametrize("case", CASES)
def test_decoder_masks(case: str, condition: str, lm: LanguageModel) -> None:
    places, rows = zip(*rows_of(case), strict=True)
    batch = batch_of(rows)  # every row has a target of one token that no golden row has
    packed = pack(batch.query_ids, batch.query_mask, batch.context_of, batch)
    prefix = prefix_of(lm, rows, VISIBLE[condition])
    sees = tree_mask(packed, prefix.mask, with_prefix_rows=True, visible=prefix.visible)
    golden = ARRAYS[f"{case}/llama_allowed_{condition}"].bool()
    golden = golden.squeeze(1) if golden.dim() == 4 else golden
    real = torch.cat([prefix.mask, (packed.query >= 0) & (packed.target < 0)], 1)
    for number, place in enumerate(places):
        ours = sees[number][real[number]][:, real[number]]
        assert torch.equal(ours, golden[number][place][:, place]), number


@pytest.mark.parametrize("condition", ["gist", "neg_control"])
@pytest.mark.parametrize("case", CASES)
def test_encoder_masks(case: str, condition: str, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def note(_encoder: object, embeds: Tensor, sees: Tensor) -> tuple[list[Tensor], Tensor]:
        seen.append(sees)
        return [], embeds

    monkeypatch.setattr(t5_encoder, "_run", note)
    places, rows = zip(*rows_of(case), strict=True)
    batch = batch_of(rows)
    prefix = prefix_of(lm, rows, VISIBLE[condition])
    queries = lm.embed(batch.query_ids), batch.query_mask
    cross = t5_encoder.encode_behind(lm.hf.get_encoder(), prefix, *queries).mask
    golden, golden_cross = ARRAYS[f"{case}/t5_encoder_{condition}"].bool(), ARRAYS[f"{case}/t5_cross_{condition}"]
    for number, (place, row) in enumerate(zip(places, rows, strict=True)):
        width = len(row.prefix) + len(row.query)
        ours = seen[0][number, -width:, -width:]
        assert torch.equal(ours, golden[number][place][:, place]), number
        if GIST in row.prefix:  # the original attends to everything alike where there is none
            assert torch.equal(cross[number, -width:], golden_cross[number][place].bool()), number
