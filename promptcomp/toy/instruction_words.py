"""Words and phrasings of the toy instruction world (see `promptcomp.toy.instruction_world`).

A pattern such as "(drop|remove) (|only) the first (word|one)" stands for all its choices: here 2 x 2 x 2 phrasings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Literal

from promptcomp.toy.words import CATEGORIES, SPECIALS

Wording = Literal["train", "dev", "recombined", "ordinary", "reworded_dev", "reworded"]
"""Parts of the phrasings: "ordinary" is made of the three before it, and there are two parts of reworded ones."""

WORD_GROUPS: dict[str, tuple[str, ...]] = {
    **{name: CATEGORIES[name][:10] for name in ("animals", "fruits", "clothes", "tools", "vehicles", "jobs")},
    "colours": CATEGORIES["warm"][:5] + CATEGORIES["cool"][:5],
}
GROUP_OF: dict[str, str] = {word: name for name, words in WORD_GROUPS.items() for word in words}

_TAKE = "(take|give|keep|write|show|pick|choose|return) (|only|just)"
_DROP = "(drop|remove|delete|skip|omit|cut) (|only|just)"
_HAND_OVER = "(take|give|keep|write|show|pick|choose|return)"
_OUT = "(write|show|give|print)"
_THEM = "(them|these|the result|what is left)"
_FIRST, _LAST = (
    "the (first word|first one|opening word|word at the start)",
    "the (last word|last one|final word|word at the end)",
)
_FIRST_TWO = "the (first two words|first two|opening two words|two words at the start)"
_LAST_TWO = "the (last two words|last two|final two words|two words at the end)"
_EACH = "(each|every) (word|one)"

# operation -> ordinary patterns. Their phrasings are divided between training, dev and the paraphrased split.
_SELECTIONS: dict[str, tuple[str, ...]] = {
    "all": (f"{_HAND_OVER} (all the words|every word|each word|the whole list|all of it|the full list)",),
    "first": (f"{_TAKE} {_FIRST}",),
    "last": (f"{_TAKE} {_LAST}",),
    "first_two": (f"{_TAKE} {_FIRST_TWO}",),
    "last_two": (f"{_TAKE} {_LAST_TWO}",),
    "drop_first": (f"{_DROP} {_FIRST}",),
    "drop_last": (f"{_DROP} {_LAST}",),
}
_KEEP_GROUP = (f"{_TAKE} (the|all the|any) GROUP",)
_DROP_GROUP = (f"{_DROP} (the|all the|any) GROUP",)
_TRANSFORMS: dict[str, tuple[str, ...]] = {
    "same": (f"{_OUT} {_THEM} (|as is|unchanged)", f"copy {_THEM} (|as is|unchanged)"),
    "reverse": (
        "(reverse|flip|turn around) (them|the list|the order|the result)",
        f"{_OUT} {_THEM} (backwards|in reverse|in reverse order|from back to front)",
    ),
    "double": (f"(write|say|show|give|print) {_EACH} (twice|two times)", f"(double|repeat) {_EACH}"),
    "plus": (f"(put|add|write|place|set) a plus (after|behind) {_EACH}",),
    "minus": (f"(put|add|write|place|set) a minus (before|in front of) {_EACH}",),
    "done": (
        "(finish|end|close|stop) with done",
        "(say|write|put|add|print) done (at the end|last|as the last word|as the final word)",
    ),
    "okay": (
        "(begin|start|open) with okay",
        "(say|write|put|add|print) okay (at the start|first|as the first word|as the opening word)",
    ),
}
# operation -> reworded: other constructions, the first for dev, the rest for the paraphrased split.
_REWORDED: dict[str, tuple[str, ...]] = {
    "all": ("work with the complete list", "leave nothing out", "use everything you see"),
    "first": (
        "find whatever the list begins with",
        "we need the front word and nothing else",
        "ignore everything behind the first",
    ),
    "last": (
        "find whatever the list ends with",
        "we need the rear word and nothing else",
        "ignore everything ahead of the last",
    ),
    "first_two": (
        "find both words that the list begins with",
        "we need the front two and nothing else",
        "ignore everything behind the second",
    ),
    "last_two": (
        "find both words that the list ends with",
        "we need the rear two and nothing else",
        "ignore everything ahead of the last but one",
    ),
    "drop_first": (
        "lose whatever the list begins with",
        "go on without the front word",
        "use everything behind the first",
    ),
    "drop_last": (
        "lose whatever the list ends with",
        "go on without the rear word",
        "use everything ahead of the last",
    ),
    "keep": ("find whatever is one of the GROUP", "we need GROUP and nothing else", "ignore everything but GROUP"),
    "drop": ("lose whatever is one of the GROUP", "go on without GROUP", "use everything but GROUP"),
    "same": ("change nothing about that", "let it be like that", "that will do"),
    "reverse": ("run through that the wrong way round", "let the rear become the front", "go from right to left"),
    "double": ("make two of every single item", "let all items come in pairs", "utter items a second time"),
    "plus": ("make a plus come next to every single item", "let a plus follow all items", "attach plus to items"),
    "minus": ("make a minus come ahead of every single item", "let a minus lead all items in", "prefix items by minus"),
    "done": ("make done the closing remark", "let done come when all is over", "conclude by done"),
    "okay": ("make okay the opening remark", "let okay come ahead of all that", "introduce by okay"),
}
FRAMES: dict[Wording, tuple[str, ...]] = {
    "train": (
        "{selection} and {transform}",
        "{selection} then {transform}",
        "{selection} and then {transform}",
        "please {selection} and {transform}",
        "now {selection} and {transform} please",
        "for this list {selection} then {transform}",
    ),
    "reworded_dev": ("could you {selection} and also {transform}",),
    "reworded": ("{selection} and afterwards {transform}", "your task is this , {selection} , {transform}"),
}
SEPARATOR, ANSWER = ":", "=>"
ADDED_WORDS: tuple[str, ...] = ("plus", "minus", "done", "okay")
SELECTIONS: tuple[str, ...] = (
    *_SELECTIONS,
    *(f"keep {group}" for group in WORD_GROUPS),
    *(f"drop {group}" for group in WORD_GROUPS),
)
TRANSFORMS: tuple[str, ...] = tuple(_TRANSFORMS)


def expand(pattern: str) -> tuple[str, ...]:
    """All phrasings of a pattern, in the order of its choices."""
    pieces = [piece.split("|") for piece in re.split(r"[()]", pattern)]
    return tuple(" ".join("".join(choice).split()) for choice in product(*pieces))


@cache
def ordinary(operation: str) -> tuple[str, ...]:
    """All ordinary phrasings of a selection ("first", "keep animals" ...) or a transform."""
    kind, _, group = operation.partition(" ")
    patterns: Mapping[str, tuple[str, ...]] = {**_SELECTIONS, **_TRANSFORMS, "keep": _KEEP_GROUP, "drop": _DROP_GROUP}
    return tuple(phrase.replace("GROUP", group) for pattern in patterns[kind] for phrase in expand(pattern))


@cache
def reworded(operation: str) -> tuple[str, ...]:
    """All reworded phrasings of an operation; the first is for dev."""
    kind, _, group = operation.partition(" ")
    return tuple(phrase.replace("GROUP", group) for phrase in _REWORDED[kind])


def instruction_vocabulary() -> tuple[str, ...]:
    """All tokens in the order of their ids: specials, ":", "=>", the words sorted."""
    phrasings = [p for op in (*SELECTIONS, *TRANSFORMS) for p in (*ordinary(op), *reworded(op))]
    frames = [re.sub(r"\{\w+\}", "", frame) for part in FRAMES.values() for frame in part]
    words = {word for phrase in (*phrasings, *frames) for word in phrase.split()}
    words.update(ADDED_WORDS, WORD_GROUPS, GROUP_OF)
    return (*SPECIALS, SEPARATOR, ANSWER, *sorted(words - {SEPARATOR, ANSWER}))
