"""Exported folders give the numbers of the run, in plain transformers and peft, by the code of their own README."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from promptcomp.batch import Context, EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.config import ConfigError
from promptcomp.exports.export import export
from promptcomp.lightning_modules import METHODS
from promptcomp.lightning_modules.base import CompressionModule
from promptcomp.lightning_modules.method_config import LMTrainingConfig
from promptcomp.memory import EncoderStates
from promptcomp.run.opening import open_trained, open_trained_module
from tests.prompt_runs import DATA, KINDS, save_lm, save_run

PROMPT, QUERY = "we like cat . so happy", "the dog again"


def run_of(folder: Path, kind: str, method: dict[str, Any], layout: str = "query_in_decoder") -> Path:
    """A run with random trained parts."""
    return save_run(folder / "run", save_lm(folder / "lm", kind), method, layout=layout)


def ids_of(module: CompressionModule, text: str) -> tuple[int, ...]:
    """Without special tokens."""
    assert module.lm.tokenizer is not None
    return tuple(module.lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def run_readme(folder: Path) -> dict[str, Any]:
    """The names that the README's code leaves."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    code = re.sub(r'^(folder|prompt|prompt, query) = ".*$', "", found[1], flags=re.MULTILINE)
    names: dict[str, Any] = {"folder": str(folder), "prompt": PROMPT, "query": QUERY}
    with torch.no_grad():
        exec(compile(code, "README", "exec"), names)  # noqa: S102 (our own text, made above)
    return names


def logits_of(module: CompressionModule, prompt: str = PROMPT) -> Tensor:
    """Logits [N, V] after each token of the query behind the compressed prompt (encoder reads queries: the first)."""
    query = ids_of(module, QUERY)
    rows = [EncodedContext(ids_of(module, prompt), (EncodedQuery(query, (EncodedTarget((5,)),)),))]
    batch = collate(rows)
    with torch.no_grad():
        return module.lm(module.compress(batch.context), batch, "all").values


def same(found: Tensor, expected: Tensor) -> None:
    """Equal where both have rows, by the size of the numbers (random T5s have large ones)."""
    rows = min(len(found), len(expected))
    assert rows
    assert (found[:rows] - expected[:rows]).abs().max() < 1e-5 * max(10.0, float(expected.abs().max()))


@pytest.mark.parametrize("shared", [True, False], ids=["one", "each"])
@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("gpt2", "query_in_decoder"),
        ("llama", "query_in_decoder"),
        ("t5", "query_in_decoder"),
        ("t5", "query_in_encoder"),
        ("mt5", "query_in_decoder"),
        ("mt5", "query_in_encoder"),
        *((kind, "query_in_decoder") for kind in KINDS),
    ],
)
def test_gist_tokens_in_transformers(tmp_path: Path, kind: str, layout: str, shared: bool) -> None:
    run = run_of(tmp_path, kind, {"name": "gist", "num_slots": 2, "shared_embedding": shared}, layout)
    found = export(run, tmp_path / "out", None)
    assert found.format == "hf"
    names = run_readme(tmp_path / "out")
    _, module = open_trained_module(run)
    expected = logits_of(module)
    logits = names["logits"][0]
    same(logits[:, : expected.shape[1]], expected)
    gist = torch.tensor(names["tokenizer"].convert_tokens_to_ids(["<gist>"] if shared else ["<gist_1>", "<gist_2>"]))
    torch.testing.assert_close(names["model"].get_input_embeddings()(gist), module.trained_tensors()["gist"])
    assert set(names["model"].generation_config.suppress_tokens) <= set(range(len(names["tokenizer"])))


@pytest.mark.parametrize("method", ["metaicl", "full_prompt"])
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_trained_lm_in_transformers(tmp_path: Path, kind: str, method: str) -> None:
    """By the code of its README, as all of the following."""
    options = {"name": method} if method == "metaicl" else {"name": method, "train": "lm"}
    run = run_of(tmp_path, kind, options)
    assert export(run, tmp_path / "out", "hf").format == "hf"
    hf = run_readme(tmp_path / "out")["model"]
    _, module = open_trained_module(run)
    ids = torch.tensor([ids_of(module, PROMPT)])
    more = {} if kind == "gpt2" else {"decoder_input_ids": torch.tensor([[0, 3]])}
    with torch.no_grad():
        torch.testing.assert_close(hf(ids, **more).logits, module.lm.hf(ids, **more).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mixtral", "t5"])
def test_adapters_in_peft(tmp_path: Path, kind: str) -> None:
    run = run_of(tmp_path, kind, {"name": "full_prompt", "train": "lora", "lora": {"rank": 2}})
    assert export(run, tmp_path / "out", None).format == "peft"
    factory = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    base = factory.from_pretrained(tmp_path / "lm").eval()
    _, module = open_trained_module(run)
    ids = torch.tensor([ids_of(module, PROMPT)])
    more = {"decoder_input_ids": torch.tensor([[0, 3]])} if kind == "t5" else {}
    with torch.no_grad():
        plain = base(ids, **more).logits
        adapted = run_readme(tmp_path / "out")["model"](input_ids=ids, **more).logits
        torch.testing.assert_close(adapted, module.lm.hf(ids, **more).logits, rtol=0, atol=1e-5)
    assert (adapted - plain).abs().max() > 1e-3


def test_adapters_that_peft_would_put_elsewhere_are_refused(tmp_path: Path) -> None:
    """It takes the linear layers of a mixture's dense blocks for its experts."""
    run = run_of(tmp_path, "qwen3_moe", {"name": "full_prompt", "train": "lora", "lora": {"rank": 2}})
    with pytest.raises(ConfigError, match="peft puts adapters of 'qwen3_moe' models beside other layers"):
        export(run, tmp_path / "peft", None)
    assert not (tmp_path / "peft").exists()
    assert export(run, tmp_path / "out", "tensors").format == "tensors"


@pytest.mark.parametrize("shared", [True, False], ids=["one", "each"])
@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("gpt2", "query_in_decoder"),
        ("llama", "query_in_decoder"),
        ("gemma3", "query_in_decoder"),
        ("t5", "query_in_decoder"),
        ("t5", "query_in_encoder"),
    ],
)
def test_gist_tokens_with_adapters(tmp_path: Path, kind: str, layout: str, shared: bool) -> None:
    method = {"name": "gist", "num_slots": 2, "shared_embedding": shared, "train": "lora", "lora": {"rank": 2}}
    run = run_of(tmp_path, kind, method, layout)
    found = export(run, tmp_path / "out", None)
    assert found.format == "peft"
    assert {"adapter_model.safetensors", "promptcomp_extra.safetensors"} <= set(found.files)
    same(run_readme(tmp_path / "out")["logits"][0], logits_of(open_trained_module(run)[1]))


def test_adapters_of_a_builtin_lm(tmp_path: Path) -> None:
    method = {"name": "gist", "num_slots": 1, "train": "lora"}
    run = save_run(tmp_path / "run", Path("builtin:toy_decoder"), method, data=DATA)
    same(run_readme_after(run, tmp_path / "out")["logits"][0], logits_of(open_trained_module(run)[1]))


@pytest.mark.parametrize(("kind", "layout"), [("gpt2", "query_in_decoder"), ("t5", "query_in_encoder")])
def test_soft_prompts_in_peft(tmp_path: Path, kind: str, layout: str) -> None:
    run = run_of(tmp_path, kind, {"name": "prompt_tuning", "num_slots": 3, "share": "shared"}, layout)
    assert export(run, tmp_path / "out", None).format == "peft"
    model = run_readme(tmp_path / "out")["model"]
    _, module = open_trained_module(run)
    expected = logits_of(module)
    ids = torch.tensor([ids_of(module, QUERY)])
    with torch.no_grad():
        if kind == "t5":
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([[0]])).logits[0]
        else:
            logits = model(input_ids=ids).logits[0, 3:]
    same(logits, expected)


def test_soft_prompts_of_every_task(tmp_path: Path) -> None:
    run = run_of(tmp_path, "gpt2", {"name": "prompt_tuning", "num_slots": 3})
    found = export(run, tmp_path / "out", "peft")
    folders = {Path(name).parent.name for name in found.files} - {""}
    assert len(folders) > 2
    assert all((tmp_path / "out" / name / "adapter_config.json").is_file() for name in folders)
    model = run_readme(tmp_path / "out")["model"]  # the first task's
    vectors = open_trained(run)[2].trained_tensors()["prompts"][0]
    torch.testing.assert_close(model.get_prompt_embedding_to_save("default"), vectors, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {}),
        ("llama", {"projection": "tanh"}),
        ("t5", {}),
        ("t5", {"slots_in": "decoder", "projection": "linear"}),
        ("t5", {"slots_in": "decoder", "slots": "states", "frozen_encoder": True}),
    ],
)
def test_the_distiller_in_transformers(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    run = run_of(tmp_path, kind, {"name": "mend", "num_slots": 2, **options})
    assert export(run, tmp_path / "out", None).format == "hf"
    vectors = run_readme(tmp_path / "out")["vectors"]
    _, module = open_trained_module(run)
    ids = torch.tensor([ids_of(module, PROMPT)])
    with torch.no_grad():
        memory = module.compress(Context(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros(1, dtype=torch.long)))
    found = memory.layers[-1] if isinstance(memory, EncoderStates) else memory.embeds  # type: ignore[union-attr]
    torch.testing.assert_close(vectors, found, rtol=1e-4, atol=1e-4)


def test_tensors_start_a_run(tmp_path: Path) -> None:
    run = run_of(tmp_path, "gpt2", {"name": "gist", "num_slots": 2, "train": "none"})
    assert export(run, tmp_path / "out", None).format == "tensors"
    _, module = open_trained_module(run)
    before = module.trained_tensors()["gist"].clone()
    with torch.no_grad():
        module.gist.zero_()  # type: ignore[operator, union-attr]
    module.load_trained(tmp_path / "out")
    assert torch.equal(module.trained_tensors()["gist"], before)
    assert torch.equal(run_readme(tmp_path / "out")["tensors"]["gist"], before)
    names = run_readme_of_hf(run, tmp_path / "hf")
    assert names["logits"].shape[0] == 1


def run_readme_of_hf(run: Path, folder: Path) -> dict[str, Any]:
    """A gist embedding alone goes into a copy of the LM."""
    assert export(run, folder, "hf").format == "hf"
    return run_readme(folder)


def test_a_builtin_lm_is_exported(tmp_path: Path) -> None:
    method = {"name": "gist", "num_slots": 1}
    run = save_run(tmp_path / "run", Path("builtin:toy_decoder"), method, data=DATA)
    names = run_readme_after(run, tmp_path / "out")
    _, module = open_trained_module(run)
    expected = logits_of(module)
    logits = names["logits"][0]
    same(logits[:, : expected.shape[1]], expected)


def run_readme_after(run: Path, folder: Path) -> dict[str, Any]:
    """Export in the best format and run its README."""
    export(run, folder, None)
    return run_readme(folder)


RATIONALES = {"name": "toy_rationales", "train_count": 8}


@pytest.mark.parametrize("name", METHODS)
def test_every_trained_method_says_what_it_can_be_exported_as(tmp_path: Path, name: str) -> None:
    """By its module alone: nothing here or in the exporter lists methods."""
    options: dict[str, Any] = {"name": name}
    if "train" in METHODS[name].model_fields:
        options["train"] = "lm"
    of_rationales = {"step_by_step": RATIONALES, "finetune": {**RATIONALES, "targets": "label"}}
    world = "toy_student" if name in of_rationales else "toy_decoder"
    lm = save_lm(tmp_path / "lm", "gpt2", world=world)
    run = save_run(tmp_path / "run", lm, options, data=of_rationales.get(name, DATA))
    _, module = open_trained_module(run) if name != "prompt_tuning" else (None, open_trained(run)[2])
    assert "tensors" in module.method.export_formats
    assert export(run, tmp_path / "tensors", "tensors").format == "tensors"
    expected = module.trained_tensors()
    found = run_readme(tmp_path / "tensors")["tensors"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    assert export(run, tmp_path / "best", None).format == module.method.export_formats[0]


def test_a_method_with_parameters_of_its_own_needs_no_word_to_be_exported() -> None:
    class Own(LMTrainingConfig):
        pass

    assert Own(train="none").export_formats == ("tensors",)
    assert Own(train="lm").export_formats == ("hf", "tensors")
    assert Own(train="lora").export_formats == ("peft", "tensors")


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path, "gpt2", {"name": "metaicl"})
    with pytest.raises(ConfigError, match="use --to hf or tensors"):
        export(run, tmp_path / "out", "peft")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="not empty"):
        export(run, tmp_path / "full", None)
    untrained = save_run(tmp_path / "none", tmp_path / "lm", {"name": "no_prompt"})
    with pytest.raises(ConfigError, match="trained nothing"):
        export(untrained, tmp_path / "out", None)
    (run / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(ConfigError, match="no trained weights"):
        export(run, tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("train", ["lm", "lora"])
def test_segments_in_transformers(tmp_path: Path, train: str) -> None:
    method = {"name": "autocompressor", "num_slots": 4, "train": train, "lora": {"rank": 2}}
    run = run_of(tmp_path, "llama", method)
    export(run, tmp_path / "out", None)
    expected = logits_of(open_trained_module(run)[1])
    same(run_readme(tmp_path / "out")["logits"][0][:, : expected.shape[1]], expected)


def test_gist_tokens_that_are_read_both_ways_in_transformers(tmp_path: Path) -> None:
    run = run_of(tmp_path, "llama", {"name": "gist", "num_slots": 2, "attention": "bidirectional"})
    export(run, tmp_path / "out", None)
    expected = logits_of(open_trained_module(run)[1])
    same(run_readme(tmp_path / "out")["logits"][0][:, : expected.shape[1]], expected)
