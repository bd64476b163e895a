"""The toy instruction world: what is held out, right answers, the tokenizer, the recipe and the shipped model."""

import json
import random
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from promptcomp.config import ConfigError, build, read_yaml
from promptcomp.datamodules.tasks import InstructionRow
from promptcomp.toy.answer_lessons import InstructionLessons
from promptcomp.toy.instruction_world import (
    ToyInstructionSource,
    instruction_tokenizer,
    pair_splits,
    pairs_of,
    phrasings,
)
from promptcomp.toy.pretrain_loop import pretrain
from promptcomp.toy.recipe import InstructionCurriculum, PretrainConfig
from promptcomp.toy.toy_sections import ToyConfig, ToyInstructionsConfig, ToyInstructionsData, WorldConfig
from promptcomp.toy.words import (
    FRAMES,
    GROUP_OF,
    SELECTIONS,
    TRANSFORMS,
    expand,
    instruction_vocabulary,
    ordinary,
    reworded,
)

RECIPE = Path(str(files("promptcomp"))) / "experiments" / "pretrain" / "toy_instructions.yaml"
ASSET = Path(str(files("promptcomp"))) / "assets" / "toy_instructions"
OPERATIONS = (*SELECTIONS, *TRANSFORMS)
SOURCE = ToyInstructionSource(ToyInstructionsConfig())


def words_of(texts: Any) -> set[str]:
    return {word for text in texts for word in text.split()}


def meaning(row: InstructionRow) -> tuple[str, str, str]:
    """(frame, selection, transform) of an instruction, found by trying all phrasings at its ends."""
    found = set()
    for part in FRAMES.values():
        for frame in part:
            before, between, after = frame.replace("{transform}", "{selection}").split("{selection}")
            text = row.instruction
            if not (text.startswith(before) and text.endswith(after)):
                continue
            inner = text[len(before) : len(text) - len(after)]
            for selection in SELECTIONS:
                for phrase in (*ordinary(selection), *reworded(selection)):
                    if inner.startswith(phrase + between):
                        rest = inner[len(phrase + between) :]
                        found |= {(frame, selection, t) for t in TRANSFORMS if rest in (*ordinary(t), *reworded(t))}
    assert len({item[1:] for item in found}) == 1, (row, found)
    return found.pop()


def naive(selection: str, transform: str, text: str) -> str:
    words = text.split()
    group = selection.split(" ")[-1]
    kept = []
    for i, word in enumerate(words):
        from_end = len(words) - 1 - i
        keep = {
            "all": True,
            "first": i == 0,
            "last": from_end == 0,
            "first_two": i < 2,
            "last_two": from_end < 2,
            "drop_first": i > 0,
            "drop_last": from_end > 0,
        }.get(selection, (GROUP_OF[word] == group) == selection.startswith("keep"))
        if keep:
            kept.append(word)
    if transform == "reverse":
        kept.reverse()
    pieces = {"double": "W W", "plus": "W plus", "minus": "minus W"}
    answer = " ".join(pieces.get(transform, "W").replace("W", word) for word in kept)
    return {"done": f"{answer} done", "okay": f"okay {answer}"}.get(transform, answer)


def test_patterns_give_all_their_choices() -> None:
    assert expand("(drop|cut) (|only) it") == ("drop it", "drop only it", "cut it", "cut only it")
    for operation in OPERATIONS:
        assert len(ordinary(operation)) >= 20
        assert len(reworded(operation)) == 3
    phrases = [phrase for operation in OPERATIONS for phrase in (*ordinary(operation), *reworded(operation))]
    assert max(Counter(phrases).values()) == 1  # no phrasing means two things


def test_pairs_are_divided_and_every_part_is_trained() -> None:
    assert Counter(pair_splits().values()) == {"train": 105, "unseen": 28, "dev": 14}
    train = pairs_of("train")
    assert set(Counter(selection for selection, _ in train).values()) == {5}
    assert set(Counter(transform for _, transform in train).values()) == {15}


def test_phrasings_are_divided() -> None:
    parts = ("train", "dev", "recombined", "reworded_dev", "reworded")
    train_words = words_of(phrase for operation in OPERATIONS for phrase in phrasings(operation, "train"))
    for operation in OPERATIONS:
        divided = [phrase for part in parts for phrase in phrasings(operation, part)]
        assert sorted(divided) == sorted((*ordinary(operation), *reworded(operation)))
        assert min(len(phrasings(operation, part)) for part in parts) >= 1
        assert words_of(phrasings(operation, "recombined") + phrasings(operation, "dev")) <= train_words
    assert len(words_of(p for op in OPERATIONS for p in phrasings(op, "reworded")) - train_words) > 20


def test_rows_keep_to_their_splits_and_answers_are_right() -> None:
    train_texts = {row.instruction for row in SOURCE.rows("train")[:3000]}
    for split in SOURCE.splits:
        for row in SOURCE.rows(split)[:120]:
            frame, selection, transform = meaning(row)
            assert row.output == naive(selection, transform, row.input)
            part = pair_splits()[selection, transform]
            expected = {"unseen": "dev" if split == "dev" else "unseen"}.get(row.source, "train")
            assert part == expected
            assert 3 <= len(set(row.input.split())) == len(row.input.split()) <= 6
            assert row.output
            if row.source in ("recombined", "reworded", "unseen"):
                assert row.instruction not in train_texts
            assert (frame in FRAMES["train"]) == (row.source != "reworded")
    assert Counter(row.source for row in SOURCE.rows("dev")) == dict.fromkeys(
        ("seen", "unseen", "recombined", "reworded"), 64
    )
    assert {row.source for row in SOURCE.rows("paraphrased")} == {"recombined", "reworded"}


def test_rows_are_pure_functions_of_the_configuration() -> None:
    other = ToyInstructionSource(ToyInstructionsConfig())
    for split in SOURCE.splits:
        assert list(SOURCE.rows(split)[:20]) == [other.rows(split)[i] for i in reversed(range(20))][::-1]
    assert ToyInstructionSource(ToyInstructionsConfig(seed=1)).rows("train")[0] != SOURCE.rows("train")[0]
    with pytest.raises(ConfigError, match="this data has train, dev, seen"):
        SOURCE.rows("human")


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        (ToyInstructionsConfig, {"min_words": 6, "max_words": 4}, "min_words 6 is larger than max_words 4"),
        (ToyConfig, {"min_classes": 3, "max_classes": 2}, "min_classes 3 is larger than max_classes 2"),
        (ToyConfig, {"min_classes": 3, "train_max_classes": 2}, "min_classes 3 is larger than train_max_classes 2"),
    ],
)
def test_no_minimum_above_its_maximum(section: type[WorldConfig], options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(section, options)


def test_fewer_phrasings() -> None:
    source = ToyInstructionSource(ToyInstructionsConfig(phrasings=1))
    assert len({row.instruction for row in source.rows("train")[:4000]}) <= 105 * len(FRAMES["train"])
    with pytest.raises(ValidationError):
        ToyInstructionsConfig(phrasings=0)


def test_tokenizer_covers_everything() -> None:
    tokenizer = instruction_tokenizer()
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(set(instruction_vocabulary())) == len(tokenizer)
    data = ToyInstructionsData()
    for split in SOURCE.splits:
        for row in SOURCE.rows(split)[:200]:
            text = f"{row.instruction} : {row.input} => {row.output}"
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
            lengths = [len(part.split()) for part in (row.instruction, row.input, row.output)]
            assert lengths[0] <= data.max_context_tokens
            assert lengths[1] + 2 <= data.max_query_tokens
            assert lengths[2] + 1 <= data.max_target_tokens


def small_recipe(**changes: Any) -> PretrainConfig:
    tree = read_yaml(RECIPE)
    settings = {**tree["architecture"]["settings"], "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    tree["architecture"] = {**tree["architecture"], "settings": settings}
    stages = [{"name": "copy", "steps": 100, "repetition": 0.9}, {"name": "instructions", "steps": 20}]
    tree["data"] |= {"stages": stages, "report_rows": 8, "skill_rows": 8}
    return build(PretrainConfig, {**tree, "batch_size": 16, "check_every": 1000, **changes})


def run(config: PretrainConfig, folder: Path) -> list[float]:
    losses = []

    def keep(step: int, total: int, numbers: Mapping[str, float]) -> None:
        losses.append(numbers["loss"])

    threads = torch.get_num_threads()
    try:
        assert pretrain(config, folder, keep) == folder
    finally:
        torch.set_num_threads(threads)
    return losses


def test_short_recipe_learns(tmp_path: Path) -> None:
    losses = run(small_recipe(), tmp_path / "base")
    assert len(losses) == 120
    assert sum(losses[90:100]) < sum(losses[:10]) - 10
    recipe = json.loads((tmp_path / "base" / "recipe.json").read_text())
    assert recipe["history"][-1]["stage"] == "instructions"
    assert set(recipe["metrics"]["exact_match"]) == {"dev", "seen", "unseen", "paraphrased"}
    assert run(small_recipe(steps=3), tmp_path / "a") == run(small_recipe(steps=3), tmp_path / "b") == losses[:3]


def test_lessons_hold_no_pair_of_dev_or_unseen() -> None:
    config = build(PretrainConfig, read_yaml(RECIPE)).data
    assert isinstance(config, InstructionCurriculum)
    lessons = InstructionLessons(config, 4, 0)
    for _ in range(200):
        _, selection, transform = meaning(lessons._draw(6))
        assert pair_splits()[selection, transform] == "train"


def test_the_shipped_model_does_what_it_is_told() -> None:
    model = AutoModelForCausalLM.from_pretrained(ASSET).eval()
    tokenizer = AutoTokenizer.from_pretrained(ASSET)
    assert tokenizer.get_vocab() == instruction_tokenizer().get_vocab()
    recipe = json.loads((ASSET / "recipe.json").read_text())
    assert build(PretrainConfig, recipe["config"]) == build(PretrainConfig, read_yaml(RECIPE))
    config = build(PretrainConfig, read_yaml(RECIPE)).data
    assert isinstance(config, InstructionCurriculum)
    lessons = InstructionLessons(config, 32, 0)
    rows = random.Random(0).sample(list(SOURCE.rows("seen")), 64)
    assert lessons.exact_match(model, rows)["seen"] >= 0.9
    row = SOURCE.rows("seen")[0]
    ids = tokenizer(f"<bos> {row.instruction} : {row.input} =>", return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(out, skip_special_tokens=True) == row.output
