"""Beam search with the rules of Hugging Face's `generate` (early_stopping=False), independent of any model."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_NEVER = -1e9


@dataclass(slots=True)
class _Row:
    """The beams of one row, and the answers that have ended: (score, tokens)."""

    tokens: list[list[int]]
    ended: list[tuple[float, list[int]]] = field(default_factory=list)
    done: bool = False


class BeamSearch:
    """Which beams to go on with; N rows of B beams each, beam b of row n is row n * B + b of the model's batch."""

    def __init__(self, rows: int, width: int, stop_ids: tuple[int, ...], length_penalty: float) -> None:
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
                    self._end(row, score, length, row.tokens[beam])
            elif len(going_on) < self._width:
                going_on.append((score, beam, token))
        while len(going_on) < self._width:  # a vocabulary of stop tokens
            going_on.append((_NEVER, 0, 0))
        row.tokens = [[*row.tokens[beam], token] for _, beam, token in going_on]
        best = going_on[0][0] / length**self._penalty
        row.done = len(row.ended) == self._width and min(score for score, _ in row.ended) >= best
        return going_on

    def _end(self, row: _Row, score: float, length: int, tokens: list[int]) -> None:
        row.ended.append((score / length**self._penalty, tokens))
        row.ended = sorted(row.ended, key=lambda answer: -answer[0])[: self._width]

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
