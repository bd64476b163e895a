"""Rationale data: two tasks of one example, markers, single targets, subsets, filters, budgets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from promptcomp.batch import ANSWER, RATIONALE, EncodedContext, collate
from promptcomp.config import ConfigError, build
from promptcomp.datamodules.rationale.rationale_module import RationaleDataModule, choose_rows, shuffled
from promptcomp.datamodules.sampler import Draw
from promptcomp.datamodules.sections import Reader
from promptcomp.datamodules.tasks import RationaleRow
from promptcomp.toy.rationale_world import toy_rationale_tokenizer
from promptcomp.toy.toy_sections import ToyRationaleData

WORLD = {"pool_rows": 40, "dev_rows": 10, "test_rows": 10}


def _module(seed: int = 0, **options: Any) -> RationaleDataModule:
    tree = {"world": WORLD, "train_count": None, **options}
    found = build(ToyRationaleData, tree).build(Reader(toy_rationale_tokenizer(), seed=seed, batch_size=4, window=128))
    assert isinstance(found, RationaleDataModule)
    return found


def _texts(module: RationaleDataModule, context: EncodedContext) -> list[tuple[str, str, str]]:
    def text(ids: tuple[int, ...]) -> str:
        return str(module.tokenizer.decode(list(ids)))

    return [(text(context.ids), text(q.ids), text(q.targets[0].ids)) for q in context.queries]


def _first(module: RationaleDataModule) -> tuple[RationaleRow, list[tuple[str, str, str]]]:
    return module.training_rows[0].row, _texts(module, module.train_context(Draw(0, 0)))


def test_two_tasks_of_one_example() -> None:
    row, texts = _first(_module(markers="suffix"))
    assert texts == [
        (row.input, "predict:", f"{row.label} <eos>"),
        (row.input, "explain:", f"{row.llm_rationale} <eos>"),
    ]
    row, texts = _first(_module(markers="prefix", label_marker="explain:", rationale_marker="predict:"))
    assert [query for _, query, _ in texts] == [f"explain: {row.input}", f"predict: {row.input}"]
    assert not texts[0][0]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("label", "{label}"),
        ("rationale", "{rationale}"),
        ("rationale_then_label", "{rationale} => {label}"),
        ("label_then_rationale", "{label} => {rationale}"),
        ("label_from_rationale", "{label}"),
    ],
)
def test_one_target(targets: str, expected: str) -> None:
    module = _module(targets=targets)
    row, texts = _first(module)
    ((context, _, target),) = texts
    assert target == expected.format(label=row.label, rationale=row.llm_rationale) + " <eos>"
    assert (f"explain: {row.llm_rationale}" in context) == (targets == "label_from_rationale")
    if targets != "rationale":
        assert module.answer_of(target.removesuffix(" <eos>")) == row.label


def test_a_generation_without_separator_has_no_answer() -> None:
    assert _module(targets="rationale_then_label").answer_of("3 + 4") == ""
    assert _module(targets="label_then_rationale").answer_of(" 7 ") == "7"


def test_roles_reach_the_batch() -> None:
    module = _module()
    batch = next(iter(module.train_dataloader()))
    assert batch.role.tolist() == [ANSWER, RATIONALE] * 4
    assert batch.context.ids.shape[0] == 4
    assert batch.to("cpu").role.tolist() == batch.role.tolist()


def test_lengths_are_those_of_the_padded_example() -> None:
    module = _module()
    context = module.train_context(Draw(3, 0))
    batch = collate([context])
    width = batch.query_ids.shape[1] + batch.target_ids.shape[1]
    assert module.train_lengths([Draw(3, 0)]) == [len(context.ids) + 2 * width]


def test_evaluation_has_the_label_task() -> None:
    module = _module()
    assert module.eval_splits == ("dev", "test")
    assert module.answers_are_generated
    dev, test = module.examples("dev"), module.examples("test")
    assert (dev[0].kind, len(dev[0].options), dev[0].options[dev[0].gold]) == ("multi_choice", 9, dev[0].output)
    assert (test[0].kind, test[0].options) == ("free_form", (test[0].output,))
    batch = next(iter(module.eval_dataloader("test")))
    assert set(batch.role.tolist()) == {ANSWER}
    number = int(batch.example[0])
    assert module.tokenizer.decode(batch.target_ids[0]) == f"{test[number].output} <eos>"
    rationales = next(iter(module.rationale_dataloader("test")))
    assert set(rationales.role.tolist()) == {RATIONALE}
    assert _module(scored_splits="none").examples("dev")[0].kind == "free_form"
    with pytest.raises(ConfigError, match="pmi"):
        module.null_dataloader("test")


def test_a_student_of_rationales_alone_is_held_against_rationales() -> None:
    module = _module(targets="rationale", scored_splits="all")
    rows, examples = module.rows("test"), module.examples("test")
    assert [each.output for each in examples] == [row.llm_rationale for row in rows]
    batch = next(iter(module.eval_dataloader("test")))
    assert set(batch.role.tolist()) == {RATIONALE}
    number = int(batch.example[0])
    assert module.tokenizer.decode(batch.target_ids[0][batch.target_mask[0]]) == f"{examples[number].output} <eos>"
    assert module.prompt_format().query == "{input} explain:"
    known = module.source.rows("test")
    module.source.rows = lambda split: [replace(known[0], llm_rationale=" "), *known[1:]]  # type: ignore[method-assign]
    module._rows.clear()
    assert module.rows("test") == [*known[1:]]


def test_teacher_labels_are_for_training_only() -> None:
    module = _module(label_source="teacher", world={**WORLD, "swapped_share": 1.0})
    labels = [item.label for item in module.training_rows]
    assert labels == [item.row.llm_label for item in module.training_rows]
    assert labels != [item.row.label for item in module.training_rows]
    assert [example.output for example in module.examples("test")] == [row.label for row in module.rows("test")]


def test_filters_by_the_teachers_label() -> None:
    world = {**WORLD, "misread_share": 0.5}
    everything = _module(world=world)
    wrong = sum(item.row.llm_label != item.row.label for item in everything.training_rows)
    assert 0 < wrong < 40
    rationales = _module(world=world, rationale_filter="teacher_correct")
    assert [item.roles for item in rationales.training_rows].count((ANSWER,)) == wrong
    assert rationales.num_train_items() == 40
    rows = _module(world=world, rationale_filter="teacher_correct_rows")
    assert rows.num_train_items() == 40 - wrong
    assert f"rows with a wrong teacher label: filtered: {wrong}" in rows.notes()


def test_subsets_are_nested_and_fixed_or_per_seed() -> None:
    def ids(seed: int, share: float, subset: str) -> list[str]:
        module = _module(seed=seed, train_share=share, subset=subset)
        return [item.row.id for item in module.training_rows]

    assert ids(0, 0.5, "fixed") == ids(1, 0.5, "fixed")
    assert ids(0, 0.25, "fixed") == ids(0, 0.5, "fixed")[:10]
    assert ids(0, 0.5, "per_seed") != ids(1, 0.5, "per_seed")
    assert ids(1, 0.25, "per_seed") == ids(1, 0.5, "per_seed")[:10]
    assert len(_module(train_count=20, train_share=0.25).training_rows) == 5


def test_everything_needs_no_order() -> None:
    config = build(ToyRationaleData, {"world": WORLD, "train_count": None})
    rows = [RationaleRow(str(i), "q", "a") for i in range(4)]
    assert choose_rows(config, rows, 0) is rows


def test_shuffled_rationales_are_all_of_other_rows() -> None:
    rows = [RationaleRow(str(i), f"q{i}", "a", "a", f"because {i}" if i % 3 else "") for i in range(30)]
    found = shuffled(rows, 0)
    kept = [row.llm_rationale for row in rows if row.llm_rationale]
    assert sorted(row.llm_rationale for row in found if row.llm_rationale) == sorted(kept)
    for row, other in zip(rows, found, strict=True):
        assert (row.llm_rationale == "") == (other.llm_rationale == "")
        assert not row.llm_rationale or row.llm_rationale != other.llm_rationale


def test_long_rows_are_cut_and_told() -> None:
    module = _module(max_input_tokens=8, max_rationale_tokens=4)
    context = module.train_context(Draw(0, 0))
    assert len(context.ids) + len(context.queries[0].ids) == 8
    rationale = context.queries[1].targets[0].ids
    assert len(rationale) == 4
    assert rationale[-1] == module.tokenizer.eos_token_id
    assert any(line.startswith("inputs over 8 tokens, cut: 40") for line in module.notes())
    assert "labels or rationales over their budget, cut: 40" in module.notes()
    assert not any("cut" in line for line in _module().notes())


@pytest.mark.parametrize("markers", ["prefix", "suffix"])
def test_what_stands_behind_an_input_stays_when_it_is_cut(markers: str) -> None:
    module = _module(max_input_tokens=8, markers=markers, input_end=" =>")
    _, texts = _first(module)
    for context, query, _ in texts:
        assert (context or query).endswith("=>")
        assert len(f"{context} {query}".split()) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"markers": "none"}, "one for each task"),
        ({"max_input_tokens": 4, "input_end": " => => =>"}, "takes 4 tokens, so nothing is left"),
        ({"label_marker": "explain:"}, "must differ"),
        ({"targets": "label", "shuffle_rationales": True}, "no effect"),
        ({"train_share": 0.0}, "train_share"),
        ({"max_input_tokens": 127}, "use at most 95"),
        ({"targets": "rationale_then_label", "separator": "~~"}, "does not keep it"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _module(**options)


def test_unknown_split() -> None:
    with pytest.raises(ConfigError, match="'valid' is unknown; this data has dev, test"):
        _module().examples("valid")
