"""A part of a context's tokens, in their order: its ends, tokens that an LM does not expect, demonstrations, words.

`DropTokens` is Selective Context (Li et al. 2023, arXiv 2310.06201). The paper drops phrases; here it is single tokens,
of the same LM that reads what is left. At random: the control that a choice of tokens has to beat.

`FewerDemonstrations`: as many whole ones as the budget holds. Chen et al. 2025, https://arxiv.org/abs/2510.16092, find
that at the same budget fewer shots are hard to beat by prompt compression. Demonstrations stay as they are written, in
the order of the context. Which ones are tried first does not depend on the query unless `query_aware` says so: `bm25`
(Robertson and Zaragoza 2009, k1 1.5, b 0.75, over token ids) and `nearest` then compare a demonstration with the rest
of the context, so that the most typical ones stay.

`LLMLingua2` (Pan et al. 2024, https://arxiv.org/abs/2403.12968): the words that a trained classifier would keep. An
encoder tells for each of its tokens how likely it is kept; a word is as likely as its tokens on average. The likeliest
words that fit the budget stay, in their order. The classifier is a download or a folder of the user's; the paper's were
trained on transcripts of meetings that GPT-4 had shortened. Two differences: the paper keeps a share of the words, here
it is as many as fit the budget in tokens of the LM; it cuts long contexts at the ends of sentences, here a window of
the classifier ends where it is full.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from promptcomp.language_model.lm_config import LanguageModelConfig
from promptcomp.rivals.rival import NotMet, Reading, TextRival, best

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_K1, _B = 1.5, 0.75
_BORDER = re.compile(r"\S\s+\S")
_MOST = 512
"""Tokens that the paper's classifiers read at once."""


class Truncate(TextRival):
    """As much of one end of a context, or of both, as the budget holds."""

    title: ClassVar[str] = "truncated"

    name: Literal["truncate"] = "truncate"
    keeps: Literal["head", "tail", "both"] = "tail"
    """head: the first tokens; tail: the last ones, next to the query; both: the larger half first, the other last."""

    @property
    def _kind(self) -> str:
        return self.keeps

    def keep(self, reading: Reading, budget: Tensor) -> Tensor:
        """See TextRival."""
        mask = reading.tokens.mask
        from_start = mask.long().cumsum(-1) - 1
        from_end = mask.sum(-1, keepdim=True) - from_start - 1
        first = {"head": budget, "tail": budget * 0, "both": (budget + 1) // 2}[self.keeps]
        return (from_start < first[:, None]) | (from_end < (budget - first)[:, None])


class DropTokens(TextRival):
    """Single tokens within the budget, in their order."""

    title: ClassVar[str] = "dropped tokens"
    paper: ClassVar[str] = "Li et al. 2023, arXiv 2310.06201"

    name: Literal["drop_tokens"] = "drop_tokens"
    keeps: Literal["surprising", "random"] = "surprising"
    """surprising: the tokens that the LM expects least after those before them; random: drawn from `seed` and the
    context's tokens alone."""
    seed: int = 0
    """Seed of the random choice."""

    @property
    def _kind(self) -> str:
        return self.keeps

    def keep(self, reading: Reading, budget: Tensor) -> Tensor:
        """See TextRival."""
        import torch

        mask = reading.tokens.mask
        if self.keeps == "surprising":
            return best(reading.surprisal, mask, budget)
        scores = torch.zeros(mask.shape, device=mask.device)
        for row, ids in enumerate(reading.tokens.ids):
            own = ids[mask[row]].tolist()
            drawn = random.Random(f"{self.seed} {own}")
            scores[row][mask[row]] = scores.new_tensor([drawn.random() for _ in own])
        return best(scores, mask, budget)


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


class LLMLingua2(TextRival):
    """Whole words within the budget: each that still fits, the likeliest to be kept first."""

    title: ClassVar[str] = "LLMLingua-2"
    paper: ClassVar[str] = "Pan et al. 2024, arXiv 2403.12968"

    name: Literal["llmlingua2"] = "llmlingua2"
    classifier: str = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"
    """A folder or a name of the hub: a token classifier with two labels, the second of which says "keep"."""

    def check_places(self) -> None:
        """See Rival."""
        LanguageModelConfig(path=self.classifier).check_place()

    def keep(self, reading: Reading, budget: Tensor) -> Tensor:
        """See TextRival.

        Raises:
            ConfigError: the classifier cannot be read, or is none.
        """
        import torch

        if reading.lm.tokenizer is None:
            raise NotMet("the LM has no tokenizer, so its tokens have no words")
        context = reading.tokens
        model, tokenizer = _open(self.classifier, context.ids.device)
        kept = torch.zeros_like(context.mask)
        for row, room in enumerate(budget.tolist()):
            places = context.mask[row].nonzero()[:, 0]
            words, texts = _words_of(context.ids[row, places].tolist(), reading.lm.tokenizer)
            scores = _keeping(texts, model, tokenizer) if words else []
            for number in sorted(range(len(words)), key=lambda each: -scores[each]):
                if len(words[number]) <= room:
                    room -= len(words[number])
                    kept[row, places[words[number]]] = True
        return kept


def _words_of(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], list[str]]:
    """The places of each word's tokens, and the words. White space alone goes with the word in front of it."""
    words: list[list[int]] = []
    texts: list[str] = []
    for place in range(len(ids)):
        start = words[-1][0] if words else place
        longer = str(tokenizer.decode(ids[start : place + 1], clean_up_tokenization_spaces=False))
        if words and not _BORDER.search(longer):
            words[-1].append(place)
            texts[-1] = longer
        else:
            words.append([place])
            texts.append(str(tokenizer.decode(ids[place : place + 1], clean_up_tokenization_spaces=False)))
    return words, [text.strip() for text in texts]


def _keeping(words: list[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[float]:
    """How likely each word is kept; one without a token of the classifier never is."""
    import torch

    positions = getattr(model.config, "max_position_embeddings", None) or _MOST + 2
    read = tokenizer(
        words,
        is_split_into_words=True,
        truncation=True,
        max_length=min(_MOST, tokenizer.model_max_length, positions - 2),  # RoBERTa's positions start behind the pad's
        return_overflowing_tokens=True,
        padding=True,
        return_tensors="pt",
    ).to(model.device)
    with torch.no_grad():
        logits = model(input_ids=read["input_ids"], attention_mask=read["attention_mask"]).logits
    found: list[list[float]] = [[] for _ in words]
    for window, likely in enumerate(logits.float().softmax(-1)[..., 1].tolist()):
        for word, each in zip(read.word_ids(window), likely, strict=True):
            if word is not None:
                found[word].append(each)
    return [sum(each) / len(each) if each else 0.0 for each in found]


@lru_cache(maxsize=1)
def _open(path: str, device: object) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from promptcomp.language_model.loading import open_token_classifier

    model, tokenizer = open_token_classifier(LanguageModelConfig(path=path))
    return model.to(device), tokenizer  # type: ignore[arg-type]
