"""The toy world: determinism, the partition, balance and the tokenizer."""

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import AutoTokenizer

from promptcomp.config import ConfigError
from promptcomp.datamodules.tasks import Task
from promptcomp.language_model.blending import blended
from promptcomp.language_model.lm_config import locate
from promptcomp.toy.icl_world import HELD_OUT_CATEGORIES, ToySource, class_sets, pair_splits, toy_tokenizer
from promptcomp.toy.toy_sections import ToyConfig
from promptcomp.toy.words import (
    ADJECTIVE_TEMPLATES,
    ADJECTIVES,
    CATEGORIES,
    LABELS,
    NOUN_TEMPLATES,
    NOUNS,
    TWO_SLOT_TEMPLATES,
    vocabulary,
)

CATEGORY_OF = {word: name for name, words in CATEGORIES.items() for word in words}
SMALL = ToyConfig(num_train_tasks=60, num_dev_tasks=40, num_test_tasks=60)


def words_of(task: Task) -> set[str]:
    return {word for row in (*task.demonstrations, *task.queries) for word in row.input.split() if word in CATEGORY_OF}


def class_set(task: Task) -> frozenset[str]:
    """Categories of a task's answers: the group whose words appear in every row."""
    rows = [{CATEGORY_OF[w] for w in row.input.split() if w in CATEGORY_OF} for row in task.demonstrations]
    for group in (NOUNS, ADJECTIVES):
        if all(row & set(group) for row in rows):
            return frozenset(name for row in rows for name in row & set(group))
    raise AssertionError(task.name)


def test_words_have_one_meaning() -> None:
    templates = " ".join(NOUN_TEMPLATES + ADJECTIVE_TEMPLATES + TWO_SLOT_TEMPLATES).split()
    parts = [set(CATEGORY_OF), set(LABELS), set(CATEGORIES), set(templates)]
    assert sum(len(words) for words in CATEGORIES.values()) == len(CATEGORY_OF) == 288
    for a, b in combinations(parts, 2):
        assert not a & b
    assert len(vocabulary()) == len(set(vocabulary()))


def test_tasks_are_pure_functions_of_the_configuration() -> None:
    one, other = ToySource(SMALL), ToySource(SMALL)
    for split in one.splits:
        backwards = [other.tasks(split)[i] for i in reversed(range(20))][::-1]
        assert list(one.tasks(split)[:20]) == backwards
    assert ToySource(ToyConfig(seed=1)).tasks("train")[0] != one.tasks("train")[0]


def test_a_task_does_not_change_between_releases() -> None:
    row = ToySource(ToyConfig()).tasks("test")[3].demonstrations[0]
    assert (row.input, row.output, row.options) == ("slight and ray", "east", ("b", "d", "east"))


def test_every_pair_belongs_to_one_split() -> None:
    counts = Counter(pair_splits().values())
    assert counts == {"train": 56, "test": 15, "dev": 10, "test_hard": 7, "mixed": 60}
    assert sum(counts.values()) == 16 * 15 // 2 + 8 * 7 // 2


@pytest.mark.parametrize("split", ["dev", "test", "test_hard"])
def test_held_out_sets_are_in_no_training_set(split: str) -> None:
    for group in ("nouns", "adjectives"):
        seen = [set(c) for kind in ("train", "pretrain") for size in (2, 3, 4) for c in class_sets(kind, group, size)]
        for size in (2, 3, 4):
            for names in class_sets(split, group, size):
                assert not any(set(names) <= known for known in seen)


def test_splits_hold_the_categories_they_should() -> None:
    source = ToySource(SMALL)
    for split in source.splits:
        for task in source.tasks(split):
            used = {CATEGORY_OF[word] for word in words_of(task)}
            if split == "test_hard":
                assert used <= HELD_OUT_CATEGORIES
            else:
                assert not used & HELD_OUT_CATEGORIES
            pairs = {pair_splits()[frozenset(pair)] for pair in combinations(class_set(task), 2)}
            if split != "train" or len(class_set(task)) <= 4:
                assert split in pairs
                assert pairs <= {split, "train"}


def test_other_categories_may_be_held_out() -> None:
    others = ("birds", "drinks", "fear", "small")
    source = ToySource(SMALL.model_copy(update={"held_out": others}))
    for split in source.splits:
        for task in source.tasks(split):
            used = {CATEGORY_OF[word] for word in words_of(task)}
            assert used <= set(others) if split == "test_hard" else not used & (HELD_OUT_CATEGORIES | set(others))
    with pytest.raises(ConfigError, match="'jobs' is none of anger, animals, "):
        ToySource(ToyConfig(held_out=("jobs",)))
    with pytest.raises(ConfigError, match="no two categories are left for the split test_hard"):
        ToySource(ToyConfig(held_out=("birds", "small")))


def test_words_are_blended_within_what_training_knows() -> None:
    tokenizer = toy_tokenizer()
    assert ToySource(ToyConfig()).draw_blend(tokenizer, 0) is None
    source = ToySource(ToyConfig(blended_share=0.5, held_out=("birds", "drinks")))
    drawn = [source.draw_blend(tokenizer, seed) for seed in range(40)]
    assert 10 < sum(each is not None for each in drawn) < 30
    torch.manual_seed(1)  # of a micro-batch or a rank: the blend is that of the step
    assert [each is None or each.share.sum().item() for each in drawn] == [
        each is None or each.share.sum().item() for each in (source.draw_blend(tokenizer, seed) for seed in range(40))
    ]
    blend = next(each for each in drawn if each is not None)
    group_of = {word: name in NOUNS for name, words in CATEGORIES.items() for word in words}
    changed = blend.share.nonzero().squeeze(1).tolist()
    assert len(changed) == 12 * (24 - len(HELD_OUT_CATEGORIES) - 2)
    pairs: dict[str, set[str]] = {}
    for number in changed:
        word, other = tokenizer.convert_ids_to_tokens([number, int(blend.other[number])])
        assert not {CATEGORY_OF[word], CATEGORY_OF[other]} & {*HELD_OUT_CATEGORIES, "birds", "drinks"}
        assert group_of[word] == group_of[other]
        pairs.setdefault(CATEGORY_OF[word], set()).add(CATEGORY_OF[other])
    assert {len(others) for others in pairs.values()} == {1}  # a category is mixed with one other
    table = nn.Embedding(len(tokenizer), 4)
    one, share = changed[0], float(blend.share[changed[0]])
    with blended([table], blend):
        found = table(torch.tensor([[one, 0]]))[0]
    mixed = (1 - share) * table.weight[one] + share * table.weight[blend.other[one]]
    torch.testing.assert_close(found[0], mixed / (share**2 + (1 - share) ** 2) ** 0.5)
    assert torch.equal(found[1], table.weight[0])
    assert torch.equal(table(torch.tensor([one]))[0], table.weight[one])
    with pytest.raises(ConfigError, match="is not one token of the LM's vocabulary"):
        ToySource(ToyConfig(blended_share=1.0)).draw_blend(
            AutoTokenizer.from_pretrained(locate("builtin:toy_instructions")), 0
        )


def test_a_strict_train_split_has_train_pairs_only() -> None:
    for task in ToySource(ToyConfig(train_max_classes=4)).tasks("train")[:200]:
        assert {pair_splits()[frozenset(pair)] for pair in combinations(class_set(task), 2)} == {"train"}


def test_rows_are_balanced_and_their_options_hold_the_output() -> None:
    source = ToySource(SMALL)
    sizes = Counter()
    for split in source.splits:
        for task in source.tasks(split):
            assert (len(task.demonstrations), len(task.queries)) == (24, 16)
            for rows in (task.demonstrations, task.queries):
                assert all(row.output in row.options for row in rows)
                counts = Counter(row.output for row in rows)
                assert max(counts.values()) - min(counts.values()) <= 1
                assert set(counts) == set(rows[0].options)
            assert not {row.input for row in task.demonstrations} & {row.input for row in task.queries}
            sizes[split, len(task.demonstrations[0].options)] += 1
    assert {size for split, size in sizes if split == "train"} == {2, 3, 4, 5, 6}
    assert {size for split, size in sizes if split != "train"} == {2, 3, 4}


def test_forms_and_groups_of_training_tasks() -> None:
    source = ToySource(ToyConfig(train_forms=("natural", "lookup"), train_groups=("nouns",)))
    natural = [task for task in source.tasks("train")[:40] if "natural" in task.name]
    assert 5 < len(natural) < 35
    assert all(set(task.demonstrations[0].options) <= set(NOUNS) for task in natural)
    assert all("classification" in task.name for task in source.tasks("test")[:5])
    for form, most in (("lookup", 2), ("arbitrary", 6)):
        for task in ToySource(ToyConfig(train_forms=(form,))).tasks("train")[:20]:
            labels: dict[str, set[str]] = {}
            for row in (*task.demonstrations, *task.queries):
                assert CATEGORY_OF[row.input] not in HELD_OUT_CATEGORIES
                labels.setdefault(row.input, set()).add(row.output)
            assert all(len(outputs) == 1 for outputs in labels.values())
            assert len(labels) <= most * len(task.demonstrations[0].options)


def test_distractors_follow_their_share() -> None:
    for share, low, high in ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.3, 0.2, 0.4)):
        tasks = ToySource(ToyConfig(two_slot_share=share)).tasks("test")[:20]
        rows = [row for task in tasks for row in task.demonstrations]
        two = sum(sum(word in CATEGORY_OF for word in row.input.split()) == 2 for row in rows) / len(rows)
        assert low <= two <= high


def test_unknown_splits_indices_and_ranges_are_refused() -> None:
    source = ToySource(SMALL)
    with pytest.raises(ValueError, match="split 'valid' is unknown"):
        source.tasks("valid")
    with pytest.raises(IndexError):
        source.tasks("dev")[40]
    with pytest.raises(ValidationError, match="min_classes 4 is larger"):
        ToyConfig(min_classes=4, max_classes=3)


def test_tokenizer_round_trip(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer()
    text = "about lion today => foo \n my hammer is grumpy today => west \n"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids
    assert len(ids) == 14
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer("=>\n").input_ids == tokenizer(" => \n").input_ids == [4, 5]
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == ids
    assert len(tokenizer) == len(vocabulary())


def test_every_sentence_is_in_the_vocabulary() -> None:
    tokenizer = toy_tokenizer()
    for split in ToySource(SMALL).splits:
        for task in ToySource(SMALL).tasks(split)[:10]:
            for row in task.demonstrations:
                assert tokenizer.unk_token_id not in tokenizer(f"{row.input} => {row.output} \n").input_ids
