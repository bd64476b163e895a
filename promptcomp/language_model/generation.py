"""Generation after a query and a memory: greedy, sampled or by beam search, through a growing cache.

Every new token sees what its query sees (the visible part of the prompt) and what came since, never more: what may be
seen is computed from positions and kept for each row, not inherited from the last row of the prompt's mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from promptcomp.batch import Batch
from promptcomp.config import ConfigError
from promptcomp.language_model.cache import cut_columns, growing, growing_pair, join_caches, passing, select_rows, under
from promptcomp.language_model.parts import Prefix, memory_rows, positions, prepend
from promptcomp.memory import EncoderStates, KVCache, Memory

if TYPE_CHECKING:
    from promptcomp.language_model.model import LanguageModel

_NEVER = -1e9
_COLDEST = 1e-3
"""A temperature below it takes the likeliest token; logits that are divided by much less are none any more."""
OnTokens = Callable[[list[int | None]], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How answers are made.

    Raises:
        ConfigError: settings that contradict each other or have no meaning.
    """

    max_new_tokens: int
    """Maximum number of tokens of an answer."""
    stop_ids: Sequence[int] = ()
    """Tokens that end an answer."""
    temperature: float = 0.0
    """0 takes the most likely token; otherwise tokens are sampled with `generator`."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that hold this much probability together."""
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    """Of several, each draws for one query, whatever stands beside it."""
    num_beams: int = 1
    """More than 1: beam search (Hugging Face's rules; goes with temperature 0)."""
    length_penalty: float = 1.0
    """Beam scores are divided by length ** length_penalty."""
    on_tokens: OnTokens | None = None
    """Called after every step with the new token of each query, None for those that have ended (not with beams)."""
    on_logits: Callable[[Tensor], None] | None = None
    """Called in every step with the logits [N, V] that its tokens are chosen from (not with beams)."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ConfigError("the number of new tokens and of beams must be at least 1")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise ConfigError("the temperature must be a finite number of at least 0, and top_p must lie in (0, 1]")
        if self.num_beams > 1 and (self.draws or self.on_tokens or self.on_logits):
            raise ConfigError("beam search needs temperature 0 and cannot be streamed; use one beam")

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn, and not the likeliest ones taken."""
        return self.temperature >= _COLDEST


@torch.no_grad()
def generate(lm: LanguageModel, memory: Memory | Prefix | None, batch: Batch, settings: Settings) -> list[list[int]]:
    """See LanguageModel.generate."""
    state = start(lm, memory, batch, settings.max_new_tokens)
    return _beams(lm, state, settings) if settings.num_beams > 1 else _one_path(lm, state, settings)


def generate_within(
    lm: LanguageModel, memory: Memory | Prefix | None, batch: Batch, most: Sequence[int], **settings: Any
) -> list[list[int]]:
    """As LanguageModel.generate, with a limit of new tokens for each query: near the end of the LM's window answers
    behind short prompts are no shorter for the long ones in their batch."""
    found: dict[int, list[int]] = {}
    for limit in sorted(set(most)):
        rows = [row for row, own in enumerate(most) if own == limit]
        index = torch.tensor(rows, device=batch.context_of.device)
        asked = {name: getattr(batch, name)[index] for name in ("query_ids", "query_mask", "context_of")}
        found |= zip(rows, lm.generate(memory, replace(batch, **asked), max_new_tokens=limit, **settings), strict=True)
    return [found[row] for row in range(len(most))]


@torch.no_grad()
def forced(lm: LanguageModel, memory: Memory | Prefix | None, batch: Batch, tokens: Tensor) -> Tensor:
    """Logits [N, 2, V] before and after the queries go on with `tokens` [N]."""
    state = start(lm, memory, batch, 1)
    before = lm.head(state.hidden)
    state.step(tokens)
    return torch.stack([before, lm.head(state.hidden)], 1)


def start(lm: LanguageModel, memory: Memory | Prefix | None, batch: Batch, new_tokens: int) -> Rows:
    """Queries, read. Rows that were started apart, behind whatever memories, can be joined and go on as one.

    Raises:
        ConfigError: a memory that the LM cannot read, or answers of `new_tokens` tokens beyond its window.
    """
    if lm.family == "encoder_decoder":
        return _EncoderDecoderRows(lm, memory, batch)
    return _DecoderRows(lm, memory, batch, new_tokens)


def _one_path(lm: LanguageModel, state: Rows, settings: Settings) -> list[list[int]]:
    rows = state.hidden.shape[0]
    texts: list[list[int]] = [[] for _ in range(rows)]
    running = [True] * rows
    for number in range(settings.max_new_tokens):
        logits = lm.head(state.hidden)
        if settings.on_logits is not None:
            settings.on_logits(logits)
        chosen = choose(logits, settings)
        for row, token in enumerate(chosen.tolist()):
            running[row] = running[row] and token not in settings.stop_ids
            if running[row]:
                texts[row].append(token)
        if settings.on_tokens is not None:
            settings.on_tokens([text[-1] if on else None for text, on in zip(texts, running, strict=True)])
        if not any(running):
            break
        if number + 1 < settings.max_new_tokens:
            state.step(chosen)
    return texts


def choose(logits: Tensor, settings: Settings) -> Tensor:
    """The next token of each row [N], from its logits [N, V]."""
    if not settings.draws:
        return logits.argmax(-1)
    probs = (logits.float() / settings.temperature).softmax(-1)
    if settings.top_p < 1:
        ranked, order = probs.sort(-1, descending=True)
        beyond = ranked.cumsum(-1) - ranked >= settings.top_p
        beyond[:, 0] = False  # also where top_p is less than a float32 can hold
        probs = probs.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    if isinstance(settings.generator, Sequence):
        rows = zip(probs, settings.generator, strict=True)
        return torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
    return torch.multinomial(probs, 1, generator=settings.generator).squeeze(-1)


def _beams(lm: LanguageModel, state: Rows, settings: Settings) -> list[list[int]]:
    """By the rules of Hugging Face's `generate` (early_stopping=False); beam b of row n is row n * width + b."""
    rows, width, penalty = state.hidden.shape[0], settings.num_beams, settings.length_penalty
    # all beams of a row start equal: only one of them may go on
    beams = [[_Beam(_NEVER if b else 0.0, []) for b in range(width)] for _ in range(rows)]
    ended: list[list[_Beam]] = [[] for _ in range(rows)]
    done = [False] * rows
    state.select(torch.arange(rows, device=state.hidden.device).repeat_interleave(width))
    for length in range(1, settings.max_new_tokens + 1):
        log_probs = lm.head(state.hidden).float().log_softmax(-1)
        scores = torch.tensor([[beam.score for beam in row] for row in beams], device=log_probs.device)
        total = (scores[:, :, None] + log_probs.view(rows, width, -1)).flatten(1)
        # twice as many as beams, so that enough are left when some end
        candidates = [each.tolist() for each in total.topk(min(2 * width, total.shape[1]), dim=1)]
        for row, found in enumerate(zip(*candidates, strict=True)):
            if done[row]:
                continue
            going_on: list[_Beam] = []
            for rank, (score, place) in enumerate(zip(*found, strict=True)):
                source, token = divmod(place, log_probs.shape[-1])
                if token not in settings.stop_ids:
                    going_on.append(_Beam(score, [*beams[row][source].tokens, token], source))
                elif rank < width:
                    ended[row].append(_Beam(score / length**penalty, beams[row][source].tokens))
            # fewer go on where the vocabulary is all stop tokens
            beams[row] = [*going_on, *(_Beam(_NEVER, [*beams[row][0].tokens, 0]) for _ in range(width))][:width]
            ended[row] = sorted(ended[row], key=_score, reverse=True)[:width]
            done[row] = len(ended[row]) == width and ended[row][-1].score >= beams[row][0].score / length**penalty
        if all(done) or length == settings.max_new_tokens:
            break
        source_rows = [row * width + beam.source * (not done[row]) for row in range(rows) for beam in beams[row]]
        state.select(torch.tensor(source_rows, device=state.hidden.device))
        state.step(torch.tensor([beam.tokens[-1] for row in beams for beam in row], device=state.hidden.device))
    for row in range(rows):
        if not done[row]:
            ended[row] += [_Beam(beam.score / length**penalty, beam.tokens) for beam in beams[row]]
    return [max(found, key=_score).tokens for found in ended]


class _Beam(NamedTuple):
    """A beam, or an answer that has ended with its score for the length."""

    score: float
    tokens: list[int]
    source: int = 0
    """Which beam of the step before it continues."""


_score = attrgetter("score")


class _DecoderRows:
    """A decoder-only LM: a cache, and for each of its columns the position id and whether new tokens see it."""

    hidden: Tensor  # [N, D] final states that predict the next token

    def __init__(self, lm: LanguageModel, memory: Memory | Prefix | None, batch: Batch, new_tokens: int) -> None:
        self._lm = lm
        front, mask = lm.in_front(memory, batch.context_of), batch.query_mask
        held = memory_rows(memory, batch.context_of).layers if isinstance(memory, KVCache) else ()
        self._cache = growing(held)
        self._seen = torch.cat([front.visible, mask], 1)
        self._columns = torch.cat([front.position, front.next_position[:, None] + positions(mask)], 1)
        embeds = torch.cat([front.embeds, lm.embed(batch.query_ids)], 1)
        rows = self._columns[:, self._columns.shape[1] - embeds.shape[1] :]
        readable = torch.cat([front.mask, torch.zeros_like(mask)], 1)[:, None, :]
        in_front = torch.arange(rows.shape[1], device=rows.device) < front.embeds.shape[1]
        sees = torch.where(in_front[None, :, None], readable, self._seen[:, None, :])
        self._next = front.next_position + mask.sum(-1)
        lm._window.check_positions(self._next, new_tokens - 1)
        before = self._columns[:, None, :] <= rows[:, :, None]
        self._read(embeds, rows, sees & (before | (in_front[None, :, None] & front.both_ways)))

    def _read(self, embeds: Tensor, rows: Tensor, sees: Tensor) -> None:
        assert self._lm.pattern is not None
        mask = self._lm.pattern.mask(sees, rows, self._columns, embeds.dtype, blocks=False)
        self.hidden = self._lm.run(embeds, mask, rows, self._cache, use_cache=True)[:, -1]

    def step(self, tokens: Tensor) -> None:
        rows = self._next[:, None]
        self._seen = torch.cat([self._seen, torch.ones_like(rows, dtype=torch.bool)], 1)
        self._columns = torch.cat([self._columns, rows], 1)
        self._next = self._next + 1
        self._read(self._lm.embed(tokens[:, None]), rows, self._seen[:, None, :])

    def select(self, index: Tensor) -> None:
        select_rows(self._cache, index)
        self._seen, self._columns, self._next = self._seen[index], self._columns[index], self._next[index]
        self.hidden = self.hidden[index]

    def join(self, other: _DecoderRows) -> None:
        """Take in the rows of another, behind these; what is shorter is padded on the left, where nothing sees it."""
        join_caches(self._cache, other._cache)
        self._seen = under(self._seen, other._seen, 1)
        self._columns = under(self._columns, other._columns, 1)
        self._next = torch.cat([self._next, other._next])
        self.hidden = torch.cat([self.hidden, other.hidden])

    def trim(self) -> None:
        """Let go of the columns on the left that no row sees."""
        unseen = int(self._seen.any(0).long().argmax())
        cut_columns(self._cache, unseen)
        self._seen, self._columns = self._seen[:, unseen:], self._columns[:, unseen:]


class _EncoderDecoderRows:
    """An encoder-decoder LM: the encoder's states of each row and the decoder's cache."""

    hidden: Tensor  # [N, D] final states that predict the next token

    def __init__(self, lm: LanguageModel, memory: Memory | Prefix | None, batch: Batch) -> None:
        self._lm = lm
        self._cache = growing_pair()
        encoded = lm.encoder_side(memory, batch)
        if lm.query_in_encoder:
            ids = torch.full_like(batch.context_of, lm.start_id)[:, None]
            self._mask = torch.ones_like(ids, dtype=torch.bool)
        else:
            encoded = memory_rows(encoded, batch.context_of)
            ids, self._mask = prepend(batch.query_ids, batch.query_mask, lm.start_id)
        self._encoded = encoded
        self._read(ids)

    def _read(self, tokens: Tensor) -> None:
        model = self._lm.hf.get_decoder()
        output = model(
            inputs_embeds=self._lm.embed(tokens),
            attention_mask=self._mask.long(),
            encoder_hidden_states=self._encoded.layers[-1],
            encoder_attention_mask=self._encoded.mask.long(),
            use_cache=True,
            **passing(model, self._cache),
        )
        self.hidden = output.last_hidden_state[:, -1]

    def step(self, tokens: Tensor) -> None:
        self._mask = torch.cat([self._mask, torch.ones_like(tokens[:, None], dtype=torch.bool)], 1)
        self._read(tokens[:, None])

    def select(self, index: Tensor) -> None:
        select_rows(self._cache, index)
        self._encoded, self._mask = self._encoded.rows(index), self._mask[index]
        self.hidden = self.hidden[index]

    def join(self, other: _EncoderDecoderRows) -> None:
        """As `_DecoderRows.join`."""
        join_caches(self._cache, other._cache)
        layers = (under(self._encoded.layers[-1], other._encoded.layers[-1], 1),)
        self._encoded = EncoderStates(layers, under(self._encoded.mask, other._encoded.mask, 1))
        self._mask = under(self._mask, other._mask, 1)
        self.hidden = torch.cat([self.hidden, other.hidden])

    def trim(self) -> None:
        """As `_DecoderRows.trim`, of the decoder's columns."""
        unseen = int(self._mask.any(0).long().argmax())
        cut_columns(self._cache, unseen)
        self._mask = self._mask[:, unseen:]


Rows = _DecoderRows | _EncoderDecoderRows
"""Rows that are being continued."""
