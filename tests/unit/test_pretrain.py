"""Pretraining recipes: short forms that must learn something, determinism, and the shipped checkpoint."""

import json
import random
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from promptcomp.config import ConfigError, build, read_yaml
from promptcomp.toy.icl_lessons import ToyLessons, draw_document
from promptcomp.toy.icl_world import ToySource, class_sets, pair_splits
from promptcomp.toy.pretrain_loop import pretrain
from promptcomp.toy.recipe import PretrainConfig, TextCorpus, ToyCurriculum
from promptcomp.toy.text_lessons import TextLessons
from promptcomp.toy.toy_sections import ToyConfig
from promptcomp.toy.words import LABELS

RECIPES = Path(str(files("promptcomp"))) / "experiments" / "pretrain"
ASSET = Path(str(files("promptcomp"))) / "assets" / "toy_decoder"


def recipe(**changes: Any) -> PretrainConfig:
    tree = read_yaml(RECIPES / "toy_decoder.yaml")
    return build(PretrainConfig, {**tree, **changes})


def small_recipe(**changes: Any) -> PretrainConfig:
    tree = read_yaml(RECIPES / "toy_decoder.yaml")
    settings = {**tree["architecture"]["settings"], "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    tree["architecture"] = {**tree["architecture"], "settings": settings}
    tree["data"]["stages"] = [{**tree["data"]["stages"][0], "mix": {"repetition": 1}, "until": {}}]
    tree["data"] |= {"report_documents": 2, "skill_documents": 2}
    return build(PretrainConfig, {**tree, "batch_size": 16, "check_every": 1000, **changes})


def run(config: PretrainConfig, folder: Path) -> list[float]:
    losses = []

    def keep(step: int, total: int, numbers: Mapping[str, float]) -> None:
        losses.append(numbers["loss"])

    assert pretrain(config, folder, keep) == folder
    return losses


@pytest.fixture
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_short_recipe_learns_to_copy(tmp_path: Path) -> None:
    losses = run(small_recipe(steps=120), tmp_path / "base")
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert len(losses) == 120
    assert last < first - 1.0
    recipe = json.loads((tmp_path / "base" / "recipe.json").read_text())
    assert recipe["history"][-1]["step"] == 120
    assert recipe["config"]["steps"] == 120


@pytest.mark.usefixtures("_one_thread")
def test_a_seed_repeats_and_another_does_not(tmp_path: Path) -> None:
    one, same = run(small_recipe(steps=3), tmp_path / "a"), run(small_recipe(steps=3), tmp_path / "b")
    other = run(small_recipe(steps=3, seed=1), tmp_path / "c")
    assert one == same != other
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_the_full_recipe_walks_through_its_stages() -> None:
    config = recipe()
    assert isinstance(config.data, ToyCurriculum)
    lessons = ToyLessons(config.data, 2, 0)
    names = [stage.name for stage in config.data.stages]
    assert lessons.total_steps == sum(stage.steps for stage in config.data.stages)
    assert (lessons.stage.name, lessons.lr_scale) == (names[0], 1.0)
    for name in names:
        assert lessons.stage.name == name
        lessons.next_stage()
    assert lessons.finished


@pytest.mark.parametrize("kind", ["lookup", "natural", "words", "classification", "definition"])
def test_documents_mark_what_can_be_known(kind: Any) -> None:
    rng = random.Random(0)
    for _ in range(20):
        document = draw_document(kind, 12, 4, rng, 0.3)
        seen: set[str] = set()
        for row, knowable in zip(document.rows, document.knowable, strict=True):
            key = row.input if kind == "lookup" else row.output
            assert knowable == (kind == "natural" or key in seen)
            seen.add(key)


def test_small_tasks_of_pretraining_never_have_a_held_out_pair() -> None:
    splits = pair_splits()
    for group in ("nouns", "adjectives"):
        for size in (2, 3, 4):
            for names in class_sets("pretrain", group, size):
                pairs = {splits[frozenset((a, b))] for a in names for b in names if a != b}
                assert pairs <= {"train", "mixed"}


@pytest.mark.usefixtures("_one_thread")
def test_text_recipe_learns_from_files_and_metaicl_tasks(tmp_path: Path) -> None:
    rows = [{"task": "t", "input": f"is {i} even", "output": "yes" if i % 2 == 0 else "no"} for i in range(60)]
    (tmp_path / "data" / "t").mkdir(parents=True)
    (tmp_path / "config").mkdir()
    (tmp_path / "data" / "t" / "t_100_train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "config" / "p.json").write_text(json.dumps({"train": ["t"], "test": []}))
    (tmp_path / "more.txt").write_text("Añother paragraph.\n\n" * 5, encoding="utf-8")
    tree = read_yaml(RECIPES / "text.yaml")
    tree["architecture"]["settings"] |= {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    tree["data"] |= {"metaicl_dir": str(tmp_path), "metaicl_partition": "p", "files": [str(tmp_path / "more.txt")]}
    tree["data"] |= {"vocab_size": 320, "block_tokens": 32, "steps": 30}
    losses = run(build(PretrainConfig, {**tree, "optim": {"lr": 0.01, "warmup_steps": 2}}), tmp_path / "base")
    assert losses[-1] < losses[0] - 1.0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    text = "Añother\nline => ok \n\n\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    (tmp_path / "other.txt").write_text("zulu quick brown fox jumps\n\n" * 30)
    other = {**tree["data"], "metaicl_dir": None, "files": [str(tmp_path / "other.txt")], "steps": 1}
    run(build(PretrainConfig, {**tree, "data": other, "start_from": str(tmp_path / "base")}), tmp_path / "on")
    assert AutoTokenizer.from_pretrained(tmp_path / "on").get_vocab() == tokenizer.get_vocab()
    (tmp_path / "data" / "t" / "t_13_train.jsonl").write_text(json.dumps({"input": None, "output": "yes"}))
    with pytest.raises(ConfigError, match=r"t_13_train.jsonl:1: 'input' is missing"):
        run(build(PretrainConfig, tree), tmp_path / "no")
    tree["data"]["metaicl_partition"] = "q"
    with pytest.raises(ConfigError, match=r"data.metaicl_partition .*known: p"):
        run(build(PretrainConfig, tree), tmp_path / "no")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": [8, 4]}, "rows: the fewest, 8, are more than the most, 4"),
        ({"rows": [0, 4]}, "rows.0"),
        ({"classes": [4, len(LABELS) + 1]}, "classes.1"),
        ({"mix": {}}, "mix: no kind of document has a weight above 0"),
        ({"mix": {"lookup": -1}}, "mix.lookup"),
        ({"until": {"repetition": 0.9}}, "'lookup', 'words' or 'classification'"),
    ],
)
def test_stages_that_no_document_can_be_drawn_for_are_refused(options: dict[str, Any], message: str) -> None:
    tree = read_yaml(RECIPES / "toy_decoder.yaml")
    stage = {"name": "a", "steps": 2, "mix": {"lookup": 1}, "rows": [4, 8], "classes": [2, len(LABELS)], "until": {}}
    build(PretrainConfig, {**tree, "data": {**tree["data"], "stages": [stage]}})
    with pytest.raises(ConfigError, match=message):
        build(PretrainConfig, {**tree, "data": {**tree["data"], "stages": [{**stage, **options}]}})


def test_mistakes_are_told_apart(tmp_path: Path) -> None:
    tree = read_yaml(RECIPES / "toy_decoder.yaml")
    with pytest.raises(ConfigError, match="transformers"):
        run(build(PretrainConfig, {**tree, "architecture": {"model_type": "lama"}}), tmp_path / "a")
    wrong = {"model_type": "gpt2", "settings": {"n_embd": 8, "n_head": 2, "n_layer": 1}, "positional_start": {}}
    with pytest.raises(ConfigError, match="attention_bias"):
        run(build(PretrainConfig, {**tree, "architecture": wrong}), tmp_path / "a")
    with pytest.raises(ConfigError, match="files or metaicl_dir"):
        build(PretrainConfig, {**tree, "data": {"name": "text"}})
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ConfigError, match=r"empty.txt: the file has no documents"):
        run(
            build(PretrainConfig, {**tree, "data": {"name": "text", "files": [str(tmp_path / "empty.txt")]}}),
            tmp_path / "a",
        )
    with pytest.raises(ConfigError, match=r"start_from .*not those of the architecture, a llama"):
        run(build(PretrainConfig, {**tree, "start_from": str(ASSET.parent / "toy_t5")}), tmp_path / "a")
    (tmp_path / "model.safetensors").write_bytes(b"0123456789")
    with pytest.raises(ConfigError, match=r"start_from .*header"):
        run(build(PretrainConfig, {**tree, "start_from": str(tmp_path)}), tmp_path / "a")
    layouts = {
        "name": "toy_instructions",
        "stages": [{"name": "a", "steps": 1}],
        "layouts": ["decoder_only", "query_in_encoder"],
    }
    with pytest.raises(ConfigError, match="decoder_only goes with no other"):
        build(PretrainConfig, {**tree, "data": layouts})


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"model_type": "vit"}, "'vit': no language model"),
        ({"model_type": "llama", "settings": {"hidden_size": 32, "num_attention_heads": 5}}, "no llama can be made"),
        ({"model_type": "llama", "settings": {"hidden_size": "abc"}}, "no llama can be made"),
        ({"model_type": "llama", "settings": {"hidden_sise": 32}}, "did you mean 'hidden_size'"),
        (
            {"model_type": "gpt2", "settings": {"n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 16}},
            "16 positions",
        ),
    ],
)
def test_models_that_cannot_be_made_are_told(architecture: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A paragraph.\n\n" * 30)
    data = {"name": "text", "files": [str(tmp_path / "a.txt")], "vocab_size": 300, "block_tokens": 32}
    with pytest.raises(ConfigError, match=message):
        run(build(PretrainConfig, {"architecture": architecture, "data": data, "steps": 1}), tmp_path / "no")


def test_paragraphs_are_documents_whatever_ends_their_lines(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_bytes(b"one line\r\nand another\r\n\r\nsecond\r\n")
    lessons = TextLessons(TextCorpus(files=(tmp_path / "more.txt",), vocab_size=300, block_tokens=8), 1, 0)
    assert sorted(lessons._texts) == ["one line\r\nand another", "second"]


def test_a_world_without_inputs_left_says_so() -> None:
    source = ToySource(ToyConfig(num_demonstrations=4000, two_slot_share=0.0))
    with pytest.raises(ConfigError, match=r"data.world.num_demonstrations: hardly an input is left"):
        source.tasks("test")[0]


def test_shipped_checkpoint_learns_in_context() -> None:
    model = AutoModelForCausalLM.from_pretrained(ASSET, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(ASSET)
    config = recipe().data
    assert isinstance(config, ToyCurriculum)
    lessons = ToyLessons(config, 32, 0)
    assert tokenizer.get_vocab() == lessons.tokenizer.get_vocab()
    tasks = ToySource(ToyConfig(seed=5, min_classes=3, max_classes=3, num_queries=1)).tasks("test")[:64]
    accuracy = lessons.row_accuracy(model, [(*task.demonstrations, *task.queries) for task in tasks])
    assert accuracy[24] >= 0.9
    assert abs(accuracy[0] - 1 / 3) < 0.2
