"""Free continuation of queries behind a memory: greedy, sampled or by beam search, through a growing cache.

Every new token sees what its query sees (the visible part of the prompt) and what came since, never more: what may be
seen is computed from positions and kept for each row, not inherited from the last row of the prompt's mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from promptcomp.batch import Batch
from promptcomp.config import ConfigError
from promptcomp.language_model.attention import Window, slot_positions
from promptcomp.language_model.cache import growing, growing_pair, passing, select_rows
from promptcomp.language_model.parts import Prefix, memory_rows, positions, prepend
from promptcomp.memory import KVCache, Memory

if TYPE_CHECKING:
    from promptcomp.language_model.model import LanguageModel

_NEVER = -1e9
OnTokens = Callable[[list[int | None]], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How answers are made.

    Raises:
        ConfigError: settings that contradict each other or have no meaning.
    """

    max_new_tokens: int
    """Most tokens of an answer."""
    stop_ids: Sequence[int] = ()
    """Tokens that end an answer."""
    temperature: float = 0.0
    """0 takes the likeliest token; otherwise tokens are drawn with `generator`."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that hold this much probability together."""
    generator: torch.Generator | None = None
    num_beams: int = 1
    """More than 1: beam search (Hugging Face's rules; goes with temperature 0)."""
    length_penalty: float = 1.0
    """Beam scores are divided by length ** length_penalty."""
    on_tokens: OnTokens | None = None
    """Called after every step with the new token of each query, None for those that have ended (not with beams)."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ConfigError("the number of new tokens and of beams must be at least 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError("the temperature must not be negative, and top_p must lie in (0, 1]")
        if self.num_beams > 1 and (self.temperature or self.on_tokens):
            raise ConfigError("beam search goes with temperature 0 and cannot be streamed; use one beam")


@torch.no_grad()
def generate(lm: LanguageModel, memory: Memory | Prefix | None, batch: Batch, settings: Settings) -> list[list[int]]:
    """See LanguageModel.generate."""
    state = _start(lm, memory, batch, settings.max_new_tokens)
    return _beams(lm, state, settings) if settings.num_beams > 1 else _one_path(lm, state, settings)


@torch.no_grad()
def forced(lm: LanguageModel, memory: Memory | Prefix | None, batch: Batch, tokens: Tensor) -> Tensor:
    """Logits [N, 2, V] before and after the queries go on with `tokens` [N]."""
    state = _start(lm, memory, batch, 1)
    before = lm.head(state.hidden)
    state.step(tokens)
    return torch.stack([before, lm.head(state.hidden)], 1)


def _start(lm: LanguageModel, memory: Memory | Prefix | None, batch: Batch, new_tokens: int) -> _Rows:
    if lm.family == "encoder_decoder":
        return _EncoderDecoderRows(lm, memory, batch)
    return _DecoderRows(lm, memory, batch, new_tokens)


def _one_path(lm: LanguageModel, state: _Rows, settings: Settings) -> list[list[int]]:
    rows = state.hidden.shape[0]
    texts: list[list[int]] = [[] for _ in range(rows)]
    running = [True] * rows
    for number in range(settings.max_new_tokens):
        chosen = _choose(lm.head(state.hidden), settings)
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


def _choose(logits: Tensor, settings: Settings) -> Tensor:
    if settings.temperature == 0:
        return logits.argmax(-1)
    probs = (logits.float() / settings.temperature).softmax(-1)
    if settings.top_p < 1:
        ranked, order = probs.sort(-1, descending=True)
        beyond = ranked.cumsum(-1) - ranked >= settings.top_p
        probs = probs.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    return torch.multinomial(probs, 1, generator=settings.generator).squeeze(-1)


def _beams(lm: LanguageModel, state: _Rows, settings: Settings) -> list[list[int]]:
    rows, width = state.hidden.shape[0], settings.num_beams
    search = BeamSearch(rows, width, settings.stop_ids, settings.length_penalty)
    state.select(torch.arange(rows, device=state.hidden.device).repeat_interleave(width))
    for number in range(settings.max_new_tokens):
        source, tokens = search.advance(lm.head(state.hidden).float().log_softmax(-1))
        if search.is_done or number + 1 == settings.max_new_tokens:
            break
        state.select(source)
        state.step(tokens)
    return search.best()


@dataclass(slots=True)
class _Row:
    """The beams of one row, and the answers that have ended: (score, tokens)."""

    tokens: list[list[int]]
    ended: list[tuple[float, list[int]]] = field(default_factory=list)
    done: bool = False


class BeamSearch:
    """Which beams to go on with, by the rules of Hugging Face's `generate` (early_stopping=False).

    N rows of B beams each; beam b of row n is row n * B + b of the model's batch.
    """

    def __init__(self, rows: int, width: int, stop_ids: Sequence[int], length_penalty: float) -> None:
        self._width = width
        self._stop_ids = frozenset(stop_ids)
        self._penalty = length_penalty
        self._rows = [_Row([[] for _ in range(width)]) for _ in range(rows)]
        self._scores = torch.full((rows, width), _NEVER)
        self._scores[:, 0] = 0.0  # all beams start equal: only one of them may go on

    @property
    def is_done(self) -> bool:
        """Whether no row can get better."""
        return all(row.done for row in self._rows)

    def advance(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step with log probabilities [N * B, V].

        Returns:
            For each beam the row of the batch that it continues, and its new token: [N * B] each.
        """
        rows, vocabulary = len(self._rows), log_probs.shape[-1]
        total = self._scores.to(log_probs.device)[:, :, None] + log_probs.view(rows, self._width, vocabulary)
        # twice as many as beams, so that enough are left when some end
        values, flat = total.flatten(1).topk(min(2 * self._width, total[0].numel()), dim=1)
        source = torch.zeros(rows, self._width, dtype=torch.long)
        token = torch.zeros(rows, self._width, dtype=torch.long)
        candidates = zip(values.tolist(), flat.tolist(), strict=True)
        for number, (row, (scores, places)) in enumerate(zip(self._rows, candidates, strict=True)):
            if row.done:
                source[number] = number * self._width
                continue
            chosen = self._advance_row(row, scores, [divmod(place, vocabulary) for place in places])
            source[number] = torch.tensor([number * self._width + beam for _, beam, _ in chosen])
            token[number] = torch.tensor([new for _, _, new in chosen])
            self._scores[number] = torch.tensor([score for score, _, _ in chosen])
        return source.flatten().to(log_probs.device), token.flatten().to(log_probs.device)

    def _advance_row(
        self, row: _Row, scores: list[float], places: list[tuple[int, int]]
    ) -> list[tuple[float, int, int]]:
        """The (score, beam, token) of the beams that go on; answers that end are put aside."""
        going_on: list[tuple[float, int, int]] = []
        length = len(row.tokens[0]) + 1
        for rank, (score, (beam, token)) in enumerate(zip(scores, places, strict=True)):
            if token in self._stop_ids:
                if rank < self._width:
                    row.ended.append((score / length**self._penalty, row.tokens[beam]))
                    row.ended = sorted(row.ended, key=lambda answer: -answer[0])[: self._width]
            elif len(going_on) < self._width:
                going_on.append((score, beam, token))
        while len(going_on) < self._width:  # a vocabulary of stop tokens
            going_on.append((_NEVER, 0, 0))
        row.tokens = [[*row.tokens[beam], token] for _, beam, token in going_on]
        best = going_on[0][0] / length**self._penalty
        row.done = len(row.ended) == self._width and min(score for score, _ in row.ended) >= best
        return going_on

    def best(self) -> list[list[int]]:
        """The best answer of every row, ended or not."""
        found = []
        for row, scores in zip(self._rows, self._scores.tolist(), strict=True):
            answers = list(row.ended)
            if not row.done:
                length = max(len(row.tokens[0]), 1)
                answers += [
                    (score / length**self._penalty, text) for score, text in zip(scores, row.tokens, strict=True)
                ]
            found.append(max(answers, key=lambda answer: answer[0])[1])
        return found


class _DecoderRows:
    """A decoder-only LM: a cache, and for each of its columns the position id and whether new tokens see it."""

    hidden: Tensor  # [N, D] final states that predict the next token

    def __init__(self, lm: LanguageModel, memory: Memory | Prefix | None, batch: Batch, new_tokens: int) -> None:
        self._lm = lm
        self._cache = growing()
        embeds, mask, context_of = lm.embed(batch.query_ids), batch.query_mask, batch.context_of
        if isinstance(memory, KVCache):
            memory = memory_rows(memory, context_of)
            self._cache = growing(memory.layers)
            first = memory.next_position[:, None]
            self._seen = torch.cat([memory.mask, mask], 1)
            rows = first + positions(mask)
            self._columns = torch.cat([slot_positions(memory), rows], 1)
            sees = self._seen[:, None, :] & (self._columns[:, None, :] <= rows[:, :, None])
        else:
            front = lm.front(memory, context_of)
            first = front.mask.sum(-1, keepdim=True)
            embeds = torch.cat([front.embeds, embeds], 1)
            self._seen = torch.cat([front.visible, mask], 1)
            rows = self._columns = torch.cat([positions(front.mask), first + positions(mask)], 1)
            readable = torch.cat([front.mask, torch.zeros_like(mask)], 1)
            in_front = (torch.arange(rows.shape[1], device=rows.device) < front.mask.shape[1])[None, :, None]
            readable_here = torch.where(in_front, readable[:, None, :], self._seen[:, None, :])
            sees = readable_here & (rows[:, None, :] <= rows[:, :, None])
        self._next = first.squeeze(1) + mask.sum(-1)
        Window(lm.window).check_positions(self._next + new_tokens - 1)
        self._read(embeds, rows, sees)

    def _read(self, embeds: Tensor, rows: Tensor, sees: Tensor) -> None:
        assert self._lm.pattern is not None
        output = self._lm.body(
            inputs_embeds=embeds,
            attention_mask=self._lm.pattern.mask(sees, rows, self._columns, embeds.dtype, blocks=False),
            position_ids=rows,
            use_cache=True,
            **passing(self._lm.body, self._cache),
        )
        self.hidden = output.last_hidden_state[:, -1]

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


_Rows = _DecoderRows | _EncoderDecoderRows
"""Rows that are being continued."""
