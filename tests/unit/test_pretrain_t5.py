"""The encoder-decoder recipes of the toy worlds: start, batches, short forms, and the shipped checkpoints."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from promptcomp.batch import collate
from promptcomp.config import ConfigError, build, read_yaml
from promptcomp.datamodules.sampler import EvalPart
from promptcomp.datamodules.sections import Reader
from promptcomp.datamodules.tasks import Row
from promptcomp.language_model import LanguageModel
from promptcomp.toy.answer_lessons import InstructionLessons, RationaleLessons
from promptcomp.toy.icl_world import ToySource
from promptcomp.toy.instruction_world import ToyInstructionSource
from promptcomp.toy.pretrain_loop import build_model, pretrain
from promptcomp.toy.recipe import (
    Architecture,
    InstructionCurriculum,
    Layout,
    PretrainConfig,
    RationaleCurriculum,
    ToySeq2SeqCurriculum,
)
from promptcomp.toy.seq2seq_lessons import ToySeq2SeqLessons
from promptcomp.toy.toy_sections import ToyConfig, ToyICLData, ToyInstructionsConfig, ToyInstructionsData

RECIPES = Path(str(files("promptcomp"))) / "experiments" / "pretrain"
RECIPE = RECIPES / "toy_t5.yaml"
ASSETS = Path(str(files("promptcomp"))) / "assets"
IN_ENCODER = build(PretrainConfig, read_yaml(RECIPES / "toy_t5_in_encoder.yaml"))


def short_recipe(**changes: Any) -> PretrainConfig:
    tree = read_yaml(RECIPE)
    settings = {**tree["architecture"]["settings"], "d_model": 48, "d_kv": 12, "d_ff": 48, "num_heads": 9}
    tree["architecture"] = {**tree["architecture"], "settings": settings}
    tree["data"] |= {"report_documents": 2, "skill_documents": 2}
    tree["data"]["stages"] = [{**tree["data"]["stages"][0], "until": {}, "mix": {"repetition": 1}}]
    return build(PretrainConfig, {**tree, "batch_size": 8, "check_every": 1000, **changes})


def short_form(name: str, data: dict[str, Any], **changes: Any) -> PretrainConfig:
    """A small model on a recipe's first stage."""
    tree = read_yaml(RECIPES / f"{name}.yaml")
    settings = {**tree["architecture"]["settings"], "d_model": 32, "d_kv": 8, "d_ff": 32}
    tree["architecture"] = {**tree["architecture"], "settings": settings}
    tree["data"] = {**tree["data"], **data, "stages": tree["data"]["stages"][:1]}
    return build(PretrainConfig, {**tree, "batch_size": 8, "check_every": 1000, **changes})


def lessons_of(config: PretrainConfig) -> ToySeq2SeqLessons:
    assert isinstance(config.data, ToySeq2SeqCurriculum)
    return ToySeq2SeqLessons(config.data, config.batch_size, config.seed)


def tiny_model(lessons: ToySeq2SeqLessons, config: PretrainConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return build_model(config.architecture, len(lessons.tokenizer), 0, 1, 2).eval()


@pytest.fixture
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_a_short_run_leaves_the_uniform_guess_and_repeats(tmp_path: Path) -> None:
    def run(folder: str, steps: int) -> list[float]:
        losses: list[float] = []

        def keep(step: int, total: int, numbers: Mapping[str, float]) -> None:
            losses.append(numbers["loss"])

        pretrain(short_recipe(steps=steps), tmp_path / folder, keep)
        return losses

    losses = run("a", 60)
    assert losses[-1] < losses[0] - 0.3
    assert run("b", 3) == losses[:3]
    recipe = json.loads((tmp_path / "a" / "recipe.json").read_text())
    assert recipe["history"][-1]["step"] == 60
    assert set(recipe["metrics"]) == {f"{s}/{c}" for s in ("train", "dev", "test", "test_hard") for c in (2, 3, 4)}


def test_heads_start_at_their_distances() -> None:
    config = short_recipe()
    lessons = lessons_of(config)
    model = tiny_model(lessons, config)
    start = config.architecture.copy_start
    assert start is not None
    for stack, offsets in ((model.get_encoder(), start.encoder_offsets), (model.get_decoder(), start.decoder_offsets)):
        bias = stack.block[0].layer[0].SelfAttention.compute_bias(12, 12)[0]  # [H, 12, 12]
        for head, offset in enumerate(offsets):
            assert bias[head, 6].argmax() == 6 + offset


@pytest.mark.parametrize(
    ("model_type", "start", "message"),
    [
        ("t5", {"encoder_offsets": [-9]}, "exact below 8"),
        ("t5", {"encoder_offsets": [-1], "decoder_offsets": [1]}, "decoder_offsets"),
        ("t5", {"encoder_offsets": [-1, -2, -3, -4]}, "more than 4 heads"),
        ("gpt2", {}, "model_type t5"),
    ],
)
def test_impossible_starts_are_refused(model_type: str, start: dict[str, Any], message: str) -> None:
    sizes = {"d_model": 8, "num_heads": 4, "num_layers": 1} if model_type == "t5" else {"n_embd": 8, "n_head": 2}
    tree = {"model_type": model_type, "settings": sizes, "copy_start": start}
    with pytest.raises(ConfigError, match=message):
        build_model(build(Architecture, tree), 32, 0, 1, 2)


def test_queries_that_share_a_decoder_row_do_not_see_each_other() -> None:
    config = short_recipe()
    lessons = lessons_of(config)
    model = tiny_model(lessons, config)
    lessons._num_queries = 3
    context, asked = lessons._draw("classification", 8, (3, 3))
    together = lessons._logits(model, [context], [asked])[0]
    for number in range(3):
        where = [i for i, piece in enumerate(asked.piece) if piece == number]
        alone = model(
            input_ids=torch.tensor([context]), decoder_input_ids=torch.tensor([[asked.ids[i] for i in where]])
        ).logits[0]
        torch.testing.assert_close(together[where], alone, atol=1e-4, rtol=1e-4)


def test_only_answers_that_can_be_known_are_targets() -> None:
    lessons = lessons_of(short_recipe())
    ids = lessons.tokenizer.get_vocab()
    for kind in ("lookup", "natural", "words", "classification"):
        context, asked = lessons._draw(kind, 4, (4, 4))
        for place in (i for i, token in enumerate(asked.ids) if token == ids["=>"]):
            label = asked.ids[place + 1]
            assert asked.known[place] in (label, -100)
            if asked.known[place] == -100:
                assert kind != "natural"
            elif kind != "natural":
                assert label in context
            assert asked.other[place + 1 : place + 3] == [ids["\n"], ids["<eos>"]]


def test_queries_in_the_encoder_are_answered_where_they_can_be_known() -> None:
    lessons = lessons_of(IN_ENCODER)
    words = lessons.tokenizer.convert_ids_to_tokens
    for kind in ("lookup", "natural", "words", "classification"):
        for count in (1, 4):
            row = lessons._draw_read(kind, 6, (3, 3), count)
            asked = [place for place, target in enumerate(row.known) if target >= 0]
            arrows = [place for place in asked if words(row.ids)[place] == "=>"]
            assert 0 < len(arrows) <= count
            assert len(asked) == len(arrows) * (2 if kind == "lookup" else 1)
            assert "\n" not in words(row.ids)[arrows[0] :]
            assert row.answer == (row.known[-1] if len(arrows) == 1 else -100)
            if kind != "natural":
                assert {row.known[place] for place in asked} <= set(row.ids)
    copied = lessons._draw_read("repetition", 6, (3, 3), 1)
    for place in (place for place, target in enumerate(copied.known) if target >= 0):
        assert copied.known[place] == copied.ids[copied.ids.index(copied.ids[place]) + 1]
    assert copied.answer == -100


def test_an_encoder_reads_queries_as_the_data_section_writes_them() -> None:
    """The lessons' answers are those of a full prompt as it is evaluated."""
    lessons = lessons_of(IN_ENCODER)
    hf = tiny_model(lessons, IN_ENCODER)
    lm = LanguageModel.from_parts(hf, lessons.tokenizer, layout="query_in_encoder")
    config = ToyConfig(num_test_tasks=2, num_queries=2)
    module = ToyICLData(world=config, num_demonstrations=8).build(
        Reader(lessons.tokenizer, seed=0, batch_size=4, query_in_encoder=True)
    )
    module.setup("test")
    for number, task in enumerate(ToySource(config).tasks("test")):
        row = module.eval_contexts("test").encode(EvalPart(number, 0, 2))
        written = {tuple(lessons._row_ids([one])) for one in task.demonstrations}
        ends = [0, *(place + 1 for place, token in enumerate(row.ids) if token == lessons._ids["\n"])]
        assert {row.ids[start:end] for start, end in pairwise(ends)} <= written
        assert [list(query.ids) for query in row.queries] == [lessons._question(one)[1:] for one in task.queries]
        batch = collate([row])
        read = lessons._logits_of_read(hf, [[*row.ids, *query.ids] for query in row.queries])[0].log_softmax(-1)
        options = [[target.ids[0] for target in query.targets] for query in row.queries]
        expected = torch.cat([found[few] for found, few in zip(read, options, strict=True)])
        torch.testing.assert_close(lm.score(lm.encode(batch.context), batch).sum_log_prob, expected)


@pytest.mark.parametrize("name", ["toy_t5", "toy_t5_in_encoder"])
def test_shipped_checkpoints_learn_in_context(name: str) -> None:
    config = build(PretrainConfig, read_yaml(RECIPES / f"{name}.yaml"))
    lessons = lessons_of(config)
    model = AutoModelForSeq2SeqLM.from_pretrained(ASSETS / name, dtype=torch.float32)
    assert AutoTokenizer.from_pretrained(ASSETS / name).get_vocab() == lessons.tokenizer.get_vocab()
    tasks = ToySource(ToyConfig(seed=5, min_classes=3, max_classes=3, num_queries=1)).tasks("test")[:64]
    nothing: tuple[Row, ...] = ()
    assert lessons.accuracy(model, [(task.demonstrations, task.queries[0]) for task in tasks]) >= 0.9
    assert abs(lessons.accuracy(model, [(nothing, task.queries[0]) for task in tasks]) - 1 / 3) < 0.2


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize(
    ("name", "data", "metrics"),
    [
        (
            "toy_instructions_t5",
            {"layouts": ["query_in_encoder", "query_in_decoder"], "skill_rows": 4, "report_rows": 4},
            {"query_in_encoder", "query_in_decoder"},
        ),
        ("toy_rationales_t5", {"report_rows": 8}, {"label", "rationale", "label_in_the_world"}),
    ],
)
def test_short_forms_of_the_other_worlds_learn(
    tmp_path: Path, name: str, data: dict[str, Any], metrics: set[str]
) -> None:
    losses: list[float] = []
    pretrain(
        short_form(name, data, steps=60),
        tmp_path / "model",
        lambda step, total, numbers: losses.append(numbers["loss"]),
    )
    assert sum(losses[-10:]) < sum(losses[:10]) - 3
    recipe = json.loads((tmp_path / "model" / "recipe.json").read_text())
    assert set(recipe["metrics"]["exact_match"]) == metrics


@pytest.mark.parametrize("layout", ["query_in_encoder", "query_in_decoder"])
def test_instructions_are_read_as_the_data_section_writes_them(layout: Layout) -> None:
    config = short_form("toy_instructions_t5", {"layouts": [layout]})
    assert isinstance(config.data, InstructionCurriculum)
    lessons = InstructionLessons(config.data, 4, 0)
    torch.manual_seed(0)
    hf = build_model(config.architecture, len(lessons.tokenizer), 0, 1, 2).eval()
    lm = LanguageModel.from_parts(hf, lessons.tokenizer, layout=layout)
    module = ToyInstructionsData().build(
        Reader(lessons.tokenizer, seed=0, batch_size=4, query_in_encoder=lm.query_in_encoder)
    )
    rows = list(module.rows("seen"))[:4]
    scores = lm.score(
        lm.encode((batch := collate([module.encode("seen", [row], [i]) for i, row in enumerate(rows)])).context),
        batch,
    )
    logits, ids, answers = lessons._logits(hf, [lessons._document(row) for row in rows], layout)
    log_probs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(scores.sum_log_prob, (log_probs * answers[:, 1:]).sum(1), atol=1e-3, rtol=1e-4)


def test_shipped_student_adds_prices_but_knows_none() -> None:
    config = build(PretrainConfig, read_yaml(RECIPES / "toy_rationales_t5.yaml"))
    assert isinstance(config.data, RationaleCurriculum)
    lessons = RationaleLessons(config.data.model_copy(update={"report_rows": 64}), 64, 0)
    model = AutoModelForSeq2SeqLM.from_pretrained(ASSETS / "toy_rationales_t5", dtype=torch.float32).eval()
    assert AutoTokenizer.from_pretrained(ASSETS / "toy_rationales_t5").get_vocab() == lessons.tokenizer.get_vocab()
    found = lessons.report(model)["exact_match"]
    assert min(found["label"], found["rationale"]) >= 0.95
    assert found["label_in_the_world"] < 0.3


@pytest.mark.parametrize("layout", ["query_in_encoder", "query_in_decoder"])
def test_shipped_instruction_model_follows_instructions_it_reads(layout: Layout) -> None:
    config = build(PretrainConfig, read_yaml(RECIPES / "toy_instructions_t5.yaml"))
    assert isinstance(config.data, InstructionCurriculum)
    lessons = InstructionLessons(config.data, 64, 0)
    model = AutoModelForSeq2SeqLM.from_pretrained(ASSETS / "toy_instructions_t5", dtype=torch.float32).eval()
    assert AutoTokenizer.from_pretrained(ASSETS / "toy_instructions_t5").get_vocab() == lessons.tokenizer.get_vocab()
    rows = list(ToyInstructionSource(ToyInstructionsConfig(seed=5)).rows("seen"))[:64]
    assert lessons.exact_match(model, rows, layout)["seen"] >= 0.93
    blank = [replace(row, instruction="") for row in rows]
    assert lessons.exact_match(model, blank, layout)["seen"] <= 0.1
