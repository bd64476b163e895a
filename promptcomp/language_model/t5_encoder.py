"""T5's encoder with cached states for a part of its input, which gist tokens need and transformers does not offer.

The encoder is bidirectional, so a remembered part can be reused only if it does not look at what follows. Gist tokens
do not (Mu et al. 2023, https://arxiv.org/abs/2304.08467, section 3): the prefix sees itself, the query sees the gist
tokens and itself. Remembered are the inputs of every block at the gist positions and the encoder's output there.
T5's positions are distances between columns, so real tokens are kept next to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from promptcomp.config import ConfigError
from promptcomp.language_model.attention import additive
from promptcomp.language_model.packing import close_gaps
from promptcomp.language_model.parts import Prefix, TextEncoder, token_table
from promptcomp.memory import EncoderStates


class SlotDecoder(TextEncoder):
    """An encoder-decoder without its head: the encoder reads tokens, and the decoder reads the slots behind its start.

    `body` holds both halves (a T5Model). The slots see what comes before them, and all tokens through cross-attention.
    """

    def __init__(self, body: PreTrainedModel, start_id: int, end_id: int) -> None:
        super().__init__(body, "encoder_decoder", None, None)
        self.start_id, self.end_id = start_id, end_id

    def read(self, ids: Tensor, mask: Tensor, slots: Tensor) -> Tensor:
        """Final hidden states [B, K, D] of the decoder at slot embeddings [K, D]."""
        slots = slots.expand(len(ids), -1, -1)
        end, start = token_table(self.body).weight[[self.end_id, self.start_id]]
        encoded = encode_tokens(self.body.get_encoder(), self.embed(ids), mask, end)
        hidden = self.body.get_decoder()(
            inputs_embeds=torch.cat([start.expand(len(slots), 1, -1), slots], 1),
            encoder_hidden_states=encoded.layers[-1],
            encoder_attention_mask=encoded.mask.long(),
            use_cache=False,
        ).last_hidden_state
        return hidden[:, 1:]


def headless(hf: PreTrainedModel) -> PreTrainedModel:
    """The encoder-decoder without its output head, sharing the weights."""
    with torch.device("meta"):
        whole: Any = AutoModel.from_config(hf.config)
    whole.shared, whole.encoder, whole.decoder = hf.get_input_embeddings(), hf.get_encoder(), hf.get_decoder()
    return whole.train(hf.training)


def encode_tokens(encoder: Any, embeds: Tensor, mask: Tensor, end: Tensor) -> EncoderStates:
    """The encoder's output; a row without tokens gets the end of sequence [D], as T5's tokenizer makes of no text."""
    empty = ~mask.any(-1, keepdim=True)
    if empty.any():
        last = end.to(embeds.dtype).expand(len(embeds), 1, -1)
        embeds, mask = torch.cat([embeds, last], 1), torch.cat([mask, empty], 1)
    embeds, mask = close_gaps(embeds, mask)
    hidden = encoder(inputs_embeds=embeds, attention_mask=mask.long()).last_hidden_state
    return EncoderStates((hidden,), mask)


def read_prefix(encoder: Any, prefix: Prefix, *, every_layer: bool) -> EncoderStates:
    """The states of the visible positions of a prefix; `every_layer` is needed when queries join the encoder."""
    mask = prefix.mask
    sees = mask[:, None, :].expand(-1, mask.shape[1], -1)
    inputs, output = _run(encoder, prefix.embeds, sees)
    first = mask.shape[1] - int(prefix.visible.sum(-1).max())  # visible columns are moved to the right end
    layers = (*inputs, output) if every_layer else (output,)
    moved = tuple(close_gaps(layer, prefix.visible)[0][:, first:] for layer in layers)
    return EncoderStates(moved, close_gaps(prefix.visible, prefix.visible)[0][:, first:])


def encode_behind(encoder: Any, memory: Prefix | EncoderStates, embeds: Tensor, mask: Tensor) -> EncoderStates:
    """What the decoder may attend to: queries [N, Q] behind a prefix, read in the same pass, or behind remembered slots
    (a row of either for each query).

    Raises:
        ConfigError: the states lack the layers that queries need.
    """
    if isinstance(memory, EncoderStates) and len(memory.layers) != len(encoder.block) + 1:
        raise ConfigError(
            f"an encoder that reads queries (lm.layout=query_in_encoder) cannot read EncoderStates of "
            f"{len(memory.layers)} layer(s); it needs the inputs of its {len(encoder.block)} blocks and its output, so "
            "compress with the same layout"
        )
    real = torch.cat([memory.mask, mask], 1)

    def moved(front: Tensor, query: Tensor) -> Tensor:
        return close_gaps(torch.cat([front, query], 1), real)[0]

    whole, is_query = close_gaps(real, real)[0], moved(torch.zeros_like(memory.mask), mask)
    if isinstance(memory, Prefix):
        readable = moved(memory.visible, mask)
        sees = torch.where(is_query[:, :, None], readable[:, None, :], (whole & ~is_query)[:, None, :])
        return EncoderStates((_run(encoder, moved(memory.embeds, embeds), sees)[1],), readable)
    empty = torch.zeros_like(embeds)
    layers = [moved(layer.to(embeds.dtype), empty) for layer in memory.layers]
    hidden = moved(torch.zeros_like(memory.layers[0], dtype=embeds.dtype), embeds)
    sees = whole[:, None, :].expand(-1, whole.shape[1], -1)
    _, output = _run(encoder, hidden, sees, (whole & ~is_query)[:, :, None], layers)
    return EncoderStates((output,), whole)


def _run(
    encoder: Any, embeds: Tensor, sees: Tensor, slot: Tensor | None = None, remembered: Sequence[Tensor] = ()
) -> tuple[list[Tensor], Tensor]:
    """The inputs of the blocks and the output [B, S, D]; at `slot` [B, S, 1] the remembered states take their place."""
    mask = additive(sees, embeds.dtype)
    hidden = encoder.dropout(embeds)
    bias = None
    inputs = []
    for number, block in enumerate(encoder.block):
        if slot is not None:
            hidden = torch.where(slot, remembered[number], hidden)
        inputs.append(hidden)
        hidden, bias, _ = block(hidden, mask, bias)
    hidden = encoder.dropout(encoder.final_layer_norm(hidden))
    return inputs, hidden if slot is None else torch.where(slot, remembered[-1], hidden)
