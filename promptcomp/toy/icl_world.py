"""The toy world: a generator of in-context classification tasks that a 0.4M-parameter LM can really learn.

Words: 24 categories of 12 words, 16 of nouns (animals, tools, countries ...) and 8 of adjectives (joy, warm, small
...). A task draws 2-4 categories of one group and gives each a random label ("foo", "west", "b" ...), so its labels can
be known from demonstrations only:

    about lion today => west
    my hammer is grumpy today => foo

Sentences come from about ten templates a group. A `two_slot_share` of them has a second slot whose word, a distractor,
comes from a random category of the other group. Rows are plain text; the rendering "input => label \\n" belongs to the
datamodule (separator preset `arrow`). Chance without demonstrations is 1 / number of classes: 1/2, 1/3 and 1/4, so
0.361 on average over the default uniform 2-4 classes.

Splits, made of fixed facts and not of a seed (docs/toy_worlds.md says what follows from them):
- 6 whole categories (4 of nouns, 2 of adjectives) are in no train, dev or test task, not even as distractors. The tasks
  of "test_hard" are made of nothing else.
- Every pair of the other categories, within a group, belongs to train, dev or test. A train task of 2-4 classes has
  train pairs only (one of 5 or 6 any pair); a dev (test) task has at least one dev (test) pair, otherwise train pairs.
- The base LM's own tasks of 2-4 classes have no dev, test or test_hard pair ("pretrain" below).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import torch
from tokenizers import Regex, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from promptcomp.config import ConfigError
from promptcomp.datamodules.tasks import Row, Task, TaskSource
from promptcomp.language_model.blending import Blend
from promptcomp.toy.toy_sections import Group, TaskForm, ToyConfig
from promptcomp.toy.words import (
    ADJECTIVE_TEMPLATES,
    ADJECTIVES,
    CATEGORIES,
    LABELS,
    NEWLINE,
    NOUN_TEMPLATES,
    NOUNS,
    SENTINELS,
    TWO_SLOT_TEMPLATES,
    vocabulary,
    word_tokenizer,
)

_TRIES = 10_000
"""Draws of one row before no input is thought to be left."""
HELD_OUT_CATEGORIES: frozenset[str] = frozenset({"clothes", "instruments", "jobs", "weather", "cool", "large"})
_DEV_SHARE, _TEST_SHARE = 0.12, 0.18


@cache
def pair_splits() -> Mapping[frozenset[str], str]:
    """The split of every pair of categories of one group: "train", "dev", "test" or "test_hard".

    A pair of one held-out and one other category is "mixed": it is used in pretraining only. Within a group the pairs
    of the other categories are put in the order of their MD5 sums; the first are test, the next dev, the rest train.
    """
    result: dict[frozenset[str], str] = {}
    for group in (NOUNS, ADJECTIVES):
        open_pairs = []
        for pair in combinations(sorted(group), 2):
            num_held_out = len(HELD_OUT_CATEGORIES & set(pair))
            if num_held_out:
                result[frozenset(pair)] = "test_hard" if num_held_out == 2 else "mixed"
            else:
                open_pairs.append(pair)
        open_pairs.sort(key=lambda pair: hashlib.md5("|".join(pair).encode(), usedforsecurity=False).digest())
        num_test, num_dev = round(_TEST_SHARE * len(open_pairs)), round(_DEV_SHARE * len(open_pairs))
        for i, pair in enumerate(open_pairs):
            result[frozenset(pair)] = "test" if i < num_test else "dev" if i < num_test + num_dev else "train"
    return result


@cache
def class_sets(
    split: str, group: Group, size: int, held_out: frozenset[str] = frozenset()
) -> tuple[tuple[str, ...], ...]:
    """All sets of `size` categories of one group that belong to `split`.

    With other categories `held_out`, "test_hard" has all sets of these, and no other split has one of them.

    "train" has the sets of up to 4 with train pairs only, and all larger sets of open categories: a model that never
    has to tell two categories apart does not learn to. `split` may also be "pretrain", which adds the held-out
    categories in the same way: up to 4 no dev, test or test_hard pair, above any pair.
    """
    allowed = {"dev": {"dev", "train"}, "test": {"test", "train"}, "pretrain": {"train", "mixed"}}.get(split, {split})
    if size > 4 and split in ("train", "pretrain"):
        allowed = allowed | {"dev", "test"} | ({"test_hard"} if split == "pretrain" else set())
    categories = NOUNS if group == "nouns" else ADJECTIVES
    if held_out and split == "test_hard":
        return tuple(combinations(sorted(held_out & set(categories)), size))
    splits = pair_splits()
    found = []
    for names in combinations(sorted(set(categories) - held_out), size):
        pairs = {splits[frozenset(pair)] for pair in combinations(names, 2)}
        if pairs <= allowed and (split in ("train", "pretrain") or split in pairs):
            found.append(names)
    return tuple(found)


def sentence(category: str, word: str, rng: random.Random, two_slot_share: float, distractors: Sequence[str]) -> str:
    """A sentence about `word`; with probability `two_slot_share` it holds a word of one of the `distractors` too.

    Args:
        category: The category of `word`; it decides between noun and adjective templates.
        word: The word that decides the label.
        rng: Source of all choices.
        two_slot_share: Probability of a template with two slots.
        distractors: Categories of the other group.
    """
    is_noun = category in NOUNS
    if distractors and rng.random() < two_slot_share:
        other = rng.choice(CATEGORIES[rng.choice(distractors)])
        noun, adjective = (word, other) if is_noun else (other, word)
        return rng.choice(TWO_SLOT_TEMPLATES).format(noun=noun, adjective=adjective)
    templates = NOUN_TEMPLATES if is_noun else ADJECTIVE_TEMPLATES
    return rng.choice(templates).format(noun=word, adjective=word)


@dataclass(frozen=True)
class ToyRule:
    """What a task asks: a label for each class. `classes` are categories, or tuples of words in a lookup task."""

    classes: tuple[str | tuple[str, ...], ...]
    labels: tuple[str, ...]
    distractors: tuple[str, ...]

    def row(self, index: int, rng: random.Random, two_slot_share: float) -> Row:
        """A row of class number `index`."""
        members = self.classes[index]
        if isinstance(members, tuple):
            text = rng.choice(members)
        else:
            text = sentence(members, rng.choice(CATEGORIES[members]), rng, two_slot_share, self.distractors)
        return Row(text, self.labels[index], self.labels)

    def rows(self, count: int, rng: random.Random, two_slot_share: float, avoid: frozenset[str]) -> tuple[Row, ...]:
        """`count` rows in random order, balanced over the classes, whose inputs are not in `avoid`.

        Raises:
            ConfigError: a class has hardly an input besides these.
        """
        found = []
        for i in range(count):
            drawn = (self.row(i % len(self.classes), rng, two_slot_share) for _ in range(_TRIES))
            row = next((row for row in drawn if row.input not in avoid), None)
            if row is None:
                raise ConfigError(
                    f"data.world.num_demonstrations: hardly an input is left for queries beside {len(avoid)} inputs of "
                    "demonstrations; ask for fewer"
                )
            found.append(row)
        rng.shuffle(found)
        return tuple(found)


def draw_rule(
    rng: random.Random,
    split: str,
    form: TaskForm,
    groups: Sequence[Group],
    num_classes: int,
    others: frozenset[str] = frozenset(),
) -> ToyRule:
    """A random task of a split.

    Args:
        rng: Source of all choices.
        split: A split of the source, or "pretrain" (see `class_sets`).
        form: Form of the task. A lookup task maps one or two single words to each label, an arbitrary task two to six,
            whatever their categories (nothing is told about which categories belong together).
        groups: Groups to choose from. Where a group has no class set so large, smaller sets are used.
        num_classes: Number of classes.
        others: What is held out beside HELD_OUT_CATEGORIES, and "test_hard" made of.
    """
    hard = others or HELD_OUT_CATEGORIES
    known = [c for c in CATEGORIES if split == "pretrain" or c not in HELD_OUT_CATEGORIES | others]
    usable = [c for c in CATEGORIES if c in hard] if split == "test_hard" else known
    labels = tuple(rng.sample(LABELS, num_classes))
    if form in ("lookup", "arbitrary"):
        most = 2 if form == "lookup" else rng.randint(2, 6)
        words = rng.sample([word for c in usable for word in CATEGORIES[c]], most * num_classes)
        width = rng.choice((1, 1, 2)) if form == "lookup" else most
        return ToyRule(tuple(tuple(words[i::num_classes][:width]) for i in range(num_classes)), labels, ())
    group = rng.choice([group for group in groups if class_sets(split, group, 2, others)])
    size = num_classes
    while not class_sets(split, group, size, others):
        size -= 1
    classes = list(rng.choice(class_sets(split, group, size, others)))
    rng.shuffle(classes)
    distractors = tuple(c for c in usable if (c in NOUNS) != (group == "nouns"))
    return ToyRule(tuple(classes), tuple(classes) if form == "natural" else labels[:size], distractors)


class ToySource(TaskSource):
    """Tasks of the toy world; task i of a split is a pure function of (config, split, i)."""

    def __init__(self, config: ToyConfig) -> None:
        """
        Raises:
            ConfigError: a held-out category is unknown or held out anyway, or leaves a split without tasks.
        """
        self.config, held_out = config, frozenset(config.held_out)
        self._ids: dict[str, Tensor] = {}  # of the words of each category, once they are blended
        free = CATEGORIES.keys() - HELD_OUT_CATEGORIES
        for name in config.held_out:
            if name not in free:
                raise ConfigError(f"data.world.held_out: {name!r} is none of {', '.join(sorted(free))}")
        for split in config.splits if held_out else ():
            groups = (config.train_groups if split == "train" else None) or config.groups
            if not any(class_sets(split, group, 2, held_out) for group in groups):
                raise ConfigError(f"data.world.held_out: no two categories are left for the split {split}")

    def draw_blend(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Blend | None:
        """Which words are mixed in one training step; None: none.

        Categories that training knows are paired, with one share of the mixture for each, and so are their words.

        Args:
            tokenizer: Of the words.
            seed: Of the step: the same for all its ranks and parts.

        Raises:
            ConfigError: a word is not one token.
        """
        draws = torch.Generator().manual_seed(seed)
        if not self.config.blended_share or torch.rand((), generator=draws) >= self.config.blended_share:
            return None
        if not self._ids:
            self._ids = {name: _ids_of(tokenizer, words) for name, words in CATEGORIES.items()}
        unknown = HELD_OUT_CATEGORIES.union(self.config.held_out)
        other, share = torch.arange(len(tokenizer)), torch.zeros(len(tokenizer))
        for group in (NOUNS, ADJECTIVES):
            names = [name for name in group if name not in unknown]
            for name, place in zip(names, torch.randperm(len(names), generator=draws).tolist(), strict=True):
                words, others = self._ids[name], self._ids[names[place]]
                other[words] = others[torch.randperm(len(others), generator=draws)]
                share[words] = torch.rand((), generator=draws)
        return Blend(other, share)

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split, built when they are indexed."""
        return self.config.items(split, _task)


def _ids_of(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> Tensor:
    """One token for each word, as in the middle of a line.

    Raises:
        ConfigError: a word is not one token.
    """
    found = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    unknown = [tokenizer.unk_token_id]
    if other := next((w for w, ids in zip(words, found, strict=True) if len(ids) != 1 or ids == unknown), None):
        raise ConfigError(f"data.world.blended_share: {other!r} is not one token of the LM's vocabulary; set it to 0")
    return torch.tensor(found).squeeze(1)


def _task(config: ToyConfig, split: str, index: int) -> Task:
    train = split == "train"
    rng = random.Random(f"{config.seed}/{split}/{index}")  # text seeds do not depend on PYTHONHASHSEED
    groups = config.train_groups if train and config.train_groups is not None else config.groups
    form = rng.choice(config.train_forms) if train else "classification"
    num_classes = rng.randint(config.min_classes, config.train_max_classes if train else config.max_classes)
    rule = draw_rule(rng, split, form, groups, num_classes, frozenset(config.held_out))
    demonstrations = rule.rows(config.num_demonstrations, rng, config.two_slot_share, frozenset())
    shown = frozenset() if form in ("lookup", "arbitrary") else frozenset(row.input for row in demonstrations)
    queries = rule.rows(config.num_queries, rng, config.two_slot_share, shown)
    return Task(f"{split}-{index:06d}-{form}-{len(rule.classes)}", "classification", demonstrations, queries)


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the whole world: one token a word, "\\n" a token of its own, blanks dropped.

    Ids: <pad> 0, <bos> 1, <eos> 2, <unk> 3, "=>" 4, "\\n" 5, then words, then 32 sentinels for encoder-decoder models.
    """
    splitting = [pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"), pre_tokenizers.Split(NEWLINE, "isolated")]
    return word_tokenizer(vocabulary(), pre_tokenizers.Sequence(splitting), extra_special_tokens=list(SENTINELS))
