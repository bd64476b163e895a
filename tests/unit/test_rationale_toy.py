"""The toy rationale worlds, and a student that starts from random weights."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from promptcomp.config import ConfigError
from promptcomp.evaluation.texts import value_of
from promptcomp.language_model import LanguageModel, LanguageModelConfig
from promptcomp.language_model.lm_config import FromScratch, PositionalStart
from promptcomp.lightning_modules.controls import MetaICL
from promptcomp.lightning_modules.controls_config import MetaICLConfig
from promptcomp.lightning_modules.method_config import OptimConfig
from promptcomp.toy.rationale_world import (
    ToyRationaleSource,
    labels,
    prices,
    toy_rationale_tokenizer,
    vocabulary,
)
from promptcomp.toy.toy_sections import ToyRationaleConfig

SMALL = {"pool_rows": 200, "dev_rows": 50, "test_rows": 50}


def _source(**options: Any) -> ToyRationaleSource:
    return ToyRationaleSource(ToyRationaleConfig(**{**SMALL, **options}))


@pytest.mark.parametrize("kind", ["cost", "reviews"])
def test_splits_are_disjoint_and_in_the_vocabulary(kind: Any) -> None:
    source = _source(kind=kind)
    known = set(vocabulary())
    keys = {}
    for split in source.splits:
        rows = source.rows(split)
        keys[split] = {tuple(sorted(row.input.split())) for row in rows}
        for row in rows:
            assert set(f"{row.input} {row.label} {row.llm_rationale}".split()) <= known
            assert row.label in row.options == labels(kind)
            assert row.label == row.llm_label
    assert [len(source.rows(split)) for split in source.splits] == [200, 50, 50]
    assert not keys["train"] & (keys["dev"] | keys["test"])
    assert not keys["dev"] & keys["test"]


def test_a_larger_pool_begins_with_the_smaller_one_and_moves_no_other_split() -> None:
    small, large = _source(), _source(pool_rows=300, dev_rows=60)
    assert large.rows("train")[:200] == small.rows("train")
    assert large.rows("test") == small.rows("test")
    assert large.rows("dev")[:50] == small.rows("dev")


def test_the_price_is_what_the_rationale_says() -> None:
    for row in _source().rows("train")[:20]:
        goods = [word for word in row.input.split() if word in prices()]
        left, _, right = row.llm_rationale.partition(" = ")
        assert [int(number) for number in left.split(" + ")] == [prices()[word] for word in goods]
        assert value_of(left) == int(right) == int(row.label)


def test_a_misreading_teacher_follows_its_misreading() -> None:
    rows = _source(misread_share=0.2).rows("train")
    wrong = [row for row in rows if row.llm_label != row.label]
    assert 20 < len(wrong) < 120
    assert all(row.llm_rationale.endswith(f"= {row.llm_label}") for row in rows)
    assert [row.label for row in rows] == [row.label for row in _source().rows("train")]


def test_a_swapped_row_has_the_work_of_another_question() -> None:
    clean, rows = _source().rows("train"), _source(swapped_share=0.3).rows("train")
    changed = sum(a.llm_rationale != b.llm_rationale for a, b in zip(clean, rows, strict=True))
    assert 30 < changed < 80
    assert {row.llm_rationale for row in rows} <= {row.llm_rationale for row in clean}


def test_unknown_split() -> None:
    with pytest.raises(ConfigError, match="this data has train, dev, test"):
        _source().rows("valid")


def test_the_shipped_tokenizer_is_that_of_the_worlds() -> None:
    shipped = LanguageModel.from_config(_student()).tokenizer
    made = toy_rationale_tokenizer()
    assert shipped is not None
    text = "i buy a robin and a saw , what is the price ? predict: 7"
    assert shipped(text)["input_ids"] == made(text)["input_ids"]
    assert shipped.get_vocab() == made.get_vocab()
    config = json.loads((resources.files("promptcomp") / "assets/toy_student/config.json").read_text())
    assert config["vocab_size"] == len(vocabulary())


# ---- students from scratch


def _student(**options: Any) -> LanguageModelConfig:
    return LanguageModelConfig(path="builtin:toy_student", from_scratch=FromScratch(**options))


def test_a_student_follows_the_runs_seed() -> None:
    def start(seed: int) -> torch.Tensor:
        module = MetaICL(MetaICLConfig(), _student(), OptimConfig(), max_steps=1, seed=seed)
        torch.manual_seed(99 + seed)  # whatever was drawn before
        module.configure_model()
        return module.lm.embed(torch.arange(9)).detach()

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


def test_settings_change_the_architecture() -> None:
    lm = LanguageModel.from_config(_student(settings={"hidden_size": 32, "num_attention_heads": 2}))
    assert (lm.hidden_size, lm.num_layers, lm.hf.config.num_key_value_heads, lm.hf.config.head_dim) == (32, 2, 2, 16)
    shapes = LanguageModel.skeleton(_student(settings={"num_hidden_layers": 5}))
    assert shapes.num_layers == 5


def test_positional_start() -> None:
    lm = LanguageModel.from_config(_student(positional_start=PositionalStart()))
    bias = lm.hf.model.layers[0].self_attn.q_proj.bias
    assert bias[:48].abs().max() > 1
    assert bias[48:].abs().max() == 0
    heads = lm.hf.config.num_key_value_heads
    with pytest.raises(ConfigError, match=f"positional_start.offsets: {heads + 1} numbers.* give at most {heads}"):
        LanguageModel.from_config(_student(positional_start=PositionalStart(offsets=(1,) * (heads + 1))))
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        PositionalStart(peak=-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"hiddn_size": 32}, "did you mean 'hidden_size'"), ({"num_attention_heads": 7}, "not a valid architecture")],
)
def test_wrong_settings_are_told(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LanguageModel.from_config(_student(settings=settings))


def test_a_model_without_weights_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="from_scratch"):
        LanguageModel.from_config(LanguageModelConfig(path="builtin:toy_student"))
