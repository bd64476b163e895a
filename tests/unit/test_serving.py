"""`promptcomp serve`: the tokens of `generate`, batches of several memories, the registry, limits and faults."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import os
import queue
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from starlette.testclient import TestClient

from promptcomp.batch import EncodedContext, EncodedQuery, collate
from promptcomp.bench import BenchPlan, LoadPlan
from promptcomp.bench.server_load import requests_of, run_server_bench
from promptcomp.config import ConfigError
from promptcomp.exports.export import export
from promptcomp.language_model import LanguageModel, LanguageModelConfig, generation, open_tokenizer, text_of
from promptcomp.memory import memory_tensors
from promptcomp.prompts.artifact import weights_hash
from promptcomp.prompts.compressing import Compressor
from promptcomp.prompts.prompt_files import AnswerSettings, _Streamer, load_prompt, open_lm
from promptcomp.serving import Refusal, ServeOptions
from promptcomp.serving.app import App
from promptcomp.serving.engine import Continuation, Engine
from promptcomp.serving.protocol import AnswerText
from promptcomp.serving.registry import Registry
from promptcomp.serving.server import open_served, run_server
from promptcomp.terminal import PlainConsole
from tests.forks import Fork
from tests.prompt_runs import WINDOW, save_lm, save_run

TEXTS = {"gist": "cat bench => foo \n", "mend": "angry owl tea => bar \nsalmon => foo \n", "full": "tiny tea => bar \n"}
METHODS = {
    "gist": {"name": "gist", "num_slots": 3, "train": "none"},
    "mend": {"name": "mend", "num_slots": 4},
    "full": {"name": "full_prompt"},
}
QUERIES = ("cat tea", "angry boat leek owl violin", "tiny", "boat boat leek")
NEW = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A registry for each kind of LM, and what else may lie in one."""
    found = {}
    for kind, layout in (("llama", "query_in_decoder"), ("t5", "query_in_encoder")):
        folder = tmp_path_factory.mktemp(kind)
        lm, registry = save_lm(folder / "lm", kind), folder / "registry"
        registry.mkdir()
        for name, method in METHODS.items():
            run = save_run(folder / name, lm, method, layout=layout)
            Compressor.load(run, device="cpu").compress(TEXTS[name]).save(registry / f"{name}.safetensors")
        found[kind] = registry
    lm = save_lm(found["llama"].parent / "another", "llama", seed=1)
    run = save_run(found["llama"].parent / "foreign", lm, METHODS["gist"])
    Compressor.load(run, device="cpu").compress("cat").save(found["llama"] / "foreign.safetensors")
    return found


def open_app(folder: Path, key: str | None = None, **options: Any) -> App:
    prompt = load_prompt(folder / "gist.safetensors", device="cpu")
    lm = open_lm(prompt.info, None, "gist").eval()
    return App(lm, "lm", Registry(folder, lm, "lm"), ServeOptions(**options), key)


def test_prompts_that_do_not_say_where_their_lm_is_ask_for_it(folders: dict[str, Path], tmp_path: Path) -> None:
    lm = folders["llama"].parent / "lm"
    run = save_run(tmp_path / "run", lm, {"name": "gist", "num_slots": 2, "train": "lm"})
    export(run, tmp_path / "export", "tensors")
    (tmp_path / "registry").mkdir()
    with pytest.raises(ConfigError, match=r"registry: no compressed prompt is in it; name the LM to serve with --lm$"):
        open_served(tmp_path / "registry", None, None, "cpu")
    Compressor.load(tmp_path / "export", device="cpu").compress("cat").save(tmp_path / "registry" / "a.safetensors")
    with pytest.raises(ConfigError, match=r"registry: its prompts do not say where their LM is; name the LM"):
        open_served(tmp_path / "registry", None, None, "cpu")
    opened, _ = open_served(tmp_path / "registry", str(run), None, "cpu")
    prompt = load_prompt(tmp_path / "registry" / "a.safetensors", device="cpu", model=run)
    assert weights_hash(opened.hf) == prompt.info.lm_hash


@pytest.fixture(scope="module")
def client(folders: dict[str, Path]) -> Iterator[TestClient]:
    with TestClient(open_app(folders["llama"], max_body=20_000).asgi) as client:
        yield client


def asked(name: str | None = None, query: Any = QUERIES[0], **more: Any) -> dict[str, Any]:
    body = {"model": "lm" if name is None else f"lm:{name}", "prompt": query, "max_tokens": NEW, "temperature": 0}
    return {**body, "return_token_ids": True, **more}


def expected(folder: Path, name: str) -> list[list[int]]:
    prompt = load_prompt(folder / f"{name}.safetensors", device="cpu")
    return [list(prompt.answers([query], AnswerSettings(NEW))[0].ids) for query in QUERIES]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_greedy_answers_are_those_of_generate(kind: str, folders: dict[str, Path]) -> None:
    """All memories at once: vectors, keys and values (encoder states), rows that join and leave while others run."""
    with TestClient(open_app(folders[kind], batch_size=5).asgi) as client, ThreadPoolExecutor(12) as pool:
        every = [(name, number) for number in range(len(QUERIES)) for name in METHODS]
        jobs = [pool.submit(client.post, "/v1/completions", json=asked(n, QUERIES[i])) for n, i in every]
        replies = [job.result() for job in jobs]
    wanted = {name: expected(folders[kind], name) for name in METHODS}
    for (name, number), reply in zip(every, replies, strict=True):
        assert reply.status_code == 200, reply.text
        found = reply.json()
        assert found["choices"][0]["token_ids"] == wanted[name][number]
        assert found["usage"]["completion_tokens"] == len(wanted[name][number])
        assert found["choices"][0]["finish_reason"] == ("length" if len(wanted[name][number]) == NEW else "stop")


def test_rows_that_join_and_are_cut_change_no_numbers(folders: dict[str, Path]) -> None:
    prompt = load_prompt(folders["llama"] / "gist.safetensors", device="cpu")
    lm = open_lm(prompt.info, None, "gist").eval().double()
    ids = [(3, 4, 5, 6), (7,), (8, 9)]
    memory = prompt.memory.map(lambda t: t.double() if t.is_floating_point() else t)
    after = (11, 12, 13)

    @torch.no_grad()
    def alone(query: tuple[int, ...]) -> torch.Tensor:
        state = generation.start(lm, memory, _batch([query]), 1)
        for token in after:
            state.step(torch.tensor([token]))
        return lm.head(state.hidden)[0]

    with torch.no_grad():
        state = generation.start(lm, memory, _batch(ids[:2]), 1)
        state.step(torch.tensor([after[0]] * 2))
        state.step(torch.tensor([after[1]] * 2))
        state.join(generation.start(lm, None, _batch([(5, 6)]), 1))  # type: ignore[arg-type]
        state.select(torch.tensor([1, 2]))
        state.trim()
        state.step(torch.tensor([after[2], after[0]]))
        torch.testing.assert_close(lm.head(state.hidden)[0], alone(ids[1]), rtol=0, atol=1e-12)


def _batch(queries: list[tuple[int, ...]]) -> Any:
    return collate([EncodedContext((), tuple(EncodedQuery(ids, ()) for ids in queries))])


def test_the_protocol(client: TestClient, folders: dict[str, Path]) -> None:
    models = client.get("/v1/models").json()["data"]
    assert [each["id"] for each in models] == ["lm", "lm:full", "lm:gist", "lm:mend"]  # and nothing for another LM
    for each in models:
        assert client.get(f"/v1/models/{each['id']}").json() == each
    foreign = client.get("/v1/models/lm:foreign")
    assert (foreign.status_code, "another LM" in foreign.json()["error"]["message"]) == (422, True)
    whole = client.post("/v1/completions", json=asked("mend")).json()
    field = client.post(
        "/v1/completions", json={**asked(), "kv_transfer_params": {"promptcomp": "mend"}, "prompt": [QUERIES[0]]}
    ).json()
    assert field["choices"] == whole["choices"]
    chat = {**asked("mend"), "messages": [{"role": "user", "content": [{"type": "text", "text": QUERIES[0]}]}]}
    said = client.post("/v1/chat/completions", json=chat).json()
    assert said["choices"][0]["message"]["content"] == whole["choices"][0]["text"]
    with client.stream("POST", "/v1/chat/completions", json={**chat, "stream": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    pieces = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == "[DONE]"
    assert "".join(p["choices"][0]["delta"]["content"] for p in pieces) == whole["choices"][0]["text"]
    assert [id for p in pieces for id in p["choices"][0]["token_ids"]] == whole["choices"][0]["token_ids"]
    assert [p["choices"][0]["finish_reason"] for p in pieces][-1] == whole["choices"][0]["finish_reason"]
    own = list(load_prompt_ids(folders["llama"]))
    for given in (own, [own]):
        ids = client.post("/v1/completions", json=asked("mend", given)).json()
        assert ids["choices"] == whole["choices"]


def load_prompt_ids(folder: Path) -> tuple[int, ...]:
    return load_prompt(folder / "mend.safetensors", device="cpu").reader.query_ids(QUERIES[0])


def test_what_nobody_expected_is_an_error_of_the_protocol(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_app(folders["llama"])
    monkeypatch.setattr(app, "_wanted", lambda *given: {}["nothing"])
    with TestClient(app.asgi, raise_server_exceptions=False) as client:
        answer = client.post("/v1/completions", json={"model": app.name, "prompt": "w1 w2"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")


def test_stops_and_sampling(client: TestClient) -> None:
    whole = client.post("/v1/completions", json=asked("full", ignore_eos=True)).json()["choices"][0]
    assert len(whole["token_ids"]) == NEW
    word = whole["text"].split()[2]
    cut = client.post("/v1/completions", json=asked("full", ignore_eos=True, stop=[word])).json()["choices"][0]
    assert cut["text"] == whole["text"][: whole["text"].find(word)]
    assert cut["finish_reason"] == "stop"
    drawn = [asked("full", temperature=1.5, top_p=0.9, seed=seed, ignore_eos=True) for seed in (1, 1, 2)]
    first, again, other = [client.post("/v1/completions", json=body).json()["choices"][0]["text"] for body in drawn]
    assert first == again != other
    # as likeliest: less than a float32 holds, and others' answers are not lost with it
    least = asked("full", temperature=1, top_p=1e-300, ignore_eos=True)
    assert client.post("/v1/completions", json=least).json()["choices"][0]["text"] == whole["text"]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, asked("gist", n=2), "n=2 is not offered"),
        (400, asked("gist", n=True), "n=True is not offered"),
        (400, asked("gist", logprobs=True), "logprobs"),
        (400, asked("gist", logprobs=0), "logprobs=0 is not offered"),
        (400, asked("gist", temperature=-1), "temperature"),
        (400, asked("gist", temperature="0.5"), "temperature: Input should be a valid number"),
        (400, asked("gist", max_tokens=True), "max_tokens: Input should be a valid integer"),
        (400, asked("gist", stop=[1]), "stop.0: Input should be a valid string"),
        (400, asked("gist", stop=["x" * 10_000]), "stop: at most"),
        (400, asked("gist", top_k=5), "top_k=5 is not offered"),
        (400, asked("gist", guided_json={}), "guided_json={} is not offered"),
        (400, asked("gist", kv_transfer_params={"promptcomp": "mend"}), "name one"),
        (400, asked(kv_transfer_params={"promptcomp": ["gist"]}), "promptcomp: ['gist'] is no name of a prompt"),
        (400, asked("gist", stream=True, stream_options={"include_usage": "no"}), "stream_options.include_usage"),
        (400, asked("gist", [True]), "prompt"),
        (400, asked(None, ""), "a query is empty"),
        (400, asked("gist", ["a", "b"]), "one text"),
        (400, asked("gist", [10**6]), "token ids"),
        (400, asked("gist", [[5], [6]]), "one text, or token ids"),
        (400, asked("gist", [[]]), "one text, or token ids"),
        (400, asked("gist", [5] * WINDOW), "there is room for 0"),
        (400, asked("gist", max_tokens=2049), "at most 2048 tokens (serve --max-tokens)"),
        (400, {"model": "lm"}, "prompt is missing"),
        (404, asked("nowhere"), "no compressed prompt 'nowhere'"),
        (404, asked("../lm/model"), "no compressed prompt"),
        (404, asked("..%2flm%2fmodel"), "no compressed prompt"),
        (404, asked("link"), "no compressed prompt"),
        (404, asked("folder"), "no compressed prompt"),
        (404, asked(".hidden"), "no compressed prompt"),
        (404, {**asked(), "model": "gpt-4"}, "known: lm"),
        (422, asked("foreign"), "made for another LM: lm has other weights"),
        (422, asked("damaged"), "damaged.safetensors: cannot be read"),
        (413, asked("gist", "x" * 30_000), "larger than 20,000 bytes"),
    ],
)
def test_what_is_refused(
    status: int, body: dict[str, Any], words: str, client: TestClient, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders["llama"]
    link, damaged = folder / "link.safetensors", folder / "damaged.safetensors"
    if not link.is_symlink():
        link.symlink_to(folder / "gist.safetensors")
        (folder / "folder.safetensors").mkdir()
        shutil.copy(folder / "gist.safetensors", folder / ".hidden.safetensors")
        damaged.write_bytes((folder / "gist.safetensors").read_bytes()[:-10])
        os.utime(damaged, (0, 0))
    reply = client.post("/v1/completions", json=body)
    assert reply.status_code == status
    assert words in reply.json()["error"]["message"]
    assert str(folder) not in reply.text


def test_other_bodies_and_chats(client: TestClient) -> None:
    for content in (b"{", b"[]", b"[" * 100_0, b'{"model": "lm", "model": "lm"}', b"\xff"):
        assert client.post("/v1/completions", content=content).status_code == 400
    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    for model, words in (("lm:gist", "one turn"), ("lm", "no chat template")):
        reply = client.post("/v1/chat/completions", json={"model": model, "messages": turns})
        assert (reply.status_code, words in reply.json()["error"]["message"]) == (400, True)
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    reply = client.post("/v1/chat/completions", json=asked(messages=[{"role": "user", "content": image}]))
    assert reply.json()["error"]["message"].startswith("messages.0.content.0.type: Input should be 'text'")
    headers = {"Content-Length": "abc"}  # of whatever stands in front
    assert client.post("/v1/completions", content=b"{}", headers=headers).status_code == 400
    assert client.get("/v1/completions").json()["error"]["code"] == "method_not_allowed"
    assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"


def test_what_cannot_be_served(folders: dict[str, Path]) -> None:
    lm, nowhere = str(folders["llama"].parent / "lm"), ServeOptions(host="\udcff", port=0)
    with pytest.raises(ConfigError, match=r"dtype = 'int4': Input should be 'float32'"):
        run_server(folders["llama"], lm, ServeOptions(port=0), PlainConsole(), dtype="int4", device="cpu")
    with pytest.raises(ConfigError, match=r"cannot be listened on; give another --port, or another --host"):
        run_server(folders["llama"], "no LM, which is opened later", nowhere, PlainConsole(), device="cpu")


def test_files_come_change_and_go(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in METHODS:
        shutil.copy(folders["llama"] / f"{name}.safetensors", tmp_path)
    app = open_app(tmp_path)
    before = app.registry.find("mend")
    assert app.registry.find("mend") is before
    target, content = tmp_path / "mend.safetensors", (tmp_path / "full.safetensors").read_bytes()
    target.write_bytes(content[:-5])  # written over while it is served, and not whole yet
    assert "truncated" in str(app.registry.infos()["mend"])
    with pytest.raises(Refusal, match="may be being written now") as caught:
        app.registry.find("mend")
    assert (caught.value.status, caught.value.retry_after) == (503, 1)
    kept = load_prompt(folders["llama"] / "mend.safetensors").memory
    torch.testing.assert_close(memory_tensors(before.memory), memory_tensors(kept))
    target.write_bytes(content)
    assert app.registry.find("mend").info.method == "full_prompt"
    target.unlink()
    with pytest.raises(Refusal, match="no compressed prompt 'mend'"):
        app.registry.find("mend")
    shutil.copy(tmp_path / "gist.safetensors", tmp_path / "new.safetensors")
    assert app.registry.find("new").info.method == "gist"
    app.name = "user/lm"
    for path in ("user/lm:new", "user%2Flm%3Anew"):
        assert TestClient(app.asgi).get(f"/v1/models/{path}").json()["id"] == "user/lm:new"
    os.mkfifo(tmp_path / "pipe.safetensors")  # would wait without end
    with pytest.raises(Refusal, match="no compressed prompt"):
        app.registry.find("pipe")
    shutil.rmtree(tmp_path)
    assert app.registry.infos() == {}


def test_keys_health_and_metrics(folders: dict[str, Path], tmp_path: Path) -> None:
    with TestClient(open_app(folders["llama"], key="secret").asgi) as client:
        assert client.post("/v1/completions", json=asked()).status_code == 401
        assert client.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/v1/models/lm").status_code == 401
        for given, status in (("secret", 401), ("Bearer Secret", 401), ("Basic secret", 401), ("bearer secret", 200)):
            assert client.get("/v1/models", headers={"Authorization": given}).status_code == status
        reply = client.post("/v1/completions", json=asked("gist"), headers={"Authorization": "Bearer secret"})
        assert reply.status_code == 200
        while (health := client.get("/health").json())["running"]:  # the answer is sent a moment before it is left
            time.sleep(0.01)
        assert health == {"status": "ok", "model": "lm", "running": 0}
        text = client.get("/metrics").text
    assert 'promptcomp_requests_total{status="401"} 1.0' in text
    assert f"promptcomp_generated_tokens_total {reply.json()['usage']['completion_tokens']:.1f}" in text
    (tmp_path / "key").write_text("from a file\n")
    assert ServeOptions(api_key_file=tmp_path / "key").api_key() == "from a file"


class Scarce:
    """Memory for 20 rows: more of them fail as torch fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 20) -> None:
        step = generation._DecoderRows.step
        self.seen: list[int] = []

        def with_limit(rows: Any, tokens: torch.Tensor) -> None:
            self.seen.append(len(tokens))
            if len(tokens) > most:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
            step(rows, tokens)

        monkeypatch.setattr(generation._DecoderRows, "step", with_limit)


def test_200_requests_with_memory_for_20(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost, greedy or drawn: what was written is kept, and half as many go on at a time."""
    app, bodies = open_app(folders["llama"], batch_size=64, max_waiting=200), [asked("gist", q) for q in QUERIES]
    bodies += [asked("mend", QUERIES[0], temperature=1, seed=seed, ignore_eos=True) for seed in range(6)]

    async def every() -> tuple[list[Any], list[Any]]:
        async with asgi_client(app) as client:
            wanted = [await client.post("/v1/completions", json=body) for body in bodies]
            scarce = Scarce(monkeypatch)
            found = await asyncio.gather(*(client.post("/v1/completions", json=bodies[i % 10]) for i in range(200)))
            assert max(scarce.seen) > 20 >= app.engine.rows
            return wanted, found

    wanted, found = asyncio.run(every())
    assert [each.json()["choices"] for each in found] == [wanted[i % 10].json()["choices"] for i in range(200)]


def asgi_client(app: App) -> Any:
    """An HTTP client of the application itself, with its engine running."""

    @contextlib.asynccontextmanager
    async def opened() -> Any:
        async with app.asgi.router.lifespan_context(app.asgi):
            transport = httpx2.ASGITransport(app=app.asgi)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
                yield client

    return opened()


def test_a_full_queue_and_a_small_cache(folders: dict[str, Path]) -> None:
    prompt = load_prompt(folders["llama"] / "gist.safetensors", device="cpu")
    lm = open_lm(prompt.info, None, "gist").eval()
    engine, events = Engine(lm, rows=2, positions=40, waiting=1), queue.SimpleQueue[Any]()

    def wanted(positions: int) -> Continuation:
        settings = generation.Settings(max_new_tokens=3)
        return Continuation(prompt.memory, (3, 4), settings, positions, events.put)

    with pytest.raises(Refusal, match="the cache here has 40"):
        engine.submit(wanted(41))
    first = [wanted(15), wanted(25), wanted(15)]
    for each in first:
        engine.submit(each)
    with pytest.raises(Refusal, match="come again later") as caught:
        engine.submit(wanted(15))
    assert (caught.value.status, caught.value.retry_after) == (429, 1)
    assert engine._admit()
    assert engine._entering == first[:1]  # two of 25 positions are more than 40
    first[1].unwanted = True
    assert engine._admit()
    assert engine._entering == [first[0], first[2]]
    engine.start()
    told = [events.get(timeout=60) for _ in range(8)]  # a token for each of 3 steps, and why they ended
    engine.stop()
    assert told.count("length") == 2


def test_one_bad_prompt_fails_alone(folders: dict[str, Path]) -> None:
    prompt = load_prompt(folders["llama"] / "mend.safetensors", device="cpu")
    lm = open_lm(prompt.info, None, "mend").eval()
    engine, good, bad, wrong = Engine(lm, rows=4), *(queue.SimpleQueue[Any]() for _ in range(3))
    broken = prompt.memory.map(lambda tensor: tensor * torch.nan if tensor.is_floating_point() else tensor)
    narrow = prompt.memory.map(lambda tensor: tensor[..., :-1] if tensor.is_floating_point() else tensor)
    for memory, events in ((prompt.memory, good), (broken, bad), (narrow, wrong)):
        settings = generation.Settings(max_new_tokens=3)
        engine.submit(Continuation(memory, (3, 4), settings, 9, events.put))
    engine.start()
    assert [good.get(timeout=60) for _ in range(4)][-1] == "length"
    assert isinstance(bad.get(timeout=60), ConfigError)
    assert isinstance(wrong.get(timeout=60), RuntimeError)
    engine.stop()


def test_texts_come_in_pieces_that_stay() -> None:
    tokenizer = LanguageModel.from_config(LanguageModelConfig(path="builtin:toy_decoder")).tokenizer
    assert tokenizer is not None
    ids = tokenizer("horse plum shirt apple horse plum", add_special_tokens=False)["input_ids"]
    for stops in ((), ("shirt app", "never"), ("e horse",), ("ple horse plum more",)):
        text = AnswerText(tokenizer, stops)
        pieces = [text.add(token) for token in ids if not text.stopped]
        whole = str(tokenizer.decode(ids))
        places = [place for stop in stops if (place := whole.find(stop)) >= 0]
        assert "".join([*pieces, text.end()]) == whole[: min(places, default=len(whole))]


def test_texts_keep_their_spaces_whatever_the_tokenizer_would_clean() -> None:
    tokenizer = open_tokenizer(LanguageModelConfig(path="builtin:toy_student"))
    said = "i buy a crow , what is the price ?"
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    tokenizer.clean_up_tokenization_spaces = True  # as files of transformers 4 have it
    assert tokenizer.decode(ids) != said == text_of(tokenizer, ids)
    text, shown = AnswerText(tokenizer), list[str]()
    assert "".join([*map(text.add, ids), text.end()]) == said
    streamer = _Streamer(tokenizer, shown.append)
    for token in ids:
        streamer.on_tokens([token])
    streamer.end()
    assert "".join(shown) == said


@pytest.fixture(scope="module")
def address(folders: dict[str, Path]) -> Iterator[tuple[str, int, Fork]]:
    with own_process(folders["llama"]) as served:
        yield served


@contextlib.contextmanager
def own_process(registry: Path, *more: str) -> Iterator[tuple[str, int, Fork]]:
    """A server of its own process on the loopback: host, port, process."""
    words = ("--lm", str(registry.parent / "lm"), "--port", "0", "--max-body", "20000", *more)
    with Fork("promptcomp", "serve", str(registry), *words) as process:
        while not (found := re.search(r"http://(.+):(\d+)", process.printed()[1])):
            assert process.poll() is None, process.printed()
            time.sleep(0.05)
        yield found[1], int(found[2]), process


def test_bench_measures_a_server(
    address: tuple[str, int, Fork], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompt.txt").write_text("cat tea boat")
    (tmp_path / "body.json").write_text(json.dumps({"model": "lm:gist", "prompt": "{input} tea", "seed": 1}))
    plan, server = BenchPlan(new_tokens=3), f"http://{address[0]}:{address[1]}/v1"
    (tmp_path / "none.json").write_text(json.dumps({"prompt": "{input}"}))
    with pytest.raises(ConfigError, match=r"none.json: is no request; it has a model"):
        requests_of(LoadPlan(server, compressed=str(tmp_path / "none.json")), 3)
    load = LoadPlan(
        server,
        model="lm",
        text=tmp_path / "prompt.txt",
        compressed=str(tmp_path / "body.json"),
        cached="lm:full",
        concurrency="1,2",
        requests=3,
        rounds=2,
        completions=True,
    )
    ways = requests_of(load, 3)
    first, second = ways["full"]("owl"), ways["full"]("owl")
    assert first["prompt"] != second["prompt"]
    assert first["prompt"].endswith("] cat tea boatowl")
    assert ways["compressed"]("owl")["prompt"] == "owl tea"
    assert ways["cached"]("owl") == {**ways["cached"]("owl"), "model": "lm:full", "prompt": "owl", "ignore_eos": True}
    found = run_server_bench(load, load.loads(), plan, tmp_path / "out", PlainConsole(), False)
    assert [(each.way, each.concurrency) for each in found.loads] == [(w, c) for w in ways for c in (1, 2)]
    assert {each.tokens for each in found.loads} == {3.0}
    assert not any(each.failed for each in found.loads)
    assert "vs full" in capsys.readouterr().out
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"load.json", "load.csv", "load.png", "load.svg"}
    with pytest.raises(ConfigError, match=r"refuses the compressed: .*no compressed prompt"):
        run_server_bench(replace(load, compressed="lm:nowhere"), (1,), plan, None, PlainConsole(), False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"data: [DONE]\n\n", "no piece of an answer"),
        (b"data: {half\n\n", "refuses the compressed"),
        (b'data: {"choices": [{"index": 0, "text": "a"}]}\n\n', "refuses the compressed"),  # breaks off after it
        (None, "refuses the compressed: .*500"),
    ],
)
def test_bench_tells_what_a_server_does_wrong(content: bytes | None, words: str) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(500 if content is None else 200)
            self.send_header("Content-Type", "text/event-stream")
            ends = b"DONE" in (content or b"DONE") or b"half" in content
            self.send_header("Content-Length", str(len(content or b"") + (0 if ends else 100)))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        load = LoadPlan(f"http://127.0.0.1:{server.server_port}/v1", compressed="lm", requests=1, completions=True)
        with pytest.raises(ConfigError, match=words):
            run_server_bench(load, (1,), BenchPlan(new_tokens=3), None, PlainConsole(), False)
        server.shutdown()


def test_bench_of_a_server_that_is_busy_hangs_or_outlasts_the_user(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[bytes] = []
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            if b"whole" in asked[-1] and len(asked) > 3:
                self.send_error(429)
                return
            if len(asked) == last:
                stop()
                over.wait()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'data: {"choices": [{"index": 0, "text": "a"}]}\n\ndata: [DONE]\n\n')

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        load = LoadPlan(url, model="lm", cached="whole", compressed="lm", requests=2, rounds=1, completions=True)

        def bench() -> str:
            asked.clear()
            run_server_bench(load, (1, 2), BenchPlan(new_tokens=3), None, PlainConsole(), False)
            return capsys.readouterr().out

        last, stop = 0, print
        found = bench()
        assert "cached, 2 at a time: 2 of 2 requests failed: Error code: 429" in found
        assert sum(line.startswith("compressed") for line in found.splitlines()) == 2
        last, load = 5, replace(load, cached=None)
        monkeypatch.setattr("promptcomp.bench.server_load._PATIENCE", 0.1)
        assert "1 of 2 requests failed: nothing came from it for 0.1 seconds" in bench()
        monkeypatch.undo()
        stop = lambda: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
        with pytest.raises(KeyboardInterrupt):
            bench()
        found = capsys.readouterr().out
        assert "stopped after 1 of 2 measurements" in found
        assert sum(line.startswith("compressed") for line in found.splitlines()) == 1
        over.set()
        server.shutdown()


def test_the_official_client(address: tuple[str, int, Fork]) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"http://{address[0]}:{address[1]}/v1", api_key="none", max_retries=0) as client:
        models = {model.id: model for model in client.models.list()}
        assert client.models.retrieve("lm:gist") == models["lm:gist"]
        assert client.models.retrieve("lm") == models["lm"]
        for name in ("lm:nowhere", "gpt-4", "../lm", "user/name:gist"):
            with pytest.raises(openai.NotFoundError, match="there is no model"):
                client.models.retrieve(name)
        common = {"model": "lm:gist", "max_tokens": NEW, "temperature": 0}
        turns = [{"role": "user", "content": QUERIES[1]}]
        for kind, said in (
            (client.chat.completions, {"messages": turns}),
            (client.completions, {"prompt": QUERIES[1]}),
        ):
            whole = kind.create(**common, **said)
            pieces = list(kind.create(**common, **said, stream=True, stream_options={"include_usage": True}))
            text = [getattr(p.choices[0], "delta", p.choices[0]) for p in pieces[:-1]]
            texts = [part.content if "messages" in said else part.text for part in text]
            wanted = whole.choices[0].message.content if "messages" in said else whole.choices[0].text
            assert "".join(texts) == wanted
            assert pieces[-1].usage == whole.usage
            assert [p.choices[0].finish_reason for p in pieces[:-1]] == [None] * (len(pieces) - 2) + [
                whole.choices[0].finish_reason
            ]
        with pytest.raises(openai.NotFoundError, match="no compressed prompt"):
            client.completions.create(**{**common, "model": "lm:nowhere"}, prompt="cat")
        with pytest.raises(openai.BadRequestError, match="n=2"):
            client.completions.create(**common, prompt="cat", n=2)


def test_a_real_server(address: tuple[str, int, Fork], folders: dict[str, Path]) -> None:
    """A body of 100 MB, clients that leave, and Ctrl-C while an answer is written."""
    host, port, process = address
    base = f"http://{host}:{port}"
    with socket.create_connection((host, port)) as large:
        large.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 1000)
        assert b" 413 " in large.recv(1000)
    with httpx2.Client(base_url=base, timeout=60) as client:
        long = asked("gist", max_tokens=2000, ignore_eos=True)
        for body in (long, {**long, "stream": True}):
            content = json.dumps(body).encode()
            with socket.create_connection((host, port)) as leaving:
                head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
                leaving.sendall(head.encode() + content)
                while not client.get("/health").json()["running"]:
                    pass
            while client.get("/health").json()["running"]:  # it does not write 2000 tokens for nobody
                pass
        text = client.get("/metrics").text
        made = float(next(line for line in text.splitlines() if line.startswith("promptcomp_generated")).split()[1])
        assert made < 4000
        finishes_when_told_to_stop(client, process, signal.SIGINT)


def test_sigterm_lets_answers_be_finished(folders: dict[str, Path]) -> None:
    with (
        own_process(folders["llama"]) as (host, port, process),
        httpx2.Client(base_url=f"http://{host}:{port}", timeout=60) as client,
    ):
        finishes_when_told_to_stop(client, process, signal.SIGTERM)


def test_answers_that_outlast_the_grace_are_told_so(folders: dict[str, Path]) -> None:
    body = asked("gist", max_tokens=2000, ignore_eos=True)
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        loopback = "::1"
    except OSError:  # a machine without IPv6
        loopback = "127.0.0.1"
    with (
        own_process(folders["llama"], "--grace", "0", "--host", loopback) as (host, port, process),
        httpx2.Client(base_url=f"http://{host}:{port}", timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        assert host in ("[::1]", "127.0.0.1")
        whole = pool.submit(client.post, "/v1/completions", json=body)
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as reply:
            lines = reply.iter_lines()
            next(lines)
            while client.get("/health").json()["running"] < 2:
                pass
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "stopping"
        assert whole.result().status_code == 503
        assert process.wait() == 0
        assert "Traceback" not in process.printed()[1]


def finishes_when_told_to_stop(client: httpx2.Client, process: Fork, how: signal.Signals) -> None:
    body = asked("gist", max_tokens=300, ignore_eos=True, stream=True)
    with client.stream("POST", "/v1/completions", json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        process.send_signal(how)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert '"finish_reason": "length"' in rest[-2]
    assert process.wait() == 0
