"""A real vLLM server gives the tokens of `promptcomp generate` for an exported prompt.

Runs where PROMPTCOMP_TEST_VLLM names a `vllm` program (of an environment of its own), or where one is on PATH.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from promptcomp.exports.prompt_export import export_prompt
from promptcomp.language_model import LanguageModelConfig
from promptcomp.language_model.loading import open_tokenizer
from promptcomp.prompts.compressing import compress
from promptcomp.prompts.prompt_files import AnswerSettings, CompressedPrompt
from tests.prompt_runs import save_run
from tests.unit.test_prompt_export import run_readme

VLLM = os.environ.get("PROMPTCOMP_TEST_VLLM") or shutil.which("vllm")
pytestmark = pytest.mark.skipif(VLLM is None, reason="set PROMPTCOMP_TEST_VLLM to the path of vLLM's program")
QUERIES = [
    "the dog again",
    "cat",
    "we like cat . so happy",
    "dog dog dog the",
    "so",
    "happy the",
    "like",
    "again . cat",
]
START_SECONDS = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with heads of a size that vLLM has, and two compressed prompts for it."""
    folder = tmp_path_factory.mktemp("vllm")
    tokenizer = open_tokenizer(LanguageModelConfig(path="builtin:toy_decoder"))
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "initializer_range": 0.3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads, **ids)).save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    return folder


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[CompressedPrompt]:
    """Both exported, as `a` and `b`; they have as many slots, and take more than one block of vLLM's cache."""
    run = save_run(folder / "run", folder / "lm", {"name": "mend", "num_slots": 20})
    found = [compress(run, text=text, device="cpu") for text in ("we like cat . so happy", "the dog . the dog")]
    for name, prompt in zip("ab", found, strict=True):
        export_prompt(prompt.save(folder / f"{name}.safetensors"), folder / name, "vllm")
    return found


@pytest.fixture(scope="module")
def url(folder: Path, prompts: list[CompressedPrompt]) -> Iterator[str]:
    """A server with prefix caching, as vLLM starts by itself."""
    assert VLLM is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--enable-prompt-embeds", "--trust-request-chat-template", "--generation-config", "vllm"]
    small = ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "8", "--enforce-eager"]
    names = ("VLLM_CPU_KVCACHE_SPACE", "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE")
    here = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = {**here, **dict.fromkeys(names, "1"), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with (folder / "log.txt").open("wb") as log:
        server = subprocess.Popen(
            [VLLM, "serve", str(folder / "lm"), "--host", "127.0.0.1", "--port", str(port), *flags, *small],
            stdout=log,
            stderr=log,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        limit = time.monotonic() + START_SECONDS
        while not _answers(f"{address}/health"):
            assert server.poll() is None, (folder / "log.txt").read_text()[-3000:]
            assert time.monotonic() < limit, (folder / "log.txt").read_text()[-3000:]
            time.sleep(1)
        yield address
    finally:
        server.terminate()
        server.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        found: dict[str, Any] = json.load(reply)["choices"][0]
    return found


def client_of(folder: Path) -> Callable[..., str]:
    spec = importlib.util.spec_from_file_location("client", folder / "client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ask: Callable[..., str] = module.ask
    return ask


def test_chat_parts_of_two_prompts_at_once(folder: Path, prompts: list[CompressedPrompt], url: str) -> None:
    """Every query twice behind each prompt, so that the second finds the first one's blocks in the prefix cache."""
    expected = {
        (name, query): prompt.generate(query, max_new_tokens=12)
        for name, prompt in zip("ab", prompts, strict=True)
        for query in QUERIES
    }
    assert len({expected[name, QUERIES[0]] for name in "ab"}) == 2, "the prompts should not answer alike"
    clients = {name: client_of(folder / name) for name in "ab"}
    asked = [*expected, *expected]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda each: clients[each[0]](each[1], url, max_tokens=12), asked))
    assert found == [expected[each] for each in asked]


def test_completions(folder: Path, prompts: list[CompressedPrompt], url: str) -> None:
    body = run_readme(folder / "a")["body"]
    found = post(f"{url}/v1/completions", {**body, "max_tokens": 12, "return_token_ids": True})
    wanted = prompts[0].answers([QUERIES[0]], AnswerSettings(12))[0].ids
    assert tuple(found["token_ids"][: len(wanted)]) == wanted
