"""The toy instruction world: small list-editing tasks said in many ways, which a 0.3M-parameter LM can learn.

An instruction joins a selection (21: all, the first, all but the last, only the animals ...) and a transform (7: as is,
reversed, each twice, plus after each, minus before each, done at the end, okay at the start). The input is a list of
3-6 words, the output what the instruction makes of it:

    keep only the fruits and write them backwards : cat plum red pear  =>  pear plum

What is held out, by fixed facts and not by a seed (numbers of each part: docs/toy_worlds.md):
- Pairs (selection, transform): for training, dev or "unseen". Every selection and every transform is in training pairs.
- Ordinary phrasings of an operation (verb x object x ...), by their MD5 sums: for training, dev or "recombined".
- Three "reworded" phrasings of every operation: constructions and words that training never has, with sentence frames
  of their own; one of them is for dev.

Splits ("source" of a row names its part): train; seen (training pairs and phrasings, other draws); unseen (unseen pairs
in training phrasings); paraphrased (training pairs, recombined or reworded); dev, a quarter each of these four with
pairs and phrasings of its own. The base LM has read all phrasings, but training pairs only.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from promptcomp.datamodules.tasks import InstructionRow, InstructionSource
from promptcomp.toy.toy_sections import ToyInstructionsConfig
from promptcomp.toy.words import (
    FRAMES,
    GROUP_OF,
    SELECTIONS,
    TRANSFORMS,
    WORD_GROUPS,
    Wording,
    instruction_vocabulary,
    ordinary,
    reworded,
    word_tokenizer,
)

Pair = tuple[str, str]
"""(selection, transform)."""
PairSplit = Literal["train", "dev", "unseen"]

_DEV_SHARE, _RECOMBINED_SHARE = 0.1, 0.2
_UNSEEN_PER_TRANSFORM, _DEV_PER_TRANSFORM = 4, 2


def _by_md5(items: Sequence[str]) -> list[str]:
    return sorted(items, key=lambda item: hashlib.md5(item.encode(), usedforsecurity=False).digest())


@cache
def pair_splits() -> Mapping[Pair, PairSplit]:
    """The part of every (selection, transform) pair.

    Each transform gives 4 pairs to "unseen" and 2 to dev; each selection gives 2 of its 7.
    """
    result: dict[Pair, PairSplit] = {(s, t): "train" for s in SELECTIONS for t in TRANSFORMS}
    given = dict.fromkeys(SELECTIONS, 0)
    for transform in TRANSFORMS:
        order = _by_md5([f"{selection}|{transform}" for selection in SELECTIONS])
        order.sort(key=lambda item: given[item.split("|")[0]])  # stable: selections that gave least come first
        for i, item in enumerate(order[: _UNSEEN_PER_TRANSFORM + _DEV_PER_TRANSFORM]):
            selection = item.split("|")[0]
            given[selection] += 1
            result[selection, transform] = "unseen" if i < _UNSEEN_PER_TRANSFORM else "dev"
    return result


@cache
def pairs_of(split: PairSplit) -> tuple[Pair, ...]:
    """All pairs of a part."""
    return tuple(pair for pair, part in pair_splits().items() if part == split)


@cache
def phrasings(operation: str, wording: Wording) -> tuple[str, ...]:
    """The phrasings of a selection or transform that belong to a part, in a fixed mixed order."""
    if wording == "reworded_dev":
        return reworded(operation)[:1]
    if wording == "reworded":
        return reworded(operation)[1:]
    if wording == "ordinary":
        return ordinary(operation)
    found = _by_md5(ordinary(operation))
    num_dev = max(1, round(_DEV_SHARE * len(found)))
    num_recombined = max(1, round(_RECOMBINED_SHARE * len(found)))
    parts = {
        "dev": found[:num_dev],
        "recombined": found[num_dev : num_dev + num_recombined],
        "train": found[num_dev + num_recombined :],
    }
    return tuple(parts[wording])


def perform(pair: Pair, words: Sequence[str]) -> list[str]:
    """The output words of an instruction for the input `words`."""
    return _transform(pair[1], _select(pair[0], list(words)))


def _select(selection: str, words: list[str]) -> list[str]:
    kind, _, group = selection.partition(" ")
    if kind == "keep":
        return [word for word in words if GROUP_OF[word] == group]
    if kind == "drop":
        return [word for word in words if GROUP_OF[word] != group]
    parts = {
        "all": words,
        "first": words[:1],
        "last": words[-1:],
        "first_two": words[:2],
        "last_two": words[-2:],
        "drop_first": words[1:],
        "drop_last": words[:-1],
    }
    return parts[kind]


def _transform(transform: str, words: list[str]) -> list[str]:
    if transform == "reverse":
        return words[::-1]
    around = {"double": "{0} {0}", "plus": "{0} plus", "minus": "minus {0}"}.get(transform, "{0}")
    found = " ".join(around.format(word) for word in words).split()
    return [*["okay"][: transform == "okay"], *found, *["done"][: transform == "done"]]


def draw_words(selection: str, rng: random.Random, fewest: int, most: int) -> list[str]:
    """Different input words in random order; one or two of the group that a "keep" or "drop" selection names."""
    count = rng.randint(fewest, most)
    group = selection.partition(" ")[2]
    if not group:
        return rng.sample(list(GROUP_OF), count)
    inside = rng.randint(1, 2)
    others = [word for word, name in GROUP_OF.items() if name != group]
    words = rng.sample(WORD_GROUPS[group], inside) + rng.sample(others, count - inside)
    rng.shuffle(words)
    return words


def draw_instruction(pair: Pair, wording: Wording, rng: random.Random, limit: int | None = None) -> str:
    """An instruction for `pair`; ordinary wordings share the training frames. `limit`: phrasings per operation."""
    selection, transform = (rng.choice(phrasings(operation, wording)[:limit]) for operation in pair)
    frame = rng.choice(FRAMES[wording if wording in ("reworded", "reworded_dev") else "train"])
    return frame.format(selection=selection, transform=transform)


class ToyInstructionSource(InstructionSource):
    """Rows of the toy instruction world; row i of a split is a pure function of (config, split, i)."""

    def __init__(self, config: ToyInstructionsConfig) -> None:
        self.config = config

    def rows(self, split: str) -> Sequence[InstructionRow]:
        """The rows of a split, built when they are indexed."""
        return self.config.items(split, _row)


def _row(config: ToyInstructionsConfig, split: str, index: int) -> InstructionRow:
    rng = random.Random(f"{config.seed}/instructions/{split}/{index}")
    part, pair_split, wording = _part(split, index, rng, config.reworded_share)
    pair = rng.choice(pairs_of(pair_split))
    instruction = draw_instruction(pair, wording, rng, config.phrasings if wording == "train" else None)
    words = draw_words(pair[0], rng, config.min_words, config.max_words)
    return InstructionRow(instruction, " ".join(words), " ".join(perform(pair, words)), part)


def _part(split: str, index: int, rng: random.Random, reworded_share: float) -> tuple[str, PairSplit, Wording]:
    """Name, pairs and wording of a row."""
    if split == "paraphrased":
        name: Literal["reworded", "recombined"] = "reworded" if rng.random() < reworded_share else "recombined"
        return name, "train", name
    dev: tuple[tuple[str, PairSplit, Wording], ...] = (
        ("seen", "train", "train"),
        ("unseen", "dev", "train"),
        ("recombined", "train", "dev"),
        ("reworded", "train", "reworded_dev"),
    )
    return dev[index % 4] if split == "dev" else (split, "unseen" if split == "unseen" else "train", "train")


def instruction_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; text is split at spaces. Ids: <pad> 0, <bos> 1, <eos> 2, <unk> 3."""
    return word_tokenizer(instruction_vocabulary(), pre_tokenizers.WhitespaceSplit())
