"""ROUGE as the gisting paper reports it (Mu et al. 2023, arXiv 2304.08467): `rouge_score` with stemming, F-measure.

The numbers are those of the `rouge_score` package, which Hugging Face `evaluate` calls too, on lower-cased [a-z0-9]+.
ROUGE-Lsum compares sentence by sentence. The paper's code finds sentences with nltk's English Punkt model, which has to
be downloaded; here the same Punkt algorithm runs with a built-in list of abbreviations instead of the trained model, so
that the numbers are the same on every machine. The other ROUGE variants do not look at sentences.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Literal

from promptcomp.config import ConfigError

if TYPE_CHECKING:
    from nltk.tokenize.api import TokenizerI
    from rouge_score.rouge_scorer import RougeScorer

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
Sentences = Literal["builtin", "nltk"]
"""builtin: Punkt with the abbreviations below. nltk: Punkt's trained English model (needs a download of its own)."""

_ABBREVIATIONS = """
    a.m adj adm adv al apr approx apt assoc aug ave b.c blvd ca capt cf ch co col corp dec dept dr e.g ed eds eq est
    etc ext feb fig figs fri ft gen gov hon i.e inc jan jr jul jun lt ltd m.d maj mar max messrs min mon mr mrs ms mt
    no nov oct op p.m p.s ph.d pp prof rep rev sat sec sen sep sept sgt sr st sun thu tue u.k u.n u.s vol vs wed
"""


class Rouge:
    """ROUGE of single pairs of texts; equal pairs are worked out once.

    Raises:
        ConfigError: `sentences="nltk"` and the trained model is not on this machine.
    """

    def __init__(self, sentences: Sentences = "builtin") -> None:
        self._splitter = _splitter(sentences)
        self._known: dict[tuple[str, str], dict[str, float]] = {}

    @cached_property
    def _scorer(self) -> RougeScorer:
        from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer(list(ROUGE), use_stemmer=True, tokenizer=_CachedTokenizer())

    def scores(self, text: str, reference: str) -> dict[str, float]:
        """F-measure of each variant in `ROUGE`, 0-1; 0 where a text has no letters or digits."""
        pair = (text, reference)
        if pair not in self._known:
            found = self._scorer.score(self.by_line(reference), self.by_line(text))
            self._known[pair] = {name: float(found[name].fmeasure) for name in ROUGE}
        return self._known[pair]

    def by_line(self, text: str) -> str:
        """The text with one sentence a line; line breaks that are there already separate sentences too."""
        return "\n".join(self._splitter.tokenize(text.strip()))


class _CachedTokenizer:
    """rouge_score's own tokenizer with the Porter stemmer, which is slow: every word is stemmed once."""

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._stemming = DefaultTokenizer(use_stemmer=True)
        self._plain = DefaultTokenizer(use_stemmer=False)
        self._stems: dict[str, str] = {}

    def tokenize(self, text: str) -> list[str]:
        """Stemmed words."""
        return [self._stem(word) for word in self._plain.tokenize(text)]

    def _stem(self, word: str) -> str:
        if word not in self._stems:
            self._stems[word] = "".join(self._stemming.tokenize(word))
        return self._stems[word]


def _splitter(sentences: Sentences) -> TokenizerI:
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer, PunktTokenizer

    if sentences == "builtin":
        parameters = PunktParameters()
        parameters.abbrev_types.update(_ABBREVIATIONS.split())
        return PunktSentenceTokenizer(parameters)
    try:
        return PunktTokenizer("english")
    except LookupError:
        raise ConfigError(
            "evaluation.sentences = 'nltk': the English Punkt model is not on this machine; get it with "
            "'python -m nltk.downloader punkt_tab', or use 'builtin' (which changes ROUGE-Lsum alone)"
        ) from None
