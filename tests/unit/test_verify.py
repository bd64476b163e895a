"""A model is compared with plain transformers when it is opened, once, and no code of its folder runs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AyaVisionConfig, PreTrainedModel

from promptcomp.batch import EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.config import ConfigError
from promptcomp.language_model import LanguageModel, LanguageModelConfig, open_tokenizer, open_window, verify
from promptcomp.language_model.attention import Window
from promptcomp.language_model.loading import attention, open_architecture
from tests.tiny_families import tiny_family
from tests.tiny_models import save_tokenizer, tiny_hf


def _saved(folder: Path, hf: PreTrainedModel) -> LanguageModelConfig:
    hf.save_pretrained(folder)
    save_tokenizer(folder)
    return LanguageModelConfig(path=str(folder))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that holds nothing yet, also in memory."""
    monkeypatch.setenv("PROMPTCOMP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verify, "_verdicts", {})
    return tmp_path / "cache"


def _count_comparisons(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done, compare = [], verify._differences

    def counted(lm: LanguageModel) -> dict[str, float]:
        done.append(lm.hf.config.model_type)
        return compare(lm)

    monkeypatch.setattr(verify, "_differences", counted)
    return done


def test_the_verdict_is_remembered_for_these_weights(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _saved(tmp_path / "one", tiny_hf("llama"))
    done = _count_comparisons(monkeypatch)
    for _ in range(2):
        LanguageModel.from_config(config)
        verify._verdicts.clear()  # as in another process
    assert done == ["llama"]
    assert len(list((own_cache / "verified").iterdir())) == 1
    LanguageModel.from_config(_saved(tmp_path / "two", tiny_hf("llama", seed=1)))
    assert len(done) == 2


def test_a_refusal_is_remembered_and_names_the_family(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _saved(tmp_path / "bloom", tiny_family("bloom"))
    done = _count_comparisons(monkeypatch)
    messages = []
    for _ in range(2):
        with pytest.raises(ConfigError, match="models of type 'bloom' are not supported") as caught:
            LanguageModel.from_config(config)
        messages.append(str(caught.value))
        verify._verdicts.clear()
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    assert len(done) == 1


def test_a_cache_that_cannot_be_written_or_read_does_no_harm(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _saved(tmp_path / "one", tiny_hf("gpt2"))
    own_cache.write_text("a file where the folder should be")
    LanguageModel.from_config(config)
    verify._verdicts.clear()
    own_cache.unlink()
    LanguageModel.from_config(config)
    [file] = (own_cache / "verified").iterdir()
    verify._verdicts.clear()
    file.write_text("{")
    LanguageModel.from_config(config)
    assert json.loads(file.read_text()) == {"model": "gpt2", "refused": None}


def test_a_long_sliding_window_is_tried_with_few_tokens(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = tiny_family("mistral", sliding_window=4096, max_position_embeddings=32768)
    LanguageModel.from_parts(hf)
    assert hf.config.sliding_window == 4096
    verify._verdicts.clear()
    monkeypatch.setattr(
        "promptcomp.language_model.attention.AttentionPattern._visible", lambda self, kind, sees, *_: sees
    )
    with pytest.raises(ConfigError, match="'mistral'"):
        LanguageModel.from_parts(hf)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_wrong_positions_are_found_in_every_precision(dtype: torch.dtype, own_cache: Path) -> None:
    hf = tiny_hf("gpt2").to(dtype)
    LanguageModel.from_parts(hf)
    verify._verdicts.clear()
    forward = type(hf.transformer).forward

    def from_columns(*args: Any, position_ids: Tensor | None = None, **kwargs: Any) -> Any:
        return forward(hf.transformer, *args, **kwargs)

    hf.transformer.forward = from_columns
    with pytest.raises(ConfigError, match=r"'gpt2'.* do not give the scores of one row at a time"):
        LanguageModel.from_parts(hf)


def test_the_comparison_leaves_the_model_as_it_was(own_cache: Path) -> None:
    hf = tiny_hf("opt").train()
    state = torch.get_rng_state()
    lm = LanguageModel.from_parts(hf)
    assert all(each.training for each in hf.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert lm.pattern is not None


def test_shapes_without_weights_are_not_compared(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = _count_comparisons(monkeypatch)
    LanguageModel.skeleton(LanguageModelConfig(path="gpt2"))
    assert done == []


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    config = _saved(tmp_path, tiny_hf("llama"))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lack 1 tensors of a 'llama' model \(model.layers.1.mlp.up_proj.weight\)"):
        LanguageModel.from_config(config)


@pytest.mark.parametrize(
    ("dtype", "scale", "said"),
    [
        ("float32", torch.nan, r"in float32 .*its weight model\.layers\.0\.mlp\.up_proj\.weight holds .* give weights"),
        ("float16", 1e7, r"in float16 .*its weight model\.layers\.0\.mlp\.up_proj\.weight holds .* lm\.dtype=bfloat16"),
        ("float16", 3e4, r"in float16 .*numbers on the way exceed float16\); .* lm\.dtype=bfloat16 or float32"),
    ],
)
def test_an_lm_whose_scores_are_no_numbers_is_refused(
    own_cache: Path, tmp_path: Path, dtype: Any, scale: float, said: str
) -> None:
    hf, good = tiny_hf("llama"), tiny_hf("llama")
    for name in ("up_proj", "down_proj"):
        hf.get_parameter(f"model.layers.0.mlp.{name}.weight").data *= scale
    config = _saved(tmp_path / "lm", hf).model_copy(update={"dtype": dtype})
    for _ in range(2):
        with pytest.raises(ConfigError, match=rf"^{tmp_path / 'lm'}: its scores [^\n]*{said}"):
            LanguageModel.from_config(config)
    if dtype == "float16":
        LanguageModel.from_config(config.model_copy(update={"dtype": "float32"}))
    else:
        with pytest.raises(ConfigError, match="its scores in float32 are NaN"):
            LanguageModel.from_parts(hf)
        LanguageModel.from_parts(good)  # of the same family


def test_attention_is_what_the_model_has(tmp_path: Path) -> None:
    capped = {"attn_logit_softcapping": 5.0}
    for kind, changes, best in (
        ("gemma2", {}, "eager"),
        ("gemma3_text", {}, "sdpa"),
        ("gemma3_text", capped, "eager"),
        ("llama", {}, "sdpa"),
    ):
        config = _saved(tmp_path / kind, tiny_family(kind, **changes))
        architecture = open_architecture(config)
        assert attention(config, architecture) == best
        assert LanguageModel.from_config(config).hf.config._attn_implementation == best
    wrong = LanguageModelConfig(path=str(tmp_path / "gemma2"), attn_implementation="sdpa")
    with pytest.raises(ConfigError, match=r"lm.attn_implementation = sdpa: models of type 'gemma2' .* set it to eager"):
        LanguageModel.from_config(wrong)


def test_a_window_ends_where_longrope_would_change_the_scores_of_other_rows() -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "rope_theta": 1e4}
    hf = tiny_family(
        "phi3", original_max_position_embeddings=24, rope_parameters={**rope, "original_max_position_embeddings": 24}
    )
    lm = LanguageModel.from_parts(hf)
    assert lm.window == 24
    query = EncodedQuery((31, 32), (EncodedTarget((41, 42)),))
    fits = collate([EncodedContext(tuple(range(2, 22)), (query,))])
    too_long = collate([EncodedContext(tuple(range(2, 23)), (query,))])
    lm.score(lm.encode(fits.context), fits)
    with pytest.raises(ConfigError, match=r"window of 24 .*LongRoPE of 'phi3'"):
        lm.score(lm.encode(too_long.context), too_long)
    with pytest.raises(ConfigError, match=r"window of 24 .*LongRoPE of 'phi3'"):
        lm.generate(lm.encode(too_long.context), too_long, max_new_tokens=3)
    assert Window.of(tiny_family("bloom").config).size is None


def test_no_code_of_a_model_folder_runs_whatever_stdin_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    trace, opened = tmp_path / "it_ran", {"own": 0, "llama": 4}
    for named, count in opened.items():
        _with_own_code(tmp_path / named, named, trace)
        said = [
            _opened(opening, LanguageModelConfig(path=str(tmp_path / named), from_scratch=scratch))
            for scratch in (None, {})
            for opening in (LanguageModel.from_config, LanguageModel.skeleton, open_window, open_tokenizer)
        ]
        assert said.count("opened") == count
        assert all("needs its own code (auto_map)" in line for line in said if line != "opened")
    assert not trace.exists()


def _opened(opening: Callable[[LanguageModelConfig], object], config: LanguageModelConfig) -> str:
    try:
        opening(config)
    except ConfigError as error:
        return str(error)
    return "opened"


def _with_own_code(folder: Path, named: str, trace: Path) -> None:
    _saved(folder, tiny_hf("llama"))
    code = f"open({str(trace)!r}, 'w').close()\nfrom transformers import *\n"
    code += "class Own(LlamaConfig): model_type = 'own'\nclass OwnModel(LlamaForCausalLM): config_class = Own\n"
    code += "class OwnTokenizer(PreTrainedTokenizerFast): pass\n"
    (folder / "own.py").write_text(code)
    for name, changes in (
        (
            "config",
            {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}, "model_type": named},
        ),
        (
            "tokenizer_config",
            {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer"] * 2}, "tokenizer_class": "OwnTokenizer"},
        ),
    ):
        file = folder / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_model_with_a_head_of_its_own_is_not_taken_out_of_one_that_cannot_be_made(
    tmp_path: Path,
) -> None:
    """Aya Vision holds a Cohere LM, whose logits are scaled where it stands alone; this picture part is no model."""
    found = AyaVisionConfig()
    assert found.vision_config.hidden_size % found.vision_config.num_attention_heads
    found.save_pretrained(tmp_path)
    assert open_architecture(LanguageModelConfig(path=str(tmp_path))).model_type == found.model_type
