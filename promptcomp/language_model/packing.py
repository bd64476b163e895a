"""Queries and targets of a batch laid out as trees: one row holds all queries of a context and all their targets.

A row is `[query 1 | its targets | query 2 | its targets | ...]`. A token sees the prefix (the memory), its own query
and its own target up to itself, and nothing else, and its position id counts only what it sees. So a context is read
once for all its queries, and a query once for all its options, with the numbers that separate rows would give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptcomp.batch import Batch
from promptcomp.language_model.attention import additive

MAX_ROW_TOKENS = 512
"""A context's queries are split over several rows beyond this, as attention inside a row is quadratic in its length."""


@dataclass(frozen=True, slots=True)
class Packed:
    """R rows of S tokens (see the module docstring); padding on the right.

    `nodes` lists the places (row * S + column) where logits are wanted. Scored target token e is predicted at
    `nodes[predictor[e]]`, is `label[e]`, and belongs to target `target_of[e]`. A target's first token has no predictor
    when its query is empty and is then not scored.
    """

    ids: Tensor  # [R, S]
    position: Tensor  # [R, S] counted from the first token of the query
    query: Tensor  # [R, S] which query a token belongs to; -1 padding
    target: Tensor  # [R, S] which target a token belongs to; -1 query tokens and padding
    context_of: Tensor  # [R] row of the memory
    shares_nothing: bool
    """Every row is one query with one target, that is an ordinary sequence."""
    nodes: Tensor  # [P]
    predictor: Tensor  # [E]
    label: Tensor  # [E]
    target_of: Tensor  # [E]


def pack(
    query_ids: Tensor,
    query_mask: Tensor,
    context_of: Tensor,
    batch: Batch,
    *,
    all_positions: bool = False,
    max_row_tokens: int = MAX_ROW_TOKENS,
) -> Packed:
    """Lay out queries [N, Q] and the targets of a batch; `context_of` [N] and its `query_of` [M] must not decrease.

    `all_positions`: logits at every token (in the order: tokens of all queries, then of all targets), otherwise only
    where a target token is predicted.
    """
    query_of, target_mask = batch.query_of, batch.target_mask
    query_length, target_length = query_mask.sum(-1), target_mask.sum(-1)
    tree_length = query_length.index_add(0, query_of, target_length)  # [N]
    row, context_of_row = _rows(tree_length, context_of, max_row_tokens)
    query_start = _start_in_group(tree_length, row)
    target_start = query_start[query_of] + query_length[query_of] + _start_in_group(target_length, query_of)

    num_rows = context_of_row.shape[0]
    width = int(tree_length.new_zeros(num_rows).index_add(0, row, tree_length).max()) if num_rows else 0
    n, q_rank, q_ids = _tokens(query_ids, query_mask)
    m, t_rank, t_ids = _tokens(batch.target_ids, target_mask)
    place = torch.cat([row[n] * width + query_start[n] + q_rank, row[query_of[m]] * width + target_start[m] + t_rank])

    def scatter(values: Tensor, fill: int) -> Tensor:
        return values.new_full((num_rows * width,), fill).scatter(0, place, values).view(num_rows, width)

    # Token e of target m is predicted by the token before it; the first one by the last token of its query.
    last_of_query = query_length.cumsum(0) - 1
    token = torch.arange(len(m), device=m.device)
    predictor = torch.where(t_rank > 0, len(n) + token - 1, last_of_query[query_of[m]])
    scored = (t_rank > 0) | (query_length[query_of[m]] > 0)
    predictor, label, target_of = predictor[scored], t_ids[scored], m[scored]
    nodes = place
    if not all_positions:
        used, predictor = predictor.unique(return_inverse=True)
        nodes = place[used]
    return Packed(
        ids=scatter(torch.cat([q_ids, t_ids]), 0),
        position=scatter(torch.cat([q_rank, query_length[query_of[m]] + t_rank]), 0),
        query=scatter(torch.cat([n, query_of[m]]), -1),
        target=scatter(torch.cat([torch.full_like(n, -1), m]), -1),
        context_of=context_of_row,
        shares_nothing=num_rows == query_mask.shape[0] == target_mask.shape[0],
        nodes=nodes,
        predictor=predictor,
        label=label,
        target_of=target_of,
    )


def tree_mask(packed: Packed, prefix_mask: Tensor, *, with_prefix_rows: bool, visible: Tensor | None = None) -> Tensor:
    """Who sees whom: bool [R, S, K + S], or [R, K + S, K + S] with the (causal) rows of the prefix itself.

    `prefix_mask` is [R, K]; queries and targets see the part `visible` [R, K] of it (None: all).
    """
    query, target, position = packed.query, packed.target, packed.position
    same_query = query[:, :, None] == query[:, None, :]
    same_branch = (target[:, None, :] == -1) | (target[:, None, :] == target[:, :, None])
    tree = same_query & same_branch & (position[:, None, :] <= position[:, :, None]) & (query >= 0)[:, :, None]
    seen = prefix_mask if visible is None else visible
    sees = torch.cat([seen[:, None, :].expand(-1, tree.shape[1], -1), tree], -1)
    if not with_prefix_rows:
        return sees
    num_rows, num_slots = prefix_mask.shape
    causal = torch.ones(num_slots, num_slots, dtype=torch.bool, device=prefix_mask.device).tril()
    inside = causal & prefix_mask[:, None, :]
    above = torch.cat([inside, inside.new_zeros(num_rows, num_slots, tree.shape[2])], -1)
    return torch.cat([above, sees], 1)


def t5_mask(decoder: Any, packed: Packed, dtype: torch.dtype) -> Tensor:
    """Additive mask [R, 1 or H, S, S] of a T5 decoder's packed rows.

    Where rows are shared it also turns the bias that T5 takes from column numbers into one from positions.
    """
    none = torch.zeros(packed.ids.shape[0], 0, dtype=torch.bool, device=packed.ids.device)
    mask = additive(tree_mask(packed, none, with_prefix_rows=False), dtype)
    if packed.shares_nothing:
        return mask
    attention = decoder.block[0].layer[0].SelfAttention
    bucket = attention._relative_position_bucket(
        packed.position[:, None, :] - packed.position[:, :, None],
        bidirectional=False,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    wanted = attention.relative_attention_bias(bucket).permute(0, 3, 1, 2)
    width = packed.ids.shape[1]
    return mask + (wanted - attention.compute_bias(width, width))


def close_gaps(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the real columns of `values` [B, S, ...] to the right end in order, for where positions are indices."""
    order = mask.long().argsort(dim=1, stable=True)
    index = order.view(*order.shape, *[1] * (values.dim() - 2)).expand_as(values)
    return values.gather(1, index), mask.gather(1, order)


def _rows(tree_length: Tensor, context_of: Tensor, max_row_tokens: int) -> tuple[Tensor, Tensor]:
    """The row [N] of each query and the context [R] of each row."""
    part = _start_in_group(tree_length, context_of) // max_row_tokens
    key = context_of * (int(part.max()) + 1 if len(part) else 1) + part
    _, row, count = key.unique_consecutive(return_inverse=True, return_counts=True)
    return row, context_of[count.cumsum(0) - 1]


def _start_in_group(length: Tensor, group: Tensor) -> Tensor:
    """Sum of the lengths before each item within its group; `group` must not decrease."""
    before = length.cumsum(0) - length
    return before - before[torch.searchsorted(group, group)]


def _tokens(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, rank within the row and id of every real token, row by row."""
    row, column = mask.nonzero(as_tuple=True)
    rank = (mask.long().cumsum(-1) - 1)[row, column]
    return row, rank, ids[row, column]
