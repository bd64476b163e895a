"""The connector in a real vLLM server: PROMPTCOMP_TEST_VLLM names the `vllm` program of an environment that has it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import promptcomp
from promptcomp.exports.export import export
from promptcomp.language_model import LanguageModelConfig
from promptcomp.language_model.loading import open_tokenizer
from promptcomp.memory import load_memory, save_memory
from promptcomp.prompts.compressing import Compressor
from promptcomp.prompts.prompt_files import AnswerSettings, load_prompt
from promptcomp.prompts.sources import PromptSource
from promptcomp.rivals.evict import Evict
from tests.prompt_runs import save_run

VLLM = os.environ.get("PROMPTCOMP_TEST_VLLM")
pytestmark = pytest.mark.skipif(VLLM is None, reason="PROMPTCOMP_TEST_VLLM names no vllm program")

TEXT = "cat bench => foo \nangry owl tea => bar \nsalmon => foo \n"
LONG = TEXT * 4
QUERIES = ("cat tea", "angry boat leek owl violin", "tiny", "cat " * 50, "owl boat " * 40 + "tea")
NEW, KEY, START = 12, "secret", 240
FLAGS = (
    *("--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "8", "--enforce-eager", "--block-size", "32"),
    *("--max-num-batched-tokens", "64", "--num-gpu-blocks-override", "32", "--api-key", KEY),
    *("--enable-lora", "--max-lora-rank", "16"),
)
"""Queries are longer than what a step may read, and eight requests do not fit the pages at once."""
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(promptcomp.__file__).parents[1]),
}


def save_llama(folder: Path, seed: int) -> Path:
    """A random LM whose heads are wide enough for vLLM."""
    tokenizer = open_tokenizer(LanguageModelConfig(path="builtin:toy_decoder"))
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 3, "initializer_range": 0.2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    scaled = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rope = {**scaled, "original_max_position_embeddings": 128}
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads, **ids, rope_parameters=rope)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Shop:
    """A folder with an LM, runs, and a registry."""

    def __init__(self, folder: Path) -> None:
        self.lm, self.registry = save_llama(folder / "lm", 0), folder / "registry"
        self.registry.mkdir()
        other = save_llama(folder / "other", 1)
        gist = {"name": "gist", "num_slots": 5, "train": "none"}
        compressor = Compressor.load(save_run(folder / "gist", self.lm, gist), device="cpu")
        self.add("gist", compressor.compress(TEXT))
        self.add("second", compressor.compress("tiny violin => bar \nleek owl => foo \n"))
        whole = Compressor.load(save_run(folder / "whole", self.lm, {"name": "full_prompt"}), device="cpu")
        self.add("whole", whole.compress(LONG))
        self.add("evicted", whole.compression(PromptSource(LONG), rival=Evict(score="knorm", slots=40)).prompt)
        icae = {"name": "icae", "num_slots": 4, "slots": "kv"}
        self.add("icae", Compressor.load(save_run(folder / "icae", self.lm, icae), device="cpu").compress(TEXT))
        lora = save_run(folder / "lora", self.lm, {**gist, "train": "lora"})
        self.add("lora", Compressor.load(lora, device="cpu").compress(TEXT))
        export(lora, folder / "adapter", "peft")
        self.adapter = folder / "adapter"
        self.add("foreign", Compressor.load(save_run(folder / "far", other, gist), device="cpu").compress(TEXT))
        tuned = save_run(folder / "tuned", self.lm, {"name": "prompt_tuning", "num_slots": 3, "share": "shared"})
        self.add("vectors", Compressor.load(tuned, device="cpu").compress(TEXT))
        self.add("damaged", compressor.compress("owl tea => bar \n"))  # of its own: a hash once read is not read again
        damaged = bytearray((self.registry / "damaged.safetensors").read_bytes())
        damaged[-50] ^= 1  # in a tensor
        (self.registry / "damaged.safetensors").write_bytes(damaged)
        (self.registry / "text.safetensors").write_text("no safetensors at all")
        shutil.copy(self.registry / "gist.safetensors", folder / "outside.safetensors")
        (self.registry / "link.safetensors").symlink_to(folder / "outside.safetensors")

    def add(self, name: str, prompt: Any) -> None:
        prompt.save(self.registry / f"{name}.safetensors")

    def expected(self, name: str, queries: tuple[str, ...] = QUERIES) -> dict[str, list[int]]:
        """What `promptcomp generate` answers."""
        prompt = load_prompt(self.registry / f"{name}.safetensors", device="cpu")
        answers = prompt.answers(queries, AnswerSettings(max_new_tokens=NEW))
        return {query: list(answer.ids) for query, answer in zip(queries, answers, strict=True)}


class Server:
    """A running server."""

    def __init__(self, port: int, log: Path, process: subprocess.Popen[bytes]) -> None:
        self.port, self.log, self.process = port, log, process

    def ask(self, path: str, body: dict[str, Any] | str | None = None, key: str = KEY) -> tuple[int, Any]:
        data = None if body is None else (body if isinstance(body, str) else json.dumps(body)).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                text = answer.read().decode()
                return answer.status, json.loads(text) if path.startswith("/v1") else text
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def complete(self, name: str, query: Any, model: str = "lm", **more: Any) -> tuple[int, Any]:
        body = {"model": model, "prompt": query, "max_tokens": NEW, "temperature": 0, "return_token_ids": True}
        status, answer = self.ask("/v1/completions", {**body, "kv_transfer_params": {"promptcomp": name}, **more})
        return status, _ids(answer["choices"][0]) if status == 200 else answer

    def metric(self, name: str) -> float:
        lines = self.ask("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:{name}_total"))


def _ids(choice: dict[str, Any]) -> list[int]:
    """The answer's tokens without the one that ended it."""
    return choice["token_ids"][:-1] if choice["finish_reason"] == "stop" else choice["token_ids"]


def command(shop: Shop, port: int, **transfer: Any) -> list[str]:
    connector = {
        "kv_connector": "PromptConnector",
        "kv_connector_module_path": "promptcomp.vllm_connector",
        "kv_role": "kv_consumer",
        "kv_connector_extra_config": {"registry": str(shop.registry)},
    }
    assert VLLM is not None
    return [
        *(VLLM, "serve", str(shop.lm), "--served-model-name", "lm", "--host", "127.0.0.1", "--port", str(port), *FLAGS),
        *("--kv-transfer-config", json.dumps({**connector, **transfer})),
        *("--middleware", "promptcomp.vllm_connector.PromptGate", "--lora-modules", f"adapter={shop.adapter}"),
    ]


@contextmanager
def started(shop: Shop, log: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("wb") as output:
        environment = {**os.environ, **ENVIRONMENT}
        process = subprocess.Popen(
            command(shop, port), stdout=output, stderr=output, env=environment, start_new_session=True
        )
    server = Server(port, log, process)
    try:
        for _ in range(START):
            try:
                if server.ask("/health")[0] == 200:
                    break
            except OSError:
                assert process.poll() is None, log.read_text()[-4000:]
                time.sleep(1)
        yield server
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The server and the processes it started, by its own group."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def server(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with started(shop, log) as running:
        yield running
    if place := os.environ.get("PROMPTCOMP_TEST_VLLM_LOG"):
        shutil.copy(log, place)


def test_many_requests_at_once_get_the_tokens_of_generate(shop: Shop, server: Server) -> None:
    """32 at once over three kinds of prompts, with pages for a few; queries are read in several steps."""
    expected = {name: shop.expected(name) for name in ("gist", "whole", "evicted")}
    asked = [(name, query) for name in expected for query in QUERIES]
    asked = (asked * 3)[:32]
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda one: server.complete(*one), asked))
    assert found == [(200, expected[name][query]) for name, query in asked]
    assert len({tuple(ids) for answers in expected.values() for ids in answers.values()}) > 5


def test_prefixes_of_two_prompts_are_never_mixed(shop: Shop, server: Server) -> None:
    """Same placeholders, same query, prefix caching on: each finds its own pages only, plain text finds neither."""
    query = QUERIES[-1]
    one, two = (shop.expected(name, (query,))[query] for name in ("gist", "second"))
    assert one != two
    before = server.metric("prefix_cache_hits")
    for _ in range(2):
        assert server.complete("gist", query) == (200, one)
        assert server.complete("second", query) == (200, two)
    assert server.metric("prefix_cache_hits") > before
    ids = server.ask("/tokenize", {"model": "lm", "prompt": query, "add_special_tokens": False})[1]
    body = {"model": "lm", "prompt": [0] * 5 + json.loads(ids)["tokens"], "max_tokens": NEW, "temperature": 0}
    status, plain = server.ask("/v1/completions", {**body, "return_token_ids": True})
    assert status == 200
    assert _ids(plain["choices"][0]) not in (one, two)


def test_chat_token_ids_lists_and_streams(shop: Shop, server: Server) -> None:
    expected = shop.expected("gist")
    body = {"model": "lm", "max_tokens": NEW, "temperature": 0, "return_token_ids": True}
    body |= {"kv_transfer_params": {"promptcomp": "gist"}}
    messages = [{"role": "user", "content": QUERIES[1]}]
    status, chat = server.ask("/v1/chat/completions", {**body, "messages": messages})
    assert (status, _ids(chat["choices"][0])) == (200, expected[QUERIES[1]])
    status, several = server.ask("/v1/completions", {**body, "prompt": list(QUERIES)})
    assert status == 200
    assert [_ids(choice) for choice in several["choices"]] == list(expected.values())
    status, _ = server.ask("/v1/chat/completions", {**body, "messages": [*messages, *messages]})
    assert status == 400


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("nowhere", 404, "there is no compressed prompt 'nowhere' here"),
        ("../outside", 400, "no name of a prompt"),
        ("link", 404, "there is no compressed prompt 'link' here"),
        ("foreign", 422, "made for other weights"),
        ("lora", 422, "made for other weights than"),
        ("vectors", 422, "holds a SoftPrompt"),
        ("text", 422, "no compressed prompt"),
        (7, 400, "no name of a prompt"),
    ],
)
def test_a_request_is_refused_with_a_status(server: Server, name: Any, status: int, says: str) -> None:
    found, answer = server.complete(name, "cat tea")
    assert found == status, answer
    assert says in json.loads(answer)["error"]["message"]


def test_options_that_need_the_prompts_tokens_are_refused(server: Server) -> None:
    for more in ({"echo": True}, {"prompt_logprobs": 1}):
        assert server.complete("gist", "cat tea", **more)[0] == 400
    assert server.complete("gist", [])[0] == 400


def test_without_the_key_nothing_is_told(server: Server) -> None:
    body = {"model": "lm", "prompt": "cat", "kv_transfer_params": {"promptcomp": "nowhere"}}
    assert server.ask("/v1/completions", body, key="wrong")[0] == 401


def test_what_fails_behind_the_gate_fails_alone(shop: Shop, server: Server) -> None:
    """A damaged tensor shows when the worker reads it; a request that evades the gate is refused by the connector."""
    expected = shop.expected("gist")
    evading = '{"model": "lm", "prompt": [5, 6], "kv_transfer_params": {"\\u0070romptcomp": "gist"}}'
    with ThreadPoolExecutor(16) as pool:
        good = [pool.submit(server.complete, "gist", query) for query in QUERIES]
        damaged = [pool.submit(server.complete, "damaged", "cat tea") for _ in range(3)]
        evaded = pool.submit(server.ask, "/v1/completions", evading)
        more = [pool.submit(server.complete, "gist", query) for query in QUERIES]
    assert [one.result() for one in good + more] == [(200, expected[query]) for query in QUERIES] * 2
    assert [one.result()[0] for one in damaged] == [500] * 3
    assert evaded.result()[0] == 500
    assert server.ask("/health")[0] == 200
    assert "does not match its hash" in server.log.read_text()
    assert "needs 5 times the token 0" in server.log.read_text()


def test_a_lora_run_through_vllms_own_adapters(shop: Shop, server: Server) -> None:
    expected = shop.expected("lora")
    for query in QUERIES:
        assert server.complete("lora", query, model="adapter") == (200, expected[query])
    assert server.complete("gist", "cat tea", model="adapter")[0] == 422


def test_a_prompt_replaced_while_it_is_served(shop: Shop, server: Server) -> None:
    """Every answer is the old prompt's or the new one's."""
    file = shop.registry / "changing.safetensors"
    versions = [load_memory(shop.registry / f"{name}.safetensors") for name in ("gist", "second")]
    query, done = QUERIES[1], threading.Event()
    wanted = [shop.expected(name, (query,))[query] for name in ("gist", "second")]
    save_memory(file, *versions[0])

    def replace() -> None:
        number = 0
        while not done.wait(0.02):
            number += 1
            save_memory(file, *versions[number % 2])

    changing = threading.Thread(target=replace)
    changing.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: server.complete("changing", query), range(40)))
    finally:
        done.set()
        changing.join()
    assert all(ids in wanted for status, ids in found if status == 200)
    assert sum(status == 200 for status, _ in found) >= 36
    assert {status for status, _ in found} <= {200, 500}
    save_memory(file, *versions[1])
    assert server.complete("changing", query) == (200, wanted[1])


def test_killed_while_it_loads_and_started_again(shop: Shop, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in shop.registry.iterdir()}
    with started(shop, tmp_path / "first.log") as server, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.complete, "whole", query) for query in QUERIES]
        time.sleep(0.2)
        os.killpg(server.process.pid, signal.SIGKILL)
        assert all(one.exception(60) is not None or one.result() for one in asked)
        server.process.wait()
    assert {path.name: path.read_bytes() for path in shop.registry.iterdir()} == before
    expected = shop.expected("whole")
    with started(shop, tmp_path / "second.log") as server:
        assert server.complete("whole", QUERIES[0]) == (200, expected[QUERIES[0]])


def test_a_policy_that_would_read_placeholders_is_refused_at_the_start(shop: Shop) -> None:
    done = subprocess.run(
        command(shop, 1, kv_load_failure_policy="recompute"),
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=START,
        check=False,
    )
    assert done.returncode
    assert "kv_load_failure_policy must be fail" in done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
