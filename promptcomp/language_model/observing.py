"""What can be seen of a decoder-only LM while it reads: how surprising tokens are to it, and what they attend to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from promptcomp.batch import Context
from promptcomp.config import ConfigError
from promptcomp.language_model.cache import growing, passing, reading, stored
from promptcomp.language_model.model import LanguageModel
from promptcomp.language_model.parts import at_least_float32, positions, prepend, unsupported
from promptcomp.memory import KVCache

_ROWS_AT_ONCE = 1024
"""Positions whose logits exist at the same time."""


def read_context(lm: LanguageModel, context: Context) -> tuple[KVCache | None, Tensor]:
    """What `lm.encode` gives of a decoder-only LM, and the final hidden states [G, P, D] of the same pass."""
    prefix, cache = lm.prefix(context), growing()
    if not prefix.mask.shape[1]:
        return None, prefix.embeds
    hidden = lm.states(prefix, cache)
    return KVCache(stored(cache), prefix.mask, prefix.mask.sum(-1)), hidden


def surprisal(lm: LanguageModel, hidden: Tensor, context: Context) -> Tensor:
    """-log p of each token of contexts [G, C] given those before it, in nats, from the states of `read_context`.

    Infinite for a first token that nothing predicts (the LM reads no BOS); 0 for padding.
    """
    ids, mask = prepend(context.ids, context.mask, lm.bos_id)
    predicted = mask[:, 1:] & mask[:, :-1]
    states, labels = hidden[:, :-1][predicted], ids[:, 1:][predicted]
    parts = zip(states.split(_ROWS_AT_ONCE), labels.split(_ROWS_AT_ONCE), strict=True)
    lost = [torch.nn.functional.cross_entropy(at_least_float32(lm.head(s)), t, reduction="none") for s, t in parts]
    found = torch.zeros(ids.shape, dtype=lost[0].dtype if lost else torch.float32, device=ids.device)
    found[:, 1:][predicted] = torch.cat(lost) if lost else found[:0, 0]
    first = mask & (mask.cumsum(-1) == 1)
    return found.masked_fill(first, torch.inf)[:, ids.shape[1] - context.ids.shape[1] :]


@torch.no_grad()
def attended(lm: LanguageModel, front: KVCache, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """What tokens that are read behind a cache attend to.

    Args:
        lm: decoder-only.
        front: a cache of K columns, all of which the tokens see.
        ids: the tokens [G, S], padded on the left.
        mask: the real ones [G, S].

    Returns:
        For each layer the attention weights [G, H, Q, S, K + S] of the tokens, over the cache and over themselves: H
        heads of the cache, each with the Q heads of queries that share it. Rows of padding are 0.

    Raises:
        ConfigError: position ids beyond the LM's window, or a model that does not show its weights.
    """
    assert lm.pattern is not None
    position = front.next_position[:, None] + positions(mask)
    lm._window.check_positions(position.amax(-1))
    behind = torch.cat([(front.mask.long().cumsum(-1) - 1).clamp(min=0), position], 1)
    causal = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril()
    own = causal & mask[:, None, :]
    sees = torch.cat([front.mask[:, None, :].expand(-1, mask.shape[1], -1), own], -1)
    embeds = lm.embed(ids)
    with _eager(lm.hf):
        output = lm.body(
            inputs_embeds=embeds,
            attention_mask=lm.pattern.mask(sees, position, behind, embeds.dtype, blocks=False),
            position_ids=position,
            use_cache=False,
            output_attentions=True,
            **passing(lm.body, reading(front)),
        )
    if not output.attentions:
        raise ConfigError(unsupported(lm.hf, "they do not show what they attend to"))
    found = []
    for (keys, _), weights in zip(front.layers, output.attentions, strict=True):
        real = weights.masked_fill(~mask[:, None, :, None], 0)
        found.append(real.unflatten(1, (keys.shape[1], -1)))
    return found


@contextlib.contextmanager
def _eager(hf: PreTrainedModel) -> Iterator[None]:
    """Attention by matrix products, the only one whose weights can be seen."""
    before = hf.config._attn_implementation
    hf.set_attn_implementation("eager")
    try:
        yield
    finally:
        if before is not None:
            hf.set_attn_implementation(before)
