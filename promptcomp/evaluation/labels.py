"""When two labels are the same: the one notion for accuracy, every F1, exact match and the check of data."""

from __future__ import annotations

import unicodedata
from functools import lru_cache


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
