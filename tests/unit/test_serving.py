"""`promptcomp serve`: the tokens of `generate`, batches of several memories, the registry, limits and faults."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from promptcomp.language_model import generation
from promptcomp.prompts.compressing import Compressor
from promptcomp.prompts.prompt_files import AnswerSettings, load_prompt, open_lm
from promptcomp.serving import ServeOptions
from promptcomp.serving.app import App
from promptcomp.serving.registry import Registry
from tests.prompt_runs import save_lm, save_run

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
    from promptcomp.batch import EncodedContext, EncodedQuery, collate

    return collate([EncodedContext((), tuple(EncodedQuery(ids, ()) for ids in queries))], 0)
