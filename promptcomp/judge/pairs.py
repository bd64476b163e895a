"""Which examples are judged and in which order their answers are shown: pure functions of the texts and the seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from promptcomp.config import ConfigError
from promptcomp.judge.sources import Item, Key, Side


@dataclass(frozen=True, slots=True)
class Pair:
    """One example with both answers."""

    split: str
    example: str
    instruction: str
    input: str
    text_a: str
    text_b: str
    reference: str | None
    context: str

    @property
    def question(self) -> str:
        """What the assistants were asked."""
        return "\n\n".join(part for part in (self.instruction.strip(), self.input.strip()) if part)

    @property
    def identical(self) -> bool:
        """Whether both sides gave the same answer (but for white space at its ends)."""
        return self.text_a.strip() == self.text_b.strip()


@dataclass(frozen=True, slots=True)
class Matched:
    """The pairs, and how many examples had no partner."""

    pairs: tuple[Pair, ...]
    only_a: int
    only_b: int


def match(side_a: Side, side_b: Side, splits: Sequence[str] = ()) -> Matched:
    """Pairs of the examples that both sides have, in the order of side A.

    Args:
        side_a: the side whose win rate is asked for.
        side_b: the other one.
        splits: the only splits to take; empty: all.

    Raises:
        ConfigError: the sides are the same, share no example, have not the same questions, or lack a split.
    """
    if side_a.path.resolve() == side_b.path.resolve() and side_a.row == side_b.row:
        raise ConfigError(
            f"{side_a.name} would be compared with itself; name another run, or another row with --row-a or --row-b"
        )
    for side in (side_a, side_b):
        known = list(dict.fromkeys(split for split, _ in side.items))
        for split in splits:
            if split not in known:
                raise ConfigError(f"{side.path}: no texts for split {split!r}; it has {', '.join(known)}")
    wanted_a = [key for key in side_a.items if not splits or key[0] in splits]
    wanted_b = [key for key in side_b.items if not splits or key[0] in splits]
    shared = [key for key in wanted_a if key in side_b.items]
    if not shared:
        raise ConfigError(f"{side_a.path} and {side_b.path} share no example (split and number)")
    _refuse_other_questions(side_a, side_b, shared)
    pairs = tuple(_pair(key, side_a.items[key], side_b.items[key]) for key in shared)
    return Matched(pairs, len(wanted_a) - len(shared), len(wanted_b) - len(shared))


def choose(pairs: Sequence[Pair], count: int | None, seed: int) -> list[Pair]:
    """`count` pairs of each split, drawn by the seed; a larger count keeps those of a smaller one. None: all."""
    if count is None:
        return list(pairs)
    kept: set[Key] = set()
    for split in dict.fromkeys(pair.split for pair in pairs):
        own = [pair for pair in pairs if pair.split == split]
        own.sort(key=lambda pair: _draw(seed, "choice", pair.split, pair.example))
        kept |= {(pair.split, pair.example) for pair in own[:count]}
    return [pair for pair in pairs if (pair.split, pair.example) in kept]


def is_swapped(seed: int, split: str, example: str) -> bool:
    """Whether side B is shown first: a fair coin that depends on the seed, the split and the example alone."""
    return _draw(seed, "order", split, example)[0] % 2 == 1


def _draw(seed: int, what: str, split: str, example: str) -> bytes:
    return hashlib.sha256(json.dumps([seed, what, split, example]).encode()).digest()


def _pair(key: Key, a: Item, b: Item) -> Pair:
    reference = a.reference if a.reference is not None else b.reference
    return Pair(key[0], key[1], a.instruction, a.input, a.text, b.text, reference, a.context)


def _refuse_other_questions(side_a: Side, side_b: Side, shared: Sequence[Key]) -> None:
    other = [
        key
        for key in shared
        if (side_a.items[key].instruction, side_a.items[key].input)
        != (side_b.items[key].instruction, side_b.items[key].input)
    ]
    if other:
        split, example = other[0]
        raise ConfigError(
            f"{side_a.path} and {side_b.path} were not asked the same: instruction or input differs in {len(other)} of"
            f" {len(shared)} shared examples, first in split {split!r}, example {example};"
            " evaluate both on the same data"
        )
