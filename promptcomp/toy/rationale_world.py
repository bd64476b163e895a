"""The toy worlds of rationales: small tasks in which a teacher's rationale contains more information than the label.

cost: what two goods cost together ("i buy a robin and a saw , what is the price ?" -> 7). The prices, 1 to 5 for 120
goods, are not in inputs; the label shows a sum, the rationale ("3 + 4 = 7") the prices. reviews: whether most of five
opinions are good; the rationale says which words are good ("bad good good ... so 3 good 2 bad").

The teacher may be wrong: it misreads a part (and follows its misreading to the label), or answers another question.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from promptcomp.datamodules.tasks import RationaleRow, RationaleSource
from promptcomp.toy.toy_sections import ToyRationaleConfig, World
from promptcomp.toy.words import CATEGORIES, SPECIALS, word_tokenizer

_GOODS = "animals birds fish fruits vegetables tools furniture vehicles instruments clothes"
_BUYERS = ("i buy", "we buy", "they get")
_GOOD = """
tasty superb charming lovely friendly fresh crisp warm elegant polite quick generous fair cosy bright clean
delicious perfect gentle smooth lively rich juicy tender splendid graceful helpful honest neat pleasant quiet relaxed
sweet tidy vivid witty brilliant stunning spotless fabulous
"""
_BAD = """
bland awful rude dirty cold stale soggy slow greedy noisy dull cramped dark burnt bitter broken clumsy crude
dreadful faulty filthy grim harsh horrid lazy messy nasty poor rotten rough salty shabby sloppy smelly sour tasteless
tedious ugly vile weak
"""
_ASPECTS = """
soup waiter bill room music bread wine menu view chair dessert salad staff door table light steak coffee
sauce service
"""
_JOINS = ("and the", "but the", "while the", "also the")
_NUM_ASPECTS = 5
MAX_PRICE = 5
"""Of a good; the least is 1."""
_PRICE_SEED = "prices"
_MARKS = ("predict:", "explain:", "=>", ",", "?", "+", "=")


@dataclass(frozen=True, slots=True)
class _Question:
    text: str
    readings: tuple[int, ...]
    """What a reader has to know: the price of each good, or 1 (good) and 0 for each opinion."""
    key: tuple[str, ...]
    """Questions of one key never stand in two splits."""


@lru_cache(maxsize=1)
def prices() -> dict[str, int]:
    """The hidden price of every good."""
    rng = random.Random(_PRICE_SEED)  # text seeds do not depend on PYTHONHASHSEED
    return {word: rng.randint(1, MAX_PRICE) for category in _GOODS.split() for word in CATEGORIES[category]}


def cost_text(goods: Sequence[str], rng: random.Random) -> str:
    """The question what two goods cost together."""
    return f"{rng.choice(_BUYERS)} a {goods[0]} and a {goods[1]} , what is the price ?"


def _cost_question(rng: random.Random) -> _Question:
    known = prices()
    goods = rng.sample(sorted(known), 2)
    return _Question(cost_text(goods, rng), tuple(known[word] for word in goods), tuple(sorted(goods)))


def _review_question(rng: random.Random) -> _Question:
    readings = tuple(rng.randrange(2) for _ in range(_NUM_ASPECTS))
    aspects = rng.sample(_ASPECTS.split(), _NUM_ASPECTS)
    joins = ["the", *(rng.choice(_JOINS) for _ in range(_NUM_ASPECTS - 1))]
    words = [rng.choice((_GOOD if good else _BAD).split()) for good in readings]
    text = " ".join(f"{join} {aspect} was {word}" for join, aspect, word in zip(joins, aspects, words, strict=True))
    return _Question(text, readings, tuple(text.split()))


def answer(kind: World, readings: Sequence[int]) -> tuple[str, str]:
    """Rationale and label of someone who reads a question so."""
    if kind == "cost":
        total = str(sum(readings))
        return f"{' + '.join(map(str, readings))} = {total}", total
    good = sum(readings)
    words = " ".join("good" if reading else "bad" for reading in readings)
    label = "positive" if 2 * good > len(readings) else "negative"
    return f"{words} so {good} good {len(readings) - good} bad", label


def _misread(kind: World, readings: Sequence[int], share: float, rng: random.Random) -> tuple[int, ...]:
    def one(reading: int) -> int:
        if rng.random() >= share:
            return reading
        if kind == "reviews":
            return 1 - reading
        step = rng.choice((-1, 1))
        return reading + step if 1 <= reading + step <= MAX_PRICE else reading - step

    return tuple(one(reading) for reading in readings)


def labels(kind: World) -> tuple[str, ...]:
    """All labels of a world."""
    return tuple(map(str, range(2, 2 * MAX_PRICE + 1))) if kind == "cost" else ("negative", "positive")


def _questions(config: ToyRationaleConfig) -> Iterator[_Question]:
    """Endless questions, no two of one key."""
    rng = random.Random(f"{config.seed}/{config.kind}")
    make = _cost_question if config.kind == "cost" else _review_question
    seen: set[tuple[str, ...]] = set()
    while True:
        question = make(rng)
        if question.key not in seen:
            seen.add(question.key)
            yield question


class ToyRationaleSource(RationaleSource):
    """The splits of a world: disjoint in their questions; a larger pool begins with the rows of a smaller one."""

    splits = ("train", "dev", "test")

    def __init__(self, config: ToyRationaleConfig) -> None:
        self.config = config
        self._all: dict[str, tuple[RationaleRow, ...]] = {}

    def rows(self, split: str) -> Sequence[RationaleRow]:
        """The rows of a split.

        Raises:
            ConfigError: there is no such split.
        """
        self.check_split(split)
        if not self._all:
            config = self.config
            stream = _questions(config)
            most = ToyRationaleConfig.model_fields["dev_rows"].default
            for name, count, drawn in (
                ("dev", config.dev_rows, most),
                ("test", config.test_rows, most),
                ("train", config.pool_rows, config.pool_rows),
            ):  # as many dev and test questions are drawn in any case, so that their number moves no other split
                questions = [next(stream) for _ in range(drawn)][:count]
                self._all[name] = tuple(self._taught(name, questions))
        return self._all[split]

    def _taught(self, split: str, questions: Sequence[_Question]) -> Iterator[RationaleRow]:
        config = self.config
        kind = config.kind
        for number, question in enumerate(questions):
            rng = random.Random(f"{config.seed}/{kind}/{split}/{number}/teacher")
            read = question
            if rng.random() < config.swapped_share:
                read = questions[(number + rng.randrange(1, max(2, len(questions)))) % len(questions)]
            rationale, llm_label = answer(kind, _misread(kind, read.readings, config.misread_share, rng))
            yield RationaleRow(
                id=f"{split}-{number:04d}",
                input=question.text,
                label=answer(kind, question.readings)[1],
                llm_label=llm_label,
                llm_rationale=rationale,
                teacher="toy",
                options=labels(kind),
            )


def vocabulary() -> tuple[str, ...]:
    """All tokens of the toy worlds in the order of their ids: specials, marks, words."""
    words = {word for text in (*_BUYERS, *_JOINS, "and a", "what is the price", "the was so") for word in text.split()}
    words.update(prices(), _GOOD.split(), _BAD.split(), _ASPECTS.split(), ("good", "bad", "positive", "negative"))
    words.update(map(str, range(2 * MAX_PRICE + 1)))
    return (*SPECIALS, *_MARKS, *sorted(words))


def toy_rationale_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of both worlds that puts <bos> in front of a text."""
    words = vocabulary()
    framing = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", words.index("<bos>"))]
    )
    return word_tokenizer(words, pre_tokenizers.WhitespaceSplit(), framing=framing, max_length=128)
