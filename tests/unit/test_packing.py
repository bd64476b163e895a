"""Layout of queries and targets in rows."""

from __future__ import annotations

import torch

from promptcomp.batch import EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.language_model.attention import additive
from promptcomp.language_model.packing import Packed, close_gaps, pack, tree_mask


def packed(*, all_positions: bool = False, max_row_tokens: int = 512) -> Packed:
    contexts = [
        EncodedContext(
            (1,),
            (
                EncodedQuery((10, 11), (EncodedTarget((20,)), EncodedTarget((21, 22), 1))),
                EncodedQuery((12,), (EncodedTarget((23,)),), 1),
            ),
        ),
        EncodedContext((2,), (EncodedQuery((13, 14, 15), (EncodedTarget((24, 25)),), 2),)),
    ]
    b = collate(contexts)
    return pack(
        b.query_ids,
        b.query_mask,
        b.context_of,
        b,
        all_positions=all_positions,
        max_row_tokens=max_row_tokens,
    )


def test_rows_hold_trees() -> None:
    rows = packed()
    assert rows.ids.tolist() == [[10, 11, 20, 21, 22, 12, 23], [13, 14, 15, 24, 25, 0, 0]]
    assert rows.position.tolist() == [[0, 1, 2, 2, 3, 0, 1], [0, 1, 2, 3, 4, 0, 0]]
    assert rows.query.tolist() == [[0, 0, 0, 0, 0, 1, 1], [2, 2, 2, 2, 2, -1, -1]]
    assert rows.target.tolist() == [[-1, -1, 0, 1, 1, -1, 2], [-1, -1, -1, 3, 3, -1, -1]]
    assert rows.context_of.tolist() == [0, 1]
    assert not rows.shares_nothing


def test_every_target_token_has_its_predictor() -> None:
    for everywhere in (False, True):
        rows = packed(all_positions=everywhere)
        assert rows.label.tolist() == [20, 21, 22, 23, 24, 25]
        assert rows.target_of.tolist() == [0, 1, 1, 2, 3, 3]
        before = rows.ids.flatten()[rows.nodes[rows.predictor]]
        assert before.tolist() == [11, 11, 21, 12, 15, 24]
        tokens = rows.ids.flatten()[rows.nodes].tolist()
        assert tokens == ([10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 24, 25] if everywhere else [11, 12, 15, 21, 24])


def test_long_contexts_are_split_over_rows() -> None:
    rows = packed(max_row_tokens=5)
    assert rows.context_of.tolist() == [0, 0, 1]
    assert rows.ids.tolist() == [[10, 11, 20, 21, 22], [12, 23, 0, 0, 0], [13, 14, 15, 24, 25]]


def test_a_token_sees_its_branch_alone() -> None:
    sees = tree_mask(packed(), torch.tensor([[True], [False]]), with_prefix_rows=False)
    assert sees[0].int().tolist() == [
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 0, 1, 1],
    ]
    assert not sees[1, :, 0].any()
    assert not sees[1, 5:].any()
    whole = tree_mask(packed(), torch.tensor([[True], [False]]), with_prefix_rows=True)
    assert torch.equal(whole[:, 1:], sees)
    assert whole[:, 0].int().tolist() == [[1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]]


def test_hidden_scores_stay_finite() -> None:
    mask = additive(torch.tensor([[[True, False]]]), torch.float16)
    assert mask.shape == (1, 1, 1, 2)
    assert mask[0, 0, 0, 0] == 0
    assert torch.isfinite(mask * 1.5).all()


def test_close_gaps_moves_tokens_to_the_right_end() -> None:
    mask = torch.tensor([[True, False, True], [True, True, True]])
    values, moved = close_gaps(torch.tensor([[[1.0], [9.0], [2.0]], [[3.0], [4.0], [5.0]]]), mask)
    assert values[..., 0].tolist() == [[9.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert moved.tolist() == [[False, True, True], [True, True, True]]
