"""Fewer demonstrations: as many whole ones as the budget holds.

Chen et al. 2025, https://arxiv.org/abs/2510.16092, find that at the same budget fewer shots are hard to beat by prompt
compression. Demonstrations stay as they are written, in the order of the context. Which ones are tried first does not
depend on the query unless `query_aware` says so: `bm25` (Robertson and Zaragoza 2009, k1 1.5, b 0.75, over token ids)
and `nearest` then compare a demonstration with the rest of the context, so that the most typical ones stay.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from promptcomp.rivals.rival import Reading, TextRival

if TYPE_CHECKING:
    from torch import Tensor

_K1, _B = 1.5, 0.75


class FewerDemonstrations(TextRival):
    """Whole demonstrations within the budget: each that still fits, in the order that `choose` says."""

    title: ClassVar[str] = "fewer demonstrations"
    paper: ClassVar[str] = "Chen et al. 2025, arXiv 2510.16092"
    needs_demonstrations: ClassVar[bool] = True

    name: Literal["fewer_demonstrations"] = "fewer_demonstrations"
    choose: Literal["random", "first", "last", "bm25", "nearest"] = "random"
    """Which ones are tried first. random: an order drawn from `seed` and the context's tokens alone; first: those
    that come first; last: the last ones; bm25: those that
    share most words with the rest of the context; nearest: those whose mean token embedding points as the rest's."""
    query_aware: bool = False
    """bm25 and nearest: compare with the query instead of the rest of the context; a memory is made for each query."""
    seed: int = 0
    """Seed of the random order."""

    @model_validator(mode="after")
    def _compares(self) -> Self:
        if self.query_aware and self.choose not in ("bm25", "nearest"):
            raise ValueError(f"query_aware goes with choose=bm25 or choose=nearest, not choose={self.choose}")
        return self

    @property
    def sees_queries(self) -> bool:
        """See Rival."""
        return self.query_aware

    @property
    def _kind(self) -> str:
        return f"{self.choose} to query" if self.query_aware else self.choose

    def keep(self, reading: Reading, budget: Tensor) -> Tensor:
        """See TextRival."""
        import torch

        tokens = reading.tokens
        if tokens.part is None:
            raise ValueError("contexts without borders of demonstrations")  # the configuration is refused before
        kept = torch.zeros_like(tokens.mask)
        for row, room in enumerate(budget.tolist()):
            part, mask = tokens.part[row], tokens.mask[row]
            numbers = part[mask].unique().tolist()
            texts = [tokens.ids[row][mask & (part == number)] for number in numbers]
            query = None
            if reading.queries is not None:
                query = reading.queries[0][row][reading.queries[1][row]]
            for place in self._order(reading, texts, query):
                if len(texts[place]) <= room:
                    room -= len(texts[place])
                    kept[row] |= part == numbers[place]
        return kept

    def _order(self, reading: Reading, texts: list[Tensor], query: Tensor | None) -> list[int]:
        import torch

        places = list(range(len(texts)))
        if self.choose == "random":
            random.Random(f"{self.seed} {[each for ids in texts for each in ids.tolist()]}").shuffle(places)
        if self.choose in ("random", "first", "last"):
            return places[::-1] if self.choose == "last" else places
        rest = [torch.cat([texts[i] for i in places if i != own] or [texts[own]]) for own in places]
        wanted = rest if query is None else [query for _ in places]
        if self.choose == "bm25":
            scores = _bm25([ids.tolist() for ids in texts], [ids.tolist() for ids in wanted])
        else:
            ours, theirs = (torch.stack([reading.lm.embed(i).mean(0) for i in ids]) for ids in (texts, wanted))
            scores = torch.nan_to_num(torch.cosine_similarity(ours, theirs, -1)).tolist()
        return sorted(places, key=lambda place: -scores[place])


def _bm25(documents: list[list[int]], queries: list[list[int]]) -> list[float]:
    """The score of each document for its own query; a word of a query counts as often as it is there."""
    counts = [Counter(document) for document in documents]
    mean = sum(map(len, documents)) / max(len(documents), 1)
    held = Counter(word for count in counts for word in count)
    scores = []
    for document, count, query in zip(documents, counts, queries, strict=True):
        score = 0.0
        for word, times in Counter(query).items():
            idf = math.log(1 + (len(documents) - held[word] + 0.5) / (held[word] + 0.5))
            norm = count[word] + _K1 * (1 - _B + _B * len(document) / mean)
            score += times * idf * count[word] * (_K1 + 1) / norm
        scores.append(score)
    return scores
