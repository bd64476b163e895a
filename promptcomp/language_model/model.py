"""LanguageModel: the one place that distinguishes decoder-only from encoder-decoder models.

What a Memory means: `SoftPrompt` vectors stand where the context's token embeddings would stand (in front of the query,
or on an encoder's input); `KVCache` is the prefix of a decoder-only LM; `EncoderStates` is what a decoder attends to,
and what an encoder that reads queries remembers. A `Prefix` is not read yet: it goes through the LM together with the
queries, which see a part of it.
Padding changes no result: position ids count real tokens only (T5, whose positions are indices, gets contiguous
tokens or a corrected bias). Every forward lays its queries and targets out as trees (see packing).
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from promptcomp.batch import Batch, Context
from promptcomp.config import ConfigError
from promptcomp.language_model import generation, loading
from promptcomp.language_model.attention import AttentionPattern, Window, slot_positions
from promptcomp.language_model.cache import Cache, growing, passing, reading, stored
from promptcomp.language_model.counting import ModelCost, model_cost
from promptcomp.language_model.lm_config import LanguageModelConfig
from promptcomp.language_model.packing import (
    MAX_ROW_TOKENS,
    Packed,
    close_gaps,
    pack,
    t5_mask,
    tree_mask,
)
from promptcomp.language_model.parts import (
    Logits,
    Prefix,
    Scores,
    TextEncoder,
    body_name,
    first_of,
    in_memory,
    last_visible,
    logits_of,
    look_up,
    memory_rows,
    positions,
    prepend,
    refusing,
    token_table,
)
from promptcomp.language_model.t5_encoder import SlotDecoder, encode_behind, encode_tokens, headless, read_prefix
from promptcomp.language_model.verify import verify
from promptcomp.memory import EncoderStates, KVCache, Memory, SoftPrompt


class InFront(NamedTuple):
    """What stands in front of rows that a decoder-only LM reads; `embeds` is empty where a cache holds it."""

    embeds: Tensor  # [R, P, D]
    mask: Tensor  # [R, K] bool, real columns
    visible: Tensor  # [R, K] bool, those that the rows see
    position: Tensor  # [R, K]
    next_position: Tensor  # [R]
    both_ways: bool = False  # whether the columns see those of them behind them


class LanguageModel(nn.Module):
    """A Hugging Face LM with its tokenizer. Shapes as in promptcomp.batch; memories have one row for each context."""

    def __init__(
        self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, layout: str, bos: bool | None
    ) -> None:
        super().__init__()
        self.hf = hf
        self.tokenizer = tokenizer
        with refusing(hf, "their architecture lacks parts that promptcomp needs"):
            self._read_architecture(layout)
        self.bos_id: int | None = None
        if self.family == "decoder" and tokenizer is not None and (loading.adds_bos(tokenizer) if bos is None else bos):
            if tokenizer.bos_token_id is None:
                raise ConfigError("lm.bos = true, but the tokenizer has no BOS token; set lm.bos=false")
            self.bos_id = tokenizer.bos_token_id
        self.train(hf.training)

    def _read_architecture(self, layout: str) -> None:
        hf, is_decoder = self.hf, not self.hf.config.is_encoder_decoder
        self.family: Literal["decoder", "encoder_decoder"] = "decoder" if is_decoder else "encoder_decoder"
        self.text_config: PretrainedConfig = hf.config.get_text_config(decoder=True) if is_decoder else hf.config
        """The architecture of what reads text (a part of a model that sees pictures as well)."""
        settings = self.text_config.to_dict()
        self.query_in_encoder = not is_decoder and layout == "query_in_encoder"
        self.hidden_size: int = token_table(hf).embedding_dim
        self.vocab_size: int = token_table(hf).num_embeddings
        self.num_layers: int = self.text_config.num_hidden_layers
        self._body = body_name(hf) if is_decoder else ""
        self._window = Window.of(self.text_config) if is_decoder else Window(None)
        self.window: int | None = self._window.size
        self.pattern = AttentionPattern(self.text_config, hf.config._attn_implementation) if is_decoder else None
        """How decoder-only layers look back."""
        self.start_id: int = settings.get("decoder_start_token_id") or 0
        self.end_id: int = first_of(settings.get("eos_token_id"), 1)
        """The end of sequence."""

    @cached_property
    def cost(self) -> ModelCost:
        """What a token costs it, adapters aside; counted when it is first asked for."""
        return model_cost(self.hf)

    @property
    def num_bos(self) -> int:
        """Tokens that it reads in front of every sequence: BOS, or none."""
        return int(self.bos_id is not None)

    def kv_bytes(self, memory: Memory | None) -> float:
        """Bytes of keys and values in use while an answer is made behind a memory, real slots only, mean over its rows;
        in front of vectors stands BOS."""
        if memory is None:
            return float(self.num_bos * self.cost.kv_bytes_per_token)
        front = self.num_bos if isinstance(memory, SoftPrompt) else 0
        return (float(memory.num_slots.double().mean()) + front) * self.cost.kv_bytes_per_token

    @classmethod
    def from_config(cls, config: LanguageModelConfig) -> Self:
        """Open the weights and the tokenizer.

        Raises:
            ConfigError: something is missing, unreadable or unsupported.
        """
        hf = loading.open_model(config, loading.open_architecture(config))
        lm = cls(hf, loading.open_tokenizer(config), config.layout, config.bos)
        verify(lm, loading.identity(config, hf))
        return lm

    @classmethod
    def skeleton(cls, config: LanguageModelConfig, *, with_tokenizer: bool = False) -> Self:
        """Shapes on the meta device, without weights.

        Args:
            config: Which LM.
            with_tokenizer: For weights that come from another process; otherwise well-known names need no network.

        Raises:
            ConfigError: something is missing, unreadable or unsupported.
        """
        hf = loading.open_skeleton(config, loading.open_architecture(config, offline_table=not with_tokenizer))
        if with_tokenizer:
            return cls(hf, loading.open_tokenizer(config), config.layout, config.bos)
        lm = cls(hf, None, config.layout, False)
        if lm.family == "decoder" and loading.reads_bos(config):
            lm.bos_id = first_of(hf.config.bos_token_id, 0)
        return lm

    @classmethod
    def from_parts(
        cls,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        layout: Literal["query_in_decoder", "query_in_encoder"] = "query_in_decoder",
        bos: bool | None = None,
    ) -> Self:
        """Wrap a model that is already there (or what peft has made of one).

        Raises:
            ConfigError: its family is not supported, or it is none (`in_memory`).
        """
        lm = cls(in_memory(hf, tokenizer, needs_weights=False), tokenizer, layout, bos)
        verify(lm)
        return lm

    @property
    def body(self) -> Any:
        """A decoder-only LM without its head: final hidden states."""
        return self.hf.get_submodule(self._body)

    def text_encoder(self, *, with_decoder: bool = False) -> TextEncoder:
        """The LM without its head, sharing the weights with this object; T5: the encoder, or also the decoder."""
        if with_decoder:
            return SlotDecoder(headless(self.hf), self.start_id, self.end_id)
        body: Any = self.hf.get_encoder() if self.family == "encoder_decoder" else self.body
        return TextEncoder(body, self.family, self.window, self.bos_id)

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings [..., D] of token ids."""
        return look_up(self.hf, ids)

    def encode(self, context: Context) -> Memory | None:
        """The full prompt as a memory; None when no context has a token (and there is no BOS)."""
        if self.family == "encoder_decoder":
            if not context.ids.shape[1]:
                return None
            embeds = self.embed(context.ids)
            if self.query_in_encoder:
                return SoftPrompt(embeds, context.mask)
            return encode_tokens(self.hf.get_encoder(), embeds, context.mask, self._end_embedding())
        prefix = self.prefix(context)
        return KVCache(self._read(prefix), prefix.mask, prefix.mask.sum(-1)) if prefix.mask.shape[1] else None

    def whole_prompt(self, context: Context) -> Memory | Prefix | None:
        """The full prompt to be read once, together with the queries: the numbers of `encode`, in one pass."""
        if self.family == "encoder_decoder":
            return self.encode(context)
        return self.prefix(context) if context.ids.shape[1] else None

    def prefix(self, context: Context, slots: Tensor | None = None, *, both_ways: bool = False) -> Prefix:
        """Contexts (after BOS, where the model uses one) followed by slot embeddings [K, D], which alone are visible.

        Without slots the whole context is visible: the full prompt. `both_ways`: see `Prefix`.
        """
        ids, mask = context.ids, context.mask
        if self.family == "decoder":
            ids, mask = prepend(ids, mask, self.bos_id)
        embeds, visible = self.embed(ids), mask
        if slots is not None:
            end = mask.new_ones(len(ids), len(slots))
            embeds = torch.cat([embeds, slots.to(embeds.dtype).expand(len(ids), -1, -1)], 1)
            mask, visible = torch.cat([mask, end], 1), torch.cat([torch.zeros_like(mask), end], 1)
        return Prefix(embeds, mask, visible, both_ways)

    def read(self, prefix: Prefix) -> KVCache | EncoderStates:
        """The activations at the visible positions of a prefix, which are all that queries see of it."""
        if self.family == "encoder_decoder":
            return read_prefix(self.hf.get_encoder(), prefix, every_layer=self.query_in_encoder)
        layers = self._read(prefix)
        slots = int(prefix.visible.sum(-1).max())
        visible = partial(last_visible, visible=prefix.visible, slots=slots)
        kept = tuple((visible(keys), visible(values)) for keys, values in layers)
        return KVCache(kept, close_gaps(prefix.visible, prefix.visible)[0][:, -slots:], prefix.mask.sum(-1))

    def states(self, prefix: Prefix, cache: Cache | None = None) -> Tensor:
        """Final hidden states [G, P, D] at all positions of a prefix (T5: its encoder's)."""
        embeds, mask = prefix.embeds, prefix.mask
        if not mask.shape[1]:  # contexts without a token, and no BOS
            return embeds.new_zeros(len(embeds), 0, self.hidden_size)
        if self.pattern is None:
            return self.text_encoder()(embeds, mask)
        self._window.check_context(mask)
        position = positions(mask)
        seen = self.pattern.padded(mask, position, embeds.dtype, both_ways=prefix.both_ways)
        return self.run(embeds, seen, position, cache, use_cache=cache is not None)

    def _read(self, prefix: Prefix) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keys and values of every layer for left-padded rows (decoder-only)."""
        hidden = self.states(prefix, cache := growing())
        layers = stored(cache)
        if torch.is_grad_enabled():  # FSDP2 needs every part that gets a gradient to come from a module's output
            anchor = hidden.sum() * 0
            layers = tuple((keys + anchor, values + anchor) for keys, values in layers)
        return layers

    def forward(
        self, memory: Memory | Prefix | None, batch: Batch, where: Literal["targets", "all"] = "targets"
    ) -> Logits:
        """Logits where a target token is predicted ("targets") or after every query and target token ("all").

        Raises:
            ConfigError: the memory is of a kind that this model or layout cannot read.
        """
        if self.family == "encoder_decoder":
            return self.decode(self.encoder_side(memory, batch), batch, where)
        packed = self._pack(batch, where)
        return self._logits(self._decode(memory, packed), packed)

    def decode(self, encoded: EncoderStates, batch: Batch, where: Literal["targets", "all"] = "targets") -> Logits:
        """Logits given what the decoder attends to (see `encoder_side`); encoder-decoder only."""
        packed = self._pack(batch, where)
        encoded = memory_rows(encoded, packed.context_of)
        hidden = self.hf.get_decoder()(
            inputs_embeds=self.embed(packed.ids),
            attention_mask=t5_mask(self.hf.get_decoder(), packed, token_table(self.hf).weight.dtype),
            encoder_hidden_states=encoded.layers[-1],
            encoder_attention_mask=encoded.mask.long(),
            use_cache=False,
        ).last_hidden_state
        return self._logits(hidden, packed)

    def _logits(self, hidden: Tensor, packed: Packed) -> Logits:
        values = self.head(hidden.flatten(0, 1)[packed.nodes])
        return Logits(values, packed.predictor, packed.label, packed.target_of)

    def _pack(self, batch: Batch, where: Literal["targets", "all"]) -> Packed:
        """The rows that the decoder reads; a T5's begin with its start token."""
        ids, mask, parent, most = batch.query_ids, batch.query_mask, batch.context_of, MAX_ROW_TOKENS
        if self.query_in_encoder:
            ids, parent = torch.full_like(parent, self.start_id)[:, None], torch.arange(len(parent)).to(parent)
            mask = torch.ones_like(ids, dtype=torch.bool)
        elif self.family == "encoder_decoder":
            ids, mask = prepend(ids, mask, self.start_id)
        if self.family == "encoder_decoder":
            most //= 2
        return pack(ids, mask, parent, batch, all_positions=where == "all", max_row_tokens=most)

    def scored_tokens(self, batch: Batch) -> Tensor:
        """How many tokens of each target [M] a forward scores."""
        return torch.bincount(self._pack(batch, "targets").target_of, minlength=len(batch.target_ids))

    def queries_of_logits(self, batch: Batch, where: Literal["targets", "all"]) -> Tensor:
        """The query [P] that each row of the logits of a forward belongs to; those of one query are in their order."""
        packed = self._pack(batch, where)
        return packed.query.flatten()[packed.nodes]

    def num_logits(self, batch: Batch, where: Literal["targets", "all"] = "targets") -> int:
        """How many rows the logits of a forward have."""
        return len(self._pack(batch, where).nodes)

    def score(self, memory: Memory | Prefix | None, batch: Batch) -> Scores:
        """Log likelihood of every target; context and query are read once for all of them."""
        return self(memory, batch, "targets").scores(len(batch.target_ids))

    def generate(self, memory: Memory | Prefix | None, batch: Batch, **settings: Any) -> list[list[int]]:
        """Continuations of the batch's N queries (its targets are not looked at), without the stop token.

        Args:
            memory: One row for each context; of a `Prefix` the queries and the new tokens see the visible part.
            batch: Its queries; none may be empty.
            settings: Those of `promptcomp.language_model.generation.Settings`.

        Raises:
            ConfigError: settings that contradict each other, or answers beyond the LM's window.
        """
        return generation.generate(self, memory, batch, generation.Settings(**settings))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of final hidden states."""
        return logits_of(self.hf, hidden)

    def run(
        self, embeds: Tensor, mask: Any, position: Tensor, cache: Cache | None = None, *, use_cache: bool = False
    ) -> Tensor:
        """Final hidden states of a decoder-only LM behind a cache, which takes them in with `use_cache`."""
        return self.body(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position,
            use_cache=use_cache,
            **({} if cache is None else passing(self.body, cache)),
        ).last_hidden_state

    def _decode(self, memory: Memory | Prefix | None, packed: Packed) -> Tensor:
        """Hidden states [R, S, D] of the packed rows behind the memory (decoder-only)."""
        assert self.pattern is not None
        front = self.in_front(memory, packed.context_of)
        position = front.next_position[:, None] + packed.position
        self._window.check_room(position, None if isinstance(memory, KVCache) else front.mask.shape[1])
        columns = torch.cat([front.position, position], 1)
        cache = reading(memory_rows(memory, packed.context_of)) if isinstance(memory, KVCache) else None
        whole, both = cache is None, front.both_ways
        sees = tree_mask(packed, front.mask, with_prefix_rows=whole, visible=front.visible, both_ways=both)
        rows = columns if whole else position
        embeds = torch.cat([front.embeds, self.embed(packed.ids)], 1)
        mask = self.pattern.mask(sees, rows, columns, embeds.dtype)
        return self.run(embeds, mask, rows, cache)[:, front.embeds.shape[1] :]

    def in_front(self, memory: Memory | Prefix | None, context_of: Tensor) -> InFront:
        """Where rows [R] of a decoder-only LM go on: behind a cache, a prefix, or BOS and vectors."""
        if isinstance(memory, KVCache):
            memory = memory_rows(memory, context_of)
            nothing = self.embed(context_of.new_zeros(len(context_of), 0))
            return InFront(nothing, memory.mask, memory.mask, slot_positions(memory), memory.next_position)
        front = self.front(memory, context_of)
        return InFront(*front[:3], positions(front.mask), front.mask.sum(-1), front.both_ways)

    def front(self, memory: Memory | Prefix | None, context_of: Tensor) -> Prefix:
        """What stands in front of rows [R]: a prefix as it is, or BOS (where the model uses one) and the slots."""
        if isinstance(memory, Prefix):
            return memory.rows(context_of)
        rows = context_of.shape[0]
        weight = token_table(self.hf).weight
        embeds = weight.new_zeros(rows, 0, self.hidden_size)
        mask = torch.zeros(rows, 0, dtype=torch.bool, device=context_of.device)
        if self.bos_id is not None:
            embeds = self.embed(context_of.new_full((rows, 1), self.bos_id))
            mask = mask.new_ones(rows, 1)
        if memory is None:
            return Prefix(embeds, mask, mask)
        if not isinstance(memory, SoftPrompt):
            raise ConfigError(f"a decoder-only LM cannot read {type(memory).__name__}; it reads SoftPrompt or KVCache")
        memory = memory_rows(memory, context_of)
        mask = torch.cat([mask, memory.mask], 1)
        return Prefix(torch.cat([embeds, memory.embeds.to(embeds.dtype)], 1), mask, mask)

    def encoder_side(self, memory: Memory | Prefix | None, batch: Batch) -> EncoderStates:
        """What the decoder attends to: a row for each context, or for each query when the encoder reads queries.

        Raises:
            ConfigError: the memory is of a kind that this layout cannot read.
        """
        encoder: Any = self.hf.get_encoder()
        if isinstance(memory, KVCache):
            raise ConfigError("an encoder-decoder LM cannot read KVCache; it reads SoftPrompt or EncoderStates")
        if isinstance(memory, Prefix | EncoderStates):
            if self.query_in_encoder:
                rows = memory.rows(batch.context_of)
                return encode_behind(encoder, rows, self.embed(batch.query_ids), batch.query_mask)
            return memory if isinstance(memory, EncoderStates) else read_prefix(encoder, memory, every_layer=False)
        embeds, mask = self.embed(batch.context.ids[:, :0]), batch.context.mask[:, :0]
        if memory is not None:
            embeds, mask = memory.embeds.to(embeds.dtype), memory.mask
        if self.query_in_encoder:
            embeds = torch.cat([embeds[batch.context_of], self.embed(batch.query_ids)], 1)
            mask = torch.cat([mask[batch.context_of], batch.query_mask], 1)
        return encode_tokens(encoder, embeds, mask, self._end_embedding())

    def _end_embedding(self) -> Tensor:
        return token_table(self.hf).weight[self.end_id]
