"""Texts as labels, as equations and against a reference: when two are the same, and the metrics of an answer.

Equations: the original (google-research/distilling-step-by-step) gives what a model wrote to Python's `eval`. Here it
is parsed, and only numbers, + - * /, signs and brackets are computed, within limits on length and depth.

ROUGE as the gisting paper reports it (Mu et al. 2023, arXiv 2304.08467): `rouge_score` with stemming, F-measure, on
lower-cased [a-z0-9]+. ROUGE-Lsum compares sentence by sentence: the paper's code finds sentences with nltk's English
Punkt model, which needs a download; here the same Punkt algorithm runs with a built-in list of abbreviations instead
of the trained model, so that the numbers are the same on every machine. The other variants do not look at sentences.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import unicodedata
from collections.abc import Callable
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Literal

from promptcomp.config import ConfigError

if TYPE_CHECKING:
    from nltk.tokenize.api import TokenizerI
    from rouge_score.rouge_scorer import RougeScorer


def agreement(text: str, full: str) -> float:
    """1 if a text is the positive control's text, white space inside included (the paper's exact match), else 0."""
    return float(text.strip() == full.strip())


def text_metrics(
    text: str, reference: str | None, full: str | None, rouge: Rouge, teacher: str | None = None
) -> dict[str, float]:
    """The metrics of `predictions.TEXT_METRICS` of one answer.

    Args:
        text: what was generated.
        reference: the right answer; None: there is none.
        full: the answer of the full-prompt row, for `agreement`; None: there is none to agree with.
        rouge: the scorer.
        teacher: the LM's own answer, where that is the target.
    """
    found: dict[str, float] = {}
    if reference is not None:
        found = {"exact_match": float(same_label(text, reference)), **rouge.scores(text, reference)}
        if value_of(reference) is not None:
            found["equation"] = float(same_value(text, reference))
    if full is not None:
        found["agreement"] = agreement(text, full)
    if teacher is not None:
        found |= {"teacher_match": agreement(text, teacher), "teacher_rougeL": rouge.scores(text, teacher)["rougeL"]}
    return found


@lru_cache(maxsize=4096)  # the options of a task come again with every row
def label_of(text: str) -> str:
    """The label that a text stands for: white space at its ends does not count, a run of it counts as one blank."""
    return " ".join(text.split())


def same_label(text: str, other: str) -> bool:
    """Whether two texts are one label."""
    return label_of(text) == label_of(other)


def looks_of(text: str) -> str:
    """What a person sees of a label: case, width, ways to write an accent and invisible characters left out."""
    seen = unicodedata.normalize("NFKC", text).casefold()
    return label_of("".join(letter for letter in seen if unicodedata.category(letter) != "Cf"))


MAX_LENGTH = 500
"""Characters; longer text is no equation."""
MAX_DEPTH = 50
TOLERANCE = 1e-6
"""Relative difference of two equal values."""

_CHARACTERS = re.compile(r"[0-9eE._+\-*/()\s]*", re.ASCII)
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def value_of(text: str) -> float | int | None:
    """The value of an expression of numbers, + - * /, signs and brackets; None if it is anything else."""
    if len(text) > MAX_LENGTH or not _CHARACTERS.fullmatch(text):
        return None
    try:
        found = _value(ast.parse(text.strip(), mode="eval").body, 0)
        return found if math.isfinite(found) else None
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, MemoryError, RecursionError):
        return None


def _value(node: ast.expr, depth: int) -> float | int:
    """A part that is not arithmetic, or too deep, is a ValueError."""
    if depth > MAX_DEPTH:
        raise ValueError("too deep")
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand, depth + 1)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left, depth + 1), _value(node.right, depth + 1))
    raise ValueError("not arithmetic")


def same_value(one: str, other: str, tolerance: float = TOLERANCE) -> bool:
    """Whether two expressions have the same value, within a relative difference (the original: 0); what has no value
    equals nothing."""
    values = value_of(one), value_of(other)
    if values[0] is None or values[1] is None:
        return False
    return math.isclose(values[0], values[1], rel_tol=tolerance, abs_tol=0.0)


def agree(one: str, other: str, metric: str) -> bool:
    """Whether two labels agree: by value ("equation") or as text, case and blanks aside."""
    if metric == "equation":
        return same_value(one, other)
    return same_label(one.casefold(), other.casefold())


ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
Sentences = Literal["builtin", "nltk"]
"""builtin: Punkt with the abbreviations below. nltk: Punkt's trained English model (needs a download of its own)."""

_ABBREVIATIONS = """
    a.m adj adm adv al apr approx apt assoc aug ave b.c blvd ca capt cf ch co col corp dec dept dr e.g ed eds eq est
    etc ext feb fig figs fri ft gen gov hon i.e inc jan jr jul jun lt ltd m.d maj mar max messrs min mon mr mrs ms mt
    no nov oct op p.m p.s ph.d pp prof rep rev sat sec sen sep sept sgt sr st sun thu tue u.k u.n u.s vol vs wed
"""


class Rouge:
    """ROUGE of single pairs of texts; equal pairs are computed once.

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

        stemming = DefaultTokenizer(use_stemmer=True)
        self._plain = DefaultTokenizer(use_stemmer=False)
        self._stem = cache(lambda word: "".join(stemming.tokenize(word)))

    def tokenize(self, text: str) -> list[str]:
        """Stemmed words."""
        return [self._stem(word) for word in self._plain.tokenize(text)]


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
