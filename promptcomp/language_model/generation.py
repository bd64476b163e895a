"""Free continuation of queries behind a memory, one token at a time through a growing cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from promptcomp.batch import Batch
from promptcomp.language_model.parts import memory_rows, positions, prepend
from promptcomp.memory import KVCache, Memory

if TYPE_CHECKING:
    from promptcomp.language_model.model import LanguageModel

Step = Callable[[Tensor], Tensor]
"""Takes the tokens that were chosen last [N, 1] and returns the hidden states [N, D] that predict the next ones."""


@torch.no_grad()
def generate(
    lm: LanguageModel,
    memory: Memory | None,
    batch: Batch,
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """See LanguageModel.generate."""
    hidden, step = (_start_t5 if lm.family == "encoder_decoder" else _start_decoder)(lm, memory, batch)
    rows = hidden.shape[0]
    texts: list[list[int]] = [[] for _ in range(rows)]
    running = [True] * rows
    for _ in range(max_new_tokens):
        chosen = _choose(lm.head(hidden), temperature, generator)
        for row, token in enumerate(chosen.tolist()):
            running[row] = running[row] and token not in stop_ids
            if running[row]:
                texts[row].append(token)
        if not any(running):
            break
        hidden = step(chosen[:, None])
    return texts


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=generator).squeeze(-1)


def _start_decoder(lm: LanguageModel, memory: Memory | None, batch: Batch) -> tuple[Tensor, Step]:
    cache = DynamicCache()
    embeds, mask = lm.embed(batch.query_ids), batch.query_mask
    if isinstance(memory, KVCache):
        memory = memory_rows(memory, batch.context_of)
        cache = DynamicCache(memory.layers)
        position = memory.next_position[:, None] + positions(mask)
        next_position = memory.next_position + mask.sum(-1)
        mask = torch.cat([memory.mask, mask], 1)
    else:
        prefix, prefix_mask = lm.soft_prefix(memory, batch.context_of)
        embeds, mask = torch.cat([prefix, embeds], 1), torch.cat([prefix_mask, mask], 1)
        position, next_position = positions(mask), mask.sum(-1)

    def read(embeds: Tensor, position: Tensor) -> Tensor:
        output = lm.hf.base_model(
            inputs_embeds=embeds,
            attention_mask=mask.long(),
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]

    def step(tokens: Tensor) -> Tensor:
        nonlocal mask, next_position
        mask = torch.cat([mask, torch.ones_like(tokens, dtype=torch.bool)], 1)
        next_position = next_position + 1
        return read(lm.embed(tokens), next_position[:, None] - 1)

    return read(embeds, position), step


def _start_t5(lm: LanguageModel, memory: Memory | None, batch: Batch) -> tuple[Tensor, Step]:
    encoded = lm.encoder_side(memory, batch)
    if lm.query_in_encoder:
        ids = torch.full_like(batch.context_of, lm.start_id)[:, None]
        mask = torch.ones_like(ids, dtype=torch.bool)
    else:
        encoded = memory_rows(encoded, batch.context_of)
        ids, mask = prepend(batch.query_ids, batch.query_mask, lm.start_id)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def read(tokens: Tensor) -> Tensor:
        output = lm.hf.get_decoder()(
            inputs_embeds=lm.embed(tokens),
            attention_mask=mask.long(),
            encoder_hidden_states=encoded.layers[-1],
            encoder_attention_mask=encoded.mask.long(),
            past_key_values=cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]

    def step(tokens: Tensor) -> Tensor:
        nonlocal mask
        mask = torch.cat([mask, torch.ones_like(tokens, dtype=torch.bool)], 1)
        return read(tokens)

    return read(ids), step
