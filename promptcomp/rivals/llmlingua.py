"""LLMLingua-2 (Pan et al. 2024, https://arxiv.org/abs/2403.12968): the words that a trained classifier would keep.

An encoder tells for each of its tokens how likely it is kept; a word is as likely as its tokens on average. The
likeliest words that fit the budget stay, in their order. The classifier is a download or a folder of the user's; the
paper's were trained on transcripts of meetings that GPT-4 had shortened.

Two differences. The paper keeps a share of the words, here it is as many as fit the budget in tokens of the LM. It cuts
long contexts at the ends of sentences, here a window of the classifier ends where it is full.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

from promptcomp.language_model.lm_config import LanguageModelConfig
from promptcomp.rivals.rival import NotMet, Reading, TextRival

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BORDER = re.compile(r"\S\s+\S")
_MOST = 512
"""Tokens that the paper's classifiers read at once."""


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
