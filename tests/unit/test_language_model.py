"""Opening models, skeletons, generation and the memories a model can read."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import CONFIG_MAPPING, AutoConfig

from promptcomp.batch import EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.commands.dry_run import print_estimate
from promptcomp.config import ConfigError
from promptcomp.experiment import load
from promptcomp.language_model import LanguageModel, LanguageModelConfig, loading, open_window
from promptcomp.language_model.architectures import known_architectures
from promptcomp.language_model.attention import Window
from promptcomp.language_model.lm_config import FromScratch
from promptcomp.language_model.loading import open_architecture, open_tokenizer
from promptcomp.memory import EncoderStates, KVCache, SoftPrompt
from tests.tiny_families import CAUSAL, tiny_family
from tests.tiny_models import MODELS, VOCABULARY, save_tokenizer, tiny_hf, tiny_lm

BATCH = collate(
    [
        EncodedContext((5, 6, 7, 8), (EncodedQuery((9, 10), (EncodedTarget((11,)),)), EncodedQuery((12,), ()))),
        EncodedContext((13,), (EncodedQuery((14, 15, 16), (EncodedTarget((17,)),)),)),
    ],
)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_folder_round_trip(kind: str, tmp_path: Path) -> None:
    hf = tiny_hf(kind)
    hf.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    lm = LanguageModel.from_config(LanguageModelConfig(path=str(tmp_path)))
    assert not lm.training
    assert lm.bos_id is None
    assert (lm.hidden_size, lm.num_layers, lm.vocab_size) == (32, 2, VOCABULARY)
    assert lm.window == (None if kind == "t5" else 128)
    values = [model(model.encode(BATCH.context), BATCH).values for model in (lm, LanguageModel.from_parts(hf))]
    torch.testing.assert_close(values[0], values[1])


def test_bos_is_what_the_tokenizer_adds_unless_said_otherwise(tmp_path: Path) -> None:
    hf = tiny_hf("llama")
    hf.save_pretrained(tmp_path)
    save_tokenizer(tmp_path, bos=True)
    lm = LanguageModel.from_config(LanguageModelConfig(path=str(tmp_path)))
    assert lm.bos_id == 1
    assert LanguageModel.from_config(LanguageModelConfig(path=str(tmp_path), bos=False)).bos_id is None
    with torch.no_grad():
        ours = lm(lm.encode(BATCH.context), BATCH).values[0]
        expected = hf(torch.tensor([[1, 5, 6, 7, 8, 9, 10]])).logits[0, -1]
        torch.testing.assert_close(ours, expected)
        soft = lm(SoftPrompt(lm.embed(BATCH.context.ids), BATCH.context.mask), BATCH).values[0]
        torch.testing.assert_close(soft, expected)
        torch.testing.assert_close(lm(None, BATCH).values[0], hf(torch.tensor([[1, 9, 10]])).logits[0, -1])
        vectors = SoftPrompt(lm.embed(BATCH.context.ids), BATCH.context.mask)
        full = lm.encode(BATCH.context)
    assert [lm.kv_bytes(each) / lm.cost.kv_bytes_per_token for each in (None, vectors, full)] == [1, 3.5, 3.5]
    save_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="no BOS token"):
        LanguageModel.from_config(LanguageModelConfig(path=str(tmp_path), bos=True))


def test_unreadable_models_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the model cannot be read"):
        LanguageModel.from_config(LanguageModelConfig(path=str(tmp_path)))
    with pytest.raises(ConfigError, match="no such built-in model"):
        LanguageModel.from_config(LanguageModelConfig(path="builtin:nothing"))
    for path, meant in (("SmolLM2", "smollm2"), ("toy_decoder", "builtin:toy_decoder"), ("builtin:Toy_T5", "toy_t5")):
        with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
            LanguageModelConfig(path=path).check_place()
    LanguageModelConfig(path="gpt2").check_place()
    hf = tiny_hf("gpt2")
    hf.config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="the weights cannot be read"):
        LanguageModel.from_config(LanguageModelConfig(path=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="the weights cannot be read"):
        LanguageModel.from_config(LanguageModelConfig(path=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "bart"}', encoding="utf-8")
    with pytest.raises(ConfigError, match="type 'bart' are not supported"):
        LanguageModel.from_config(LanguageModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "3", "[" * 100_000, "\0"], ids=lambda content: ascii(content[:4])
)
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_damaged_model_folders_are_refused_in_one_sentence_by_dry_runs_too(
    tmp_path: Path, file: str, content: str
) -> None:
    tiny_hf("llama").save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"the (model|tokenizer) cannot be read; [^\n]*$"):
        LanguageModel.from_config(LanguageModelConfig(path=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"the (model|tokenizer) cannot be read; [^\n]*$"):
        print_estimate(load("full_prompt", None, [f"lm.path={tmp_path}"]), Console(), as_json=False)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("hidden_size", "x"),
        ("hidden_size", -1),
        ("num_attention_heads", 0),
        ("num_hidden_layers", 10**9),
        ("model_type", [1]),
        ("dtype", "none"),
        ("hidden_act", "none"),
        ("rope_parameters", {"rope_type": "none"}),
    ],
)
def test_architectures_that_cannot_be_built_are_refused_in_one_sentence(
    tmp_path: Path, entry: str, value: object
) -> None:
    tiny_hf("llama").save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**tree, entry: value}), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"^{tmp_path}: [^\n]*$"):
        LanguageModel.from_config(LanguageModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("shard", "entry", "said"),
    [
        ("1KB", "vocab_size", r"lm_head\.weight has the shape \[{0}, {1}\] in model-00\S+\.safetensors, and"),
        ("5GB", "hidden_size", r"has the shape \[{0}, {1}\] in model\.safetensors, and .*\(one of \d+ that differ\)"),
    ],
)
def test_weights_of_other_shapes_than_config_json_are_named(tmp_path: Path, shard: str, entry: str, said: str) -> None:
    hf = tiny_hf("llama")
    hf.save_pretrained(tmp_path, max_shard_size=shard)
    save_tokenizer(tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**tree, entry: 2 * tree[entry]}), encoding="utf-8")
    said = said.format(*hf.get_input_embeddings().weight.shape)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}: the weights do not fit config.json: [^\n]*{said}[^\n]*$"):
        LanguageModel.from_config(LanguageModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("path", "parameters", "kv_bytes"),
    [
        ("gpt2", 124_439_808, 2 * 12 * 768 * 4),
        ("gpt2-large", 774_030_080, 2 * 36 * 1280 * 4),
        ("gpt2-xl", 1_557_611_200, 2 * 48 * 1600 * 4),
        ("t5-large", 737_668_096, 2 * 24 * 1024 * 4),
        ("google/flan-t5-base", 247_577_856, 2 * 12 * 768 * 4),
    ],
)
def test_skeletons_of_well_known_models(path: str, parameters: int, kv_bytes: int) -> None:
    lm = LanguageModel.skeleton(LanguageModelConfig(path=path))
    assert {p.device.type for p in lm.parameters()} == {"meta"}
    assert lm.cost.kv_bytes_per_token == kv_bytes
    assert sum(p.numel() for p in lm.parameters()) == parameters


@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v3"])
def test_mixtures_of_experts_in_float64(kind: str, tmp_path: Path) -> None:
    hf = tiny_family(kind)
    hf.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    config = LanguageModelConfig(path=str(tmp_path), dtype="float64")
    lm, ids = LanguageModel.from_config(config), torch.arange(3, 9)[None]
    torch.testing.assert_close(lm.hf(ids).logits.float(), hf(ids).logits, rtol=0, atol=1e-5)
    assert LanguageModel.skeleton(config).cost == lm.cost


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_skeletons_have_the_output_head_of_the_checkpoint(kind: str, tmp_path: Path) -> None:
    """T5 1.1 and mT5 have one of their own."""
    changes = {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"} if kind == "t5" else {}
    hf = tiny_family(kind, **changes)
    hf.lm_head.weight = torch.nn.Parameter(hf.lm_head.weight.detach() + 1)  # type: ignore[operator, union-attr]
    hf.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    config = LanguageModelConfig(path=str(tmp_path))
    whole, skeleton = LanguageModel.from_config(config), LanguageModel.skeleton(config)
    assert {n: p.shape for n, p in skeleton.named_parameters()} == {n: p.shape for n, p in whole.named_parameters()}
    assert skeleton.cost == whole.cost


def test_every_known_architecture_can_be_built() -> None:
    from transformers import AutoConfig

    for name, sizes in known_architectures().items():
        settings = dict(sizes)
        assert AutoConfig.for_model(settings.pop("model_type"), **settings).hidden_size > 0, name


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("with_context", [True, False])
def test_generation_takes_the_likeliest_tokens(name: str, with_context: bool) -> None:
    lm = tiny_lm(name)
    memory = lm.encode(BATCH.context) if with_context else None
    texts = lm.generate(memory, BATCH, max_new_tokens=4)
    queries = [((5, 6, 7, 8), (9, 10)), ((5, 6, 7, 8), (12,)), ((13,), (14, 15, 16))]
    for (context, query), text in zip(queries, texts, strict=True):
        context = context if with_context else ()
        for length in range(4):
            done = text[:length]
            with torch.no_grad():
                if lm.family == "decoder":
                    logits = lm.hf(torch.tensor([[*context, *query, *done]])).logits
                else:
                    encoder = (context + query if lm.query_in_encoder else context) or (1,)
                    decoder = [0, *done] if lm.query_in_encoder else [0, *query, *done]
                    logits = lm.hf(input_ids=torch.tensor([encoder]), decoder_input_ids=torch.tensor([decoder])).logits
            assert int(logits[0, -1].argmax()) == text[length]
    stopped = lm.generate(memory, BATCH, max_new_tokens=4, stop_ids=[texts[0][1]])
    assert stopped[0] == texts[0][: texts[0].index(texts[0][1])]
    drawn = [
        lm.generate(memory, BATCH, max_new_tokens=4, temperature=1.0, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_soft_prompt_of_token_embeddings_is_the_full_prompt(name: str) -> None:
    lm = tiny_lm(name)
    with torch.no_grad():
        soft = SoftPrompt(lm.embed(BATCH.context.ids), BATCH.context.mask)
        for where in ("all", "targets"):
            torch.testing.assert_close(
                lm(soft, BATCH, where).values, lm(lm.encode(BATCH.context), BATCH, where).values, rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_half_precision_stays_finite(name: str, dtype: torch.dtype) -> None:
    lm = tiny_lm(name).to(dtype)
    exact = tiny_lm(name)
    with torch.no_grad():
        ours = lm.score(lm.encode(BATCH.context), BATCH)
        full = exact.score(exact.encode(BATCH.context), BATCH)
    assert ours.sum_log_prob.dtype == torch.float32
    torch.testing.assert_close(ours.sum_log_prob, full.sum_log_prob, rtol=0.05, atol=0.1)


def test_memories_of_another_family_are_refused() -> None:
    decoder, t5, in_encoder = tiny_lm("gpt2"), tiny_lm("t5_query_in_decoder"), tiny_lm("t5_query_in_encoder")
    cache, states = decoder.encode(BATCH.context), t5.encode(BATCH.context)
    assert isinstance(cache, KVCache)
    assert isinstance(states, EncoderStates)
    for lm, memory in ((decoder, states), (t5, cache), (in_encoder, states), (in_encoder, cache)):
        with pytest.raises(ConfigError, match="cannot read"):
            lm(memory, BATCH)


def test_contexts_beyond_the_window_are_refused() -> None:
    lm = tiny_lm("gpt2")
    batch = collate([EncodedContext(tuple([5] * 130), (EncodedQuery((6,), (EncodedTarget((7,)),)),))])
    with pytest.raises(ConfigError, match="130 tokens does not fit the LM's window of 128"):
        lm.encode(batch.context)


def test_a_batch_without_any_context_token() -> None:
    batch = collate([EncodedContext((), (EncodedQuery((6,), (EncodedTarget((7,)),)),))])
    for name in MODELS:
        lm = tiny_lm(name)
        assert lm.encode(batch.context) is None
        with torch.no_grad():
            assert torch.isfinite(lm.score(None, batch).sum_log_prob).all()


def test_the_window_in_config_json_is_never_less_than_the_real_one(tmp_path: Path) -> None:
    """What is refused without torch is refused with it; a model that reads less than its table says comes later."""
    found = 0
    for kind in (*CAUSAL, "t5", "mt5", "gemma3"):
        CONFIG_MAPPING[kind]().save_pretrained(tmp_path / kind)
        config = LanguageModelConfig(path=str(tmp_path / kind))
        if (light := config.window_on_disk()) is not None:
            found += 1
            size = Window.of(AutoConfig.from_pretrained(config.path).get_text_config(decoder=True)).size
            assert size is not None, kind
            assert size <= light, kind
    assert found > 50
    for path in ("builtin:toy_decoder", "builtin:toy_student", "builtin:toy_t5"):
        config = LanguageModelConfig(path=path)
        assert config.window_on_disk() == open_window(config)
    longer = LanguageModelConfig(path="gpt2", from_scratch=FromScratch(settings={"n_positions": 8}))
    assert longer.window_on_disk() is None
    assert longer.model_copy(update={"path": str(tmp_path / "gpt2")}).window_on_disk() == 8


def test_a_name_of_the_hub_without_a_network_is_refused_at_once(monkeypatch):
    def no_address(*_: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(loading, "getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited for the hub"))
    loading._without_hub.cache_clear()
    try:
        for opened in (open_architecture, open_tokenizer):
            with pytest.raises(ConfigError, match=r"nobody/nothing: .* has no address here: no network"):
                opened(LanguageModelConfig(path="nobody/nothing"))
    finally:
        loading._without_hub.cache_clear()
