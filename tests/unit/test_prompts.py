"""Compressed prompts as files: the same answers in another process, for every family, layout and method."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promptcomp.batch import EncodedContext, EncodedQuery, collate
from promptcomp.commands.prompts import _rival
from promptcomp.config import ConfigError
from promptcomp.datamodules.sampler import EvalPart
from promptcomp.datamodules.tasks import Row
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.memory import EncoderStates, KVCache, SoftPrompt
from promptcomp.prompts.compressing import Compressor
from promptcomp.prompts.prompt_files import AnswerSettings, PromptReader, load_prompt
from promptcomp.prompts.sources import PromptSource
from promptcomp.rivals.evict import Evict
from promptcomp.rivals.kept_tokens import Truncate
from promptcomp.rivals.quantize import Quantize
from promptcomp.run.opening import make_data
from tests.prompt_runs import DATA, save_lm, save_run

METHODS = {
    "gist": {"name": "gist", "num_slots": 3},
    "gist_lora": {"name": "gist", "num_slots": 2, "train": "lora"},
    "gist_alone": {"name": "gist", "num_slots": 1, "train": "none"},
    "mend": {"name": "mend", "num_slots": 4},
    "full_prompt": {"name": "full_prompt"},
    "prompt_tuning": {"name": "prompt_tuning", "num_slots": 3, "share": "shared"},
}
LMS = {
    "gpt2": ("gpt2", "query_in_decoder"),
    "llama": ("llama", "query_in_decoder"),
    "t5_query_in_decoder": ("t5", "query_in_decoder"),
    "t5_query_in_encoder": ("t5", "query_in_encoder"),
}
CASES = [(lm, method) for lm in LMS for method in ("gist", "mend")] + [
    ("gpt2", "full_prompt"),
    ("gpt2", "prompt_tuning"),
    ("gpt2", "gist_lora"),
    ("llama", "gist_alone"),
    ("t5_query_in_encoder", "full_prompt"),
]
TEXT = "cat bench => foo \nangry owl tea => bar \nsalmon => foo \n"
QUERIES = ("cat tea", "angry boat leek owl violin", "tiny")
NEW = 8
READ = """
import json, sys
import promptcomp
answers = {}
for path in sys.argv[1:]:
    from promptcomp.prompts.prompt_files import AnswerSettings
    prompt = promptcomp.load_prompt(path, device="cpu")
    queries = json.loads(sys.stdin.readline())
    batch = prompt.answers(queries, AnswerSettings(max_new_tokens=8))
    alone = [prompt.answers([query], AnswerSettings(max_new_tokens=8))[0] for query in queries]
    answers[path] = [[a.ids for a in batch], [a.ids for a in alone]]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def compressors(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Compressor]:
    folder = tmp_path_factory.mktemp("runs")
    lms = {kind: save_lm(folder / f"lm_{kind}", kind) for kind in ("gpt2", "llama", "t5")}
    found = {}
    for lm, method in CASES:
        kind, layout = LMS[lm]
        run = save_run(folder / f"{lm}-{method}", lms[kind], METHODS[method], layout=layout)
        found[lm, method] = Compressor.load(run, device="cpu")
    return found


@pytest.fixture(scope="module")
def elsewhere(
    compressors: dict[tuple[str, str], Compressor], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], list[list[list[int]]]]:
    """Answers of another process, which has the files alone."""
    folder = tmp_path_factory.mktemp("files")
    paths = {}
    for (lm, method), compressor in compressors.items():
        path = folder / f"{lm}-{method}.safetensors"
        compressor.compress(TEXT).save(path)
        paths[lm, method] = str(path)
    lines = (json.dumps(QUERIES) + "\n") * len(paths)
    done = subprocess.run(
        [sys.executable, "-c", READ, *paths.values()], input=lines, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    return {case: answers[path] for case, path in paths.items()}


def uncompressed_path(compressor: Compressor, text: str, *, joint: bool = False) -> list[list[int]]:
    """What the method's own module answers, without a file: a memory for the batch, or one masked pass."""
    module: CompressionModule = compressor.module
    ids = compressor.datamodule.context_ids(text)
    queries = tuple(EncodedQuery(compressor.reader.query_ids(query), ()) for query in QUERIES)
    batch = collate([EncodedContext(ids, queries)])
    with torch.no_grad():
        memory = (
            module.lm.prefix(batch.context, module.slots())  # type: ignore[operator]
            if joint
            else module.compress(batch.context)
        )
        stop = compressor.reader.format.stop_ids
        return module.lm.generate(memory, batch, max_new_tokens=NEW, stop_ids=stop)


@pytest.mark.parametrize(("lm", "method"), CASES)
def test_another_process_gives_the_same_tokens(
    lm: str,
    method: str,
    compressors: dict[tuple[str, str], Compressor],
    elsewhere: dict[tuple[str, str], list[list[list[int]]]],
) -> None:
    compressor = compressors[lm, method]
    expected = uncompressed_path(compressor, TEXT)
    assert elsewhere[lm, method] == [expected, expected]
    if method.startswith("gist"):
        assert uncompressed_path(compressor, TEXT, joint=True) == expected
    assert len({tuple(answer) for answer in expected}) > 1  # a model that says the same to everything proves nothing


@pytest.mark.parametrize(("lm", "method"), CASES)
def test_kinds_and_positions(lm: str, method: str, compressors: dict[tuple[str, str], Compressor]) -> None:
    compressor = compressors[lm, method]
    prompt = compressor.compress(TEXT)
    is_t5 = lm.startswith("t5")
    soft = method in ("mend", "prompt_tuning") or (lm, method) == ("t5_query_in_encoder", "full_prompt")
    assert isinstance(prompt.memory, SoftPrompt if soft else EncoderStates if is_t5 else KVCache)
    info = prompt.info
    assert info.slots == int(prompt.memory.num_slots[0])
    assert info.source_tokens == len(compressor.datamodule.context_ids(TEXT))
    expected = None if is_t5 else info.slots if soft else info.source_tokens + (info.slots if "gist" in method else 0)
    assert info.next_position == expected
    assert info.lm_is_trained == (method in ("gist", "gist_lora"))


def test_a_prompt_longer_than_2048_tokens(compressors: dict[tuple[str, str], Compressor], tmp_path: Path) -> None:
    compressor = compressors["llama", "gist"]
    words = TEXT * 150
    assert 2048 < len(compressor.datamodule.context_ids(words)) < 4000
    compressor.compress(words).save(tmp_path / "long.safetensors")
    prompt = load_prompt(tmp_path / "long.safetensors", device="cpu")
    assert prompt.info.next_position == prompt.info.source_tokens + 3
    settings = AnswerSettings(max_new_tokens=NEW)
    expected = uncompressed_path(compressor, words)
    assert [list(answer.ids) for answer in prompt.answers(QUERIES, settings)] == expected
    assert uncompressed_path(compressor, words, joint=True) == expected
    assert (tmp_path / "long.safetensors").stat().st_size < 16_000


@pytest.mark.parametrize("lm", ["gpt2", "t5_query_in_encoder"])
def test_streaming_beams_and_draws(lm: str, compressors: dict[tuple[str, str], Compressor]) -> None:
    prompt = compressors[lm, "gist"].compress(TEXT)
    pieces: list[str] = []
    assert prompt.generate("cat tea", max_new_tokens=NEW, on_text=pieces.append) == "".join(pieces).strip()
    beams: list[str] = []
    searched = prompt.generate("cat tea", max_new_tokens=NEW, num_beams=3, on_text=beams.append)
    assert searched == "".join(beams).strip()
    drawn = [prompt.generate(list(QUERIES), max_new_tokens=NEW, temperature=2.0, seed=s) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    nearly_greedy = prompt.generate(list(QUERIES), max_new_tokens=NEW, temperature=1.0, top_p=1e-6)
    assert nearly_greedy == prompt.generate(list(QUERIES), max_new_tokens=NEW, batch_size=2)


def test_demonstrations_are_written_as_in_training(compressors: dict[tuple[str, str], Compressor]) -> None:
    compressor = compressors["gpt2", "mend"]
    rows = [Row("cat tea", "foo"), Row("owl", "bar")]
    context = compressor.context(PromptSource("", tuple(rows)))
    written = compressor.datamodule.context_ids("cat tea => foo \nowl => bar \n")
    assert context.ids[0].tolist() == list(written)
    with pytest.raises(ConfigError, match=r"demonstrations take .* the first .* fit"):
        compressor.context(PromptSource("", tuple(rows * 100)))
    pairs = compressor.compress(demonstrations=[("cat tea", "foo"), ("owl", "bar")]).memory
    zipped = compressor.compress(demonstrations=iter([["cat tea", "foo"], ["owl", "bar"]])).memory  # type: ignore[arg-type]
    assert isinstance(pairs, SoftPrompt)
    assert isinstance(zipped, SoftPrompt)
    assert torch.equal(pairs.embeds, zipped.embeds)
    for odd in ({"input": "cat", "output": "foo"}, "ab", ("cat",)):
        with pytest.raises(ConfigError, match=r"demonstrations are pairs of texts \(input, output\), and not"):
            compressor.compress(demonstrations=[odd])  # type: ignore[list-item]


def test_queries_and_settings_of_python_are_checked(compressors: dict[tuple[str, str], Compressor]) -> None:
    prompt = compressors["gpt2", "mend"].compress(demonstrations=[("cat tea", "foo")])
    several = prompt.generate([*QUERIES], max_new_tokens=NEW)
    assert prompt.generate((each for each in QUERIES), max_new_tokens=np.int64(NEW)) == several  # type: ignore[type-var]
    for query in (None, 3, [3], b"cat"):
        with pytest.raises(ConfigError, match="a query must be a text, not"):
            prompt.generate(query)  # type: ignore[type-var]
    for setting in ({"max_new_tokens": 2.5}, {"temperature": "1"}, {"seed": "1"}, {"num_beams": True}):
        with pytest.raises(ConfigError, match=f"{next(iter(setting))} .*: give a"):
            prompt.generate("cat", **setting)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [DATA, {"name": "toy_instructions"}], ids=lambda data: str(data["name"]))
def test_queries_are_written_as_in_evaluation(data: dict[str, Any], tmp_path: Path) -> None:
    is_icl = data["name"] == "toy_icl"
    lm = save_lm(tmp_path / "lm", "gpt2") if is_icl else Path("builtin:toy_instructions")
    method = {"name": "gist", "num_slots": 1, "train": "none"}
    compressor = Compressor.load(save_run(tmp_path / "run", lm, method, data=data), device="cpu")
    datamodule = make_data(compressor.experiment)
    datamodule.check()
    split = datamodule.eval_splits[-1]
    examples = {example.number: example for example in datamodule.examples(split)}
    contexts = datamodule.eval_contexts(split)
    for query in contexts.encode(EvalPart(0, 0, len(contexts.targets(0)))).queries:
        assert compressor.reader.query_ids(examples[query.example].input) == query.ids


def test_queries_lose_white_space_where_training_took_it(compressors: dict[tuple[str, str], Compressor]) -> None:
    reader = compressors["gpt2", "mend"].reader
    trimming = PromptReader(reader.lm, replace(reader.format, trims=True))
    assert trimming.query_ids(" cat tea\n") == reader.query_ids("cat tea") != reader.query_ids(" cat tea\n")
    for side, kept in (("left", "cat tea\n"), ("right", " cat tea")):
        trimming = PromptReader(reader.lm, replace(reader.format, trims=side))  # type: ignore[arg-type]
        assert trimming.query_ids(" cat tea\n") == reader.query_ids(kept)


def test_nothing_is_compressed_that_no_query_can_follow(tmp_path: Path) -> None:
    data = {**DATA, "scoring": "channel"}
    run = save_run(tmp_path / "run", save_lm(tmp_path / "lm", "gpt2"), {"name": "full_prompt"}, data=data)
    with pytest.raises(ConfigError, match=r"needs data.scoring=direct: a channel query holds the answer"):
        Compressor.load(run, device="cpu").compress(TEXT)


def test_a_tokenizers_hash_tells_vocabulary_and_rules_and_earlier_ones_stay_valid(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from promptcomp.prompts.artifact import _first_hash, is_tokenizer, tokenizer_hash

    def made(vocab: dict[str, int], merges: list[tuple[str, str]], *added: str, **settings: object) -> Any:
        tokenizer = Tokenizer(models.BPE(vocab, merges, **settings))  # type: ignore[arg-type]
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        fast.add_tokens(list(added))
        return fast

    vocab = {"a": 0, "b": 1, '"vocab":': 2, "ab": 3, "ba": 4}
    kinds = [
        made(vocab, [("a", "b")]),
        made(vocab, [("b", "a")]),
        made({**vocab, "c": 5}, [("a", "b")]),
        made(vocab, [("a", "b")], "new"),
        made(vocab, [("a", "b")], '"vocab":x', '"merges":['),
        made(vocab, [("a", "b")], fuse_unk=True, unk_token="a"),
    ]
    hashes = [tokenizer_hash(kind) for kind in kinds]
    assert len(set(hashes)) == len(kinds)
    again = made(vocab, [("a", "b")])
    again.padding_side = "left"
    again.backend_tokenizer.enable_padding(pad_id=1, pad_token="b")
    assert tokenizer_hash(again) == hashes[0]
    kinds[0].save_pretrained(tmp_path)
    assert tokenizer_hash(PreTrainedTokenizerFast.from_pretrained(tmp_path)) == hashes[0]
    for kind, found in zip(kinds, hashes, strict=True):
        assert found.startswith("2:")
        assert is_tokenizer(kind, found)
        assert is_tokenizer(kind, _first_hash(kind))
        assert not is_tokenizer(kind, "2:x")


def test_rivals_as_files(compressors: dict[tuple[str, str], Compressor], tmp_path: Path) -> None:
    compressor = compressors["llama", "gist"]
    source = PromptSource(TEXT)
    own = compressor.compression(source).prompt.info
    for rival in (Evict(score="knorm"), Quantize(bits=8), Truncate(slots=3)):
        prompt = compressor.compression(source, rival=rival).prompt
        prompt.save(tmp_path / f"{rival.row}.safetensors")
        again = load_prompt(tmp_path / f"{rival.row}.safetensors", device="cpu")
        assert again.info.method == rival.name
        assert again.generate(QUERIES, max_new_tokens=NEW) == prompt.generate(QUERIES, max_new_tokens=NEW)
        bos = compressor.module.lm.num_bos
        wanted = {"evict": own.slots + bos, "quantize": own.source_tokens + bos, "truncate": 3 + bos}
        assert again.info.slots == wanted[rival.name]
    with pytest.raises(ConfigError, match="more than 0"):
        compressor.compression(source, rival=Quantize(bytes=0.01))
    with pytest.raises(ConfigError, match="give more slots or bytes"):
        compressor.compression(source, rival=Truncate(bytes=0.01))
    for word, message in (("shuffled", "choose truncate"), ("{name: evict, slot: 1}", "slot"), ("nope", "'nope'")):
        with pytest.raises(ConfigError, match=message):
            _rival(word)
    assert _rival("{name: evict, bytes: 1/8}") == Evict(bytes=0.125)
