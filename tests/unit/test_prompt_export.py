"""Compressed prompts as peft adapters, caches of transformers and requests for vLLM give the numbers of `generate`."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from promptcomp.batch import EncodedContext, EncodedQuery, EncodedTarget, collate
from promptcomp.config import ConfigError
from promptcomp.exports.card import files_of
from promptcomp.exports.prompt_export import export_prompt
from promptcomp.prompts.compressing import compress
from promptcomp.prompts.prompt_files import CompressedPrompt
from tests.prompt_runs import save_lm, save_run

PROMPT, QUERY = "we like cat . so happy", "the dog again"
METHODS = {
    "whole": {"name": "full_prompt", "train": "none"},
    "gist": {"name": "gist", "num_slots": 3, "train": "none"},
    "vectors": {"name": "mend", "num_slots": 4},
}


def prompt_of(folder: Path, kind: str, method: str) -> CompressedPrompt:
    """A compressed prompt in `folder / prompt.safetensors`, by a run with random trained parts."""
    run = save_run(folder / "run", save_lm(folder / "lm", kind), METHODS[method])
    found = compress(run, text=PROMPT, device="cpu")
    found.info = found.info.model_copy(update={"query": 'the "cat" \U0001f600 \\ {input}'})  # is to survive in code
    found.reader.format = found.info.format
    found.save(folder / "prompt.safetensors")
    return found


def expected_logits(prompt: CompressedPrompt) -> Tensor:
    """[S, V] after each token of the query."""
    ids = prompt.reader.query_ids(QUERY)
    batch = collate([EncodedContext((), (EncodedQuery(ids, (EncodedTarget((5,)),)),))])
    with torch.no_grad():
        return prompt.reader.lm(prompt.memory, batch, "all").values[: len(ids)]


def run_readme(folder: Path) -> dict[str, Any]:
    """The names that the README's code leaves."""
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    code = re.sub(r'^(folder|query) = ".*$', "", found[1], flags=re.MULTILINE)
    names: dict[str, Any] = {"folder": str(folder), "query": QUERY}
    with torch.no_grad():
        exec(compile(code, "README", "exec"), names)  # noqa: S102 (our own text, made above)
    return names


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")  # peft passes it
@pytest.mark.parametrize(
    ("kind", "method"),
    [*((kind, method) for kind in ("llama", "gemma3") for method in METHODS), ("gpt2", "whole"), ("gpt2", "vectors")],
)
def test_peft_and_transformers_read_prompts(tmp_path: Path, kind: str, method: str) -> None:
    prompt, file = prompt_of(tmp_path, kind, method), tmp_path / "prompt.safetensors"
    expected = expected_logits(prompt)
    found = export_prompt(file, tmp_path / "peft", "peft")
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["peft_type"] == (
        "PROMPT_TUNING" if method == "vectors" else "PREFIX_TUNING"
    )
    logits = run_readme(tmp_path / "peft")["logits"][0][-len(expected) :]
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6 * max(1.0, float(expected.abs().max())))
    assert set(found.files) == {file.name for file in (tmp_path / "peft").iterdir()} == set(files_of(tmp_path / "peft"))
    assert any("generate" in note for note in found.notes)
    assert "white space" not in (tmp_path / "peft" / "README.md").read_text()
    export_prompt(file, tmp_path / "cache", "transformers")
    answer = run_readme(tmp_path / "cache")["answer"].tolist()
    wanted = prompt.answers([QUERY])[0].ids[:20]
    assert tuple(answer[: len(wanted)]) == wanted


def test_queries_that_lose_white_space_are_said_so(tmp_path: Path) -> None:
    prompt = prompt_of(tmp_path, "llama", "vectors")
    prompt.info = prompt.info.model_copy(update={"trims": True})
    prompt.save(tmp_path / "trims.safetensors")
    export_prompt(tmp_path / "trims.safetensors", tmp_path / "out", "vllm")
    assert "Take the white space around a query away." in (tmp_path / "out" / "README.md").read_text()


def test_keys_that_cannot_be_moved_are_refused(tmp_path: Path) -> None:
    prompt_of(tmp_path, "gpt2", "gist")
    for to in ("peft", "transformers"):
        with pytest.raises(ConfigError, match="positions are not rotary"):
            export_prompt(tmp_path / "prompt.safetensors", tmp_path / to, to)
        assert not (tmp_path / to).exists()


def test_requests_for_vllm(tmp_path: Path) -> None:
    """A naive server: what vLLM makes of a body, in plain transformers."""
    prompt = prompt_of(tmp_path, "llama", "vectors")
    export_prompt(tmp_path / "prompt.safetensors", tmp_path / "out", "vllm")
    chat = json.loads((tmp_path / "out" / "chat.json").read_text())
    vectors, text = chat["messages"][0]["content"]
    found = torch.load(io.BytesIO(base64.b64decode(vectors["data"])), weights_only=True)
    assert torch.equal(found, prompt.memory.embeds[0])  # type: ignore[union-attr]
    assert text["text"] == prompt.info.query
    tokenizer = prompt.reader.tokenizer
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"text": "@"}, text]}], chat_template=chat["chat_template"], tokenize=False
    )
    assert rendered == f"@{prompt.info.query}"
    body = run_readme(tmp_path / "out")["body"]
    assert "query" not in body
    assert run_readme(tmp_path / "out")["text"] == prompt.info.query.replace("{input}", QUERY)
    whole = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)
    logits = prompt.reader.lm.hf(inputs_embeds=whole[None]).logits[0]
    expected = expected_logits(prompt)
    torch.testing.assert_close(logits[-len(expected) :], expected, rtol=1e-5, atol=1e-5)
    compile((tmp_path / "out" / "client.py").read_text(), "client.py", "exec")


def test_what_a_program_cannot_hold_is_refused(tmp_path: Path) -> None:
    prompt_of(tmp_path, "llama", "gist")
    file, out = tmp_path / "prompt.safetensors", tmp_path / "out"
    with pytest.raises(ConfigError, match="vLLM takes embeddings"):
        export_prompt(file, out, "vllm")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="not empty"):
        export_prompt(file, tmp_path / "full", "peft")
    with pytest.raises(ConfigError, match="has other weights"):
        export_prompt(file, out, "peft", str(save_lm(tmp_path / "other", "llama", seed=1)))
    (tmp_path / "lm").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="no longer at"):
        export_prompt(file, out, "peft")
    assert export_prompt(file, out, "peft", str(tmp_path / "moved")).format == "peft"


def test_states_of_an_encoder_are_exported_as_their_own_file_alone(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", save_lm(tmp_path / "lm", "t5"), {"name": "full_prompt"})
    prompt = compress(run, text=PROMPT, device="cpu", keep_text=True)
    prompt.save(tmp_path / "prompt.safetensors")
    for to in ("vllm", "peft", "transformers"):
        with pytest.raises(ConfigError, match="encoder-decoder"):
            export_prompt(tmp_path / "prompt.safetensors", tmp_path / "out", to)
    found = export_prompt(tmp_path / "prompt.safetensors", tmp_path / "out", "tensors")
    assert set(found.files) == {"README.md", "prompt.safetensors"} == set(files_of(tmp_path / "out"))
    assert found.notes == ("The file holds the text that was compressed.",)
    assert run_readme(tmp_path / "out")["answer"] == prompt.generate(QUERY)
