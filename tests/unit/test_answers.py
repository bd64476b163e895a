"""Answers in an evaluation pass: those of a plain greedy loop, whatever the batches; limits; what is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from promptcomp.batch import EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.datamodules.instruction.instruction_config import InstructionConfig
from promptcomp.datamodules.instruction.instruction_module import InstructionDataModule
from promptcomp.datamodules.sections import Reader
from promptcomp.datamodules.tasks import InstructionRow, InstructionSource
from promptcomp.experiment import EvaluationConfig
from promptcomp.language_model import LanguageModel
from promptcomp.lightning_modules import METHODS, OptimConfig
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.run.assess import Assessment, answers_for, assess, example_of_query, measure, room
from tests.tiny_models import save_tokenizer, tiny_hf, tiny_lm

OPTIONS = {"bounds": True, "max_new_tokens": 5, "bootstrap_resamples": 100, "measure_cost": False}


class Source(InstructionSource):
    """Instructions of several lengths; every second row shares its instruction with the one before."""

    splits = ("seen",)

    def rows(self, split: str) -> Sequence[InstructionRow]:
        return [
            InstructionRow(
                " ".join(f"w{3 + (5 * (i // 2) + j) % 60}" for j in range(3 + i // 2)), f"w{9 + i} w7", f"w{i} w{i + 1}"
            )
            for i in range(6)
        ]


def datamodule(folder: Path, **options) -> InstructionDataModule:
    save_tokenizer(folder)
    section = InstructionConfig(max_context_tokens=32, max_query_tokens=16, max_target_tokens=16, **options)
    return InstructionDataModule(section, Source(), Reader(AutoTokenizer.from_pretrained(folder), 0, 2))


def module(lm: LanguageModel, **method) -> CompressionModule:
    spec = METHODS[method["name"]]
    made = spec(**method).module(lm, OptimConfig(), max_steps=1, seed=0)
    made.configure_model()
    return made.eval()


def assessed(folder: Path, lm: LanguageModel, method: dict, config: dict | None = None, **options) -> Assessment:
    data = datamodule(folder, **options)
    return assess(module(lm, **method), data, "seen", EvaluationConfig(**(OPTIONS | (config or {}))))


def test_answers_are_those_of_a_plain_greedy_loop(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    data = datamodule(tmp_path)
    found = assessed(tmp_path, lm, {"name": "full_prompt"}).predictions
    assert [p.texts["method"] for p in found] == [p.texts["full_prompt"] for p in found]
    for prediction, row in zip(found, Source().rows("seen"), strict=True):
        assert (prediction.instruction, prediction.input, prediction.reference) == (
            row.instruction, row.input, row.output,
        )  # fmt: skip
        encoded = data.encode("seen", [row], [0])
        for name, ids in (
            ("full_prompt", [*encoded.ids, *encoded.queries[0].ids]),
            ("no_prompt", encoded.queries[0].ids),
        ):
            sequence = list(ids)
            for _ in range(5):
                with torch.no_grad():
                    sequence.append(int(lm.hf(torch.tensor([sequence])).logits[0, -1].argmax()))
            assert prediction.texts[name] == data.tokenizer.decode(sequence[len(ids) :], skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5_query_in_encoder", "t5_query_in_decoder"])
def test_answers_do_not_depend_on_the_batches(tmp_path: Path, kind: str) -> None:
    lm = tiny_lm(kind)
    method = {"name": "gist", "num_slots": 2, "train": "none"}
    large = assessed(tmp_path, lm, method)
    small = assessed(tmp_path, lm, method, eval_batch_contexts=1, eval_batch_targets=1)
    assert [p.texts for p in large.predictions] == [p.texts for p in small.predictions]
    assert large.result.metric == "rougeL"
    assert large.result.generated == 6
    assert large.result.num_contexts == 3
    assert set(large.result.rows["method"]) >= {"exact_match", "rouge1", "rougeLsum", "agreement", "loss"}


def test_near_the_window_an_answer_is_as_long_as_alone(tmp_path: Path) -> None:
    lm, method = LanguageModel.from_parts(tiny_hf("gpt2")), {"name": "full_prompt"}  # 128 positions
    found = [
        assessed(tmp_path, lm, method, {"max_new_tokens": 128}, eval_batch_contexts=contexts).predictions
        for contexts in (3, 1)
    ]
    texts = [[p.texts["method"] for p in predictions] for predictions in found]
    assert texts[0] == texts[1]
    assert len({len(text.split()) for text in texts[0]}) > 1


class Uneven(Source):
    """The last of three instructions, the longest, has one question."""

    def rows(self, split: str) -> Sequence[InstructionRow]:
        return super().rows(split)[:5]


def test_a_context_counts_once_in_however_many_batches_it_is(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    reader = Reader(AutoTokenizer.from_pretrained(tmp_path), 0, 2)
    rivals = [{"name": "truncate", "slots": 4}, {"name": "quantize"}]
    config, found = EvaluationConfig(**OPTIONS, rivals=rivals), []
    for batches in ({}, {"eval_batch_targets": 1}):
        section = InstructionConfig(max_context_tokens=32, max_query_tokens=16, max_target_tokens=16, **batches)
        data, made = InstructionDataModule(section, Uneven(), reader), module(tiny_lm("llama"), name="full_prompt")
        assessment = assess(made, data, "seen", config)
        sizes = measure(made, assessment.sizes, "query_in_decoder", config)[0]
        known = [each.model_dump(exclude={"gap", "gap_ci"}) for each in assessment.result.rivals.values()]
        found.append((sizes, known))
    assert found[0] == found[1]


def test_answers_can_be_turned_off_and_headlines_follow(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    off = assessed(tmp_path, lm, {"name": "no_prompt"}, {"generate": False})
    assert off.result.metric == "loss"
    assert off.predictions[0].texts is None
    alone = assessed(tmp_path, lm, {"name": "no_prompt"}, {"bounds": False}, metric="exact_match")
    assert alone.result.metric == "exact_match"
    assert alone.predictions[0].texts["full_prompt"] is None
    assert "agreement" not in alone.result.rows["method"]


def test_no_prompt_is_its_own_bound(tmp_path: Path) -> None:
    found = assessed(tmp_path, tiny_lm("llama"), {"name": "no_prompt"}).predictions
    other = assessed(tmp_path, tiny_lm("llama"), {"name": "full_prompt"}).predictions
    assert all(
        p.texts["no_prompt"] == p.texts["method"] == q.texts["no_prompt"] for p, q in zip(found, other, strict=True)
    )
    assert all(p.loss["no_prompt"] == p.loss["method"] for p in found)


def test_the_limit_is_counted_and_the_window_is_kept(tmp_path: Path) -> None:
    found = assessed(tmp_path, tiny_lm("llama"), {"name": "full_prompt"}).result
    assert found.unfinished == {"method": 6, "full_prompt": 6, "no_prompt": 6}  # this tokenizer has no end token
    lm = LanguageModel.from_parts(tiny_hf("gpt2"))  # 128 positions
    context = EncodedContext(tuple(range(3, 53)) + tuple(range(3, 53)), (EncodedQuery((5, 6), (EncodedTarget((7,)),)),))
    batch = collate([context])
    full = module(lm, name="full_prompt")
    memories = {"method": full.compress(batch.context), "no_prompt": None}
    (limit,) = room(full, [(memory, batch) for memory in memories.values()], 128)
    assert 128 - 102 - 2 <= limit <= 128 - 102
    assert len(lm.generate(memories["method"], batch, max_new_tokens=limit)[0]) == limit


def test_each_query_knows_its_example() -> None:
    queries = tuple(EncodedQuery((1,), tuple(EncodedTarget((2,), c) for c in range(2)), e) for e in (7, 3))
    assert example_of_query(collate([EncodedContext((1,), queries)])) == [7, 3]


def test_auto_follows_the_data(tmp_path: Path) -> None:
    data = datamodule(tmp_path)
    assert answers_for(data, EvaluationConfig(), {}) is not None
    assert answers_for(data, EvaluationConfig(generate=False), {}) is None
