"""`promptcomp rationales` as a person runs it: a server on loopback, and a tiny LM."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from promptcomp.chat.local_lm import LocalLM
from promptcomp.chat.session import Writing
from tests.cli.conftest import Done, Run
from tests.judge_server import Answer, JudgeServer, completion, fault, serving

COUNT = 12


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """A file of sums; two rows have the same input."""
    numbers = [0, *range(COUNT - 1)]
    lines = [{"id": f"r{i}", "input": f"What is {n} + 1?", "label": f"( {n} + 1 )"} for i, n in enumerate(numbers)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return "rows.jsonl"


def _number(request: dict[str, Any]) -> int:
    found = re.search(r"What is (\d+) \+ 1", request["messages"][-1]["content"])
    assert found is not None
    return int(found[1])


def teacher(_: int, request: dict[str, Any]) -> Answer:
    """Right, except about 3 (wrong) and 4 (no marker)."""
    n = _number(request)
    text = {3: "I add. The answer is (9).", 4: "I do not know."}.get(n, f"I add one to {n}. The answer is ({n} + 1).")
    return completion(text + "\n\nQ: What is next?\nA:")


def _ask(run: Run, server: JudgeServer, rows: str, *words: str) -> Done:
    data = ("data.name=rationale_files", f"data.test=[{rows}]", "data.format=svamp", "--split", "test")
    ways = ("--model", "m", "--base-url", server.url, "--retries", "0", "-o", "out.jsonl")
    return run("rationales", *data, *ways, *words)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("word", "requests"), [("n", 0), ("y", COUNT - 1)])
def test_a_no_to_the_price_ends_as_judge_ends(
    word: str, requests: int, run: Run, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setattr("sys.stdin", _Terminal(f"{word}\n"))
    with serving(teacher) as server:
        done = _ask(run, server, rows, "--price-in", "1", "--price-out", "1")
    assert (done.returncode, len(server.requests)) == (0, requests)
    assert ("no request was sent" in done.stderr) == (word == "n")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_rows_report_and_nothing_paid_twice(run: Run, rows: str, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    with serving(teacher) as server:
        done = _ask(run, server, rows, "--json", "--price-in", "1", "--price-out", "1", "--yes")
        assert done.returncode == 0, done.stderr
        assert len(server.requests) == COUNT - 1
        again = _ask(run, server, rows, "--json", "--price-in", "1", "--price-out", "1")
        assert len(server.requests) == COUNT - 1
        asked = server.requests[0]
    report = json.loads(done.stdout)
    assert report == json.loads(again.stdout) == json.loads((tmp_path / "out.report.json").read_text())
    assert (asked["stop"], asked["temperature"], asked["max_tokens"]) == (["\nQ:"], 0.0, 128)
    assert [message["role"] for message in asked["messages"]] == ["system", *["user", "assistant"] * 6, "user"]
    assert report["parsed"] == {"ok": COUNT - 1, "no_marker": 1}
    assert (report["teacher_correct"], report["labelled"], report["missing"]) == (COUNT - 2, COUNT, 0)
    assert (report["prompt_tokens"], report["completion_tokens"]) == (1100, 110)
    found = _rows(tmp_path)
    assert [row["id"] for row in found] == [f"r{i}" for i in range(COUNT)]
    assert found[1]["llm_label"] == "(0 + 1)"
    assert found[1]["llm_rationale"] == "I add one to 0."
    assert (found[4]["llm_correct"], found[5]["parse_status"]) == (False, "no_marker")


def test_people_see_a_table(run: Run, rows: str) -> None:
    pytest.importorskip("openai")
    with serving(teacher) as server:
        done = _ask(run, server, rows)
    assert done.returncode == 0, done.stderr
    assert "Teacher accuracy: 83.3%" in done.stdout
    assert "the rationale does not end" in done.stdout


def test_what_it_writes_is_data(run: Run, rows: str, tiny_lm: Path) -> None:
    pytest.importorskip("openai")
    with serving(teacher) as server:
        assert _ask(run, server, rows).returncode == 0
    options = "dev_share: 0, max_rationale_tokens: 32, max_label_tokens: 8"
    data = f"data={{name: rationale_files, train: [out.jsonl], test: [out.jsonl], {options}}}"
    done = run("data", "show", "--method", "step_by_step", data, f"lm={{path: {tiny_lm}}}")
    assert done.returncode == 0, done.stderr
    assert "12" in done.stdout


@pytest.mark.parametrize(
    ("broken", "words"), [(fault(500, "boom"), "status 500"), (fault(401, "bad"), "key is refused"), (Answer(), "JSON")]
)
def test_an_endpoint_that_fails_half_way_loses_nothing(broken: Answer, words: str, run: Run, rows: str) -> None:
    pytest.importorskip("openai")
    with serving(lambda n, request: teacher(n, request) if n <= 5 else broken) as server:
        done = _ask(run, server, rows, "--concurrency", "1")
        assert done.returncode == 1
        assert words in done.stderr
        assert "5 of 11 texts" in done.stderr
        server.rule = teacher
        before = len(server.requests)
        healed = _ask(run, server, rows, "--json")
        assert len(server.requests) - before == 6
    assert json.loads(healed.stdout)["answered"] == COUNT


def test_refused_rows_are_counted_and_asked_again_on_demand(run: Run, rows: str, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    with serving(lambda n, r: fault(400, "too long") if _number(r) == 2 else teacher(n, r)) as server:
        done = _ask(run, server, rows, "--json")
        assert (json.loads(done.stdout)["refused"], done.returncode) == (1, 0)
        assert next(row for row in _rows(tmp_path) if row["id"] == "r3")["parse_status"] == "empty"
        server.rule = teacher
        before = len(server.requests)
        healed = _ask(run, server, rows, "--json", "--retry-refused")
        assert len(server.requests) - before == 1
    assert json.loads(healed.stdout)["refused"] == 0


def test_self_consistency_asks_only_for_what_is_new(run: Run, rows: str, tmp_path: Path) -> None:
    pytest.importorskip("openai")

    def moody(n: int, request: dict[str, Any]) -> Answer:
        return teacher(n, request) if n % 3 else completion("Hm. The answer is (0).")

    with serving(moody) as server:
        one = _ask(run, server, rows, "--temperature", "0.5", "-n", "4")
        assert one.returncode == 0, one.stderr
        before = len(server.requests)
        done = _ask(
            run, server, rows, "--temperature", "0.5", "--samples", "3", "--json", "-n", "4", "--concurrency", "1"
        )
        assert len(server.requests) - before == 2 * before
        assert server.requests[-1]["temperature"] == 0.5
    assert json.loads(done.stdout)["agreement"] is not None
    assert {row["answers"] for row in _rows(tmp_path)} == {3}


def test_servers_that_know_no_stop_texts(run: Run, rows: str) -> None:
    pytest.importorskip("openai")

    def odd(n: int, request: dict[str, Any]) -> Answer:
        if "stop" in request:
            return fault(400, "no stop here", code="unsupported_parameter", param="stop")
        return teacher(n, request)

    with serving(odd) as server:
        done = _ask(run, server, rows, "--json")
    assert json.loads(done.stdout)["answered"] == COUNT, (
        "requests under way when the first is answered are sent again too"
    )
    assert "accepts no stop texts" in done.stderr


def test_large_orders_need_a_yes(run: Run, rows: str) -> None:
    pytest.importorskip("openai")
    with serving(teacher) as server:
        done = _ask(run, server, rows, "--price-in", "5")
        assert (done.returncode, len(server.requests)) == (2, 0)
        assert "give --yes" in done.stderr
        read = _ask(run, server, rows, "--no-ask", "--json")
        assert json.loads(read.stdout)["missing"] == COUNT


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "train"], "--split 'train' is unknown"),
        (["--template", "nope"], "--template 'nope' is not known"),
        (["--local", "here"], "name the teacher"),
        (["--samples", "2", "--temperature", "0"], "are all the same"),
        (["-o", "."], ".: is no file; name one with --output"),
    ],
)
def test_mistakes(words: list[str], message: str, run: Run, rows: str) -> None:
    with serving(teacher) as server:
        done = _ask(run, server, rows, *words)
        assert not server.requests
    assert done.returncode == 2
    assert message in done.stderr


def test_a_file_that_it_has_not_written_is_kept(run: Run, rows: str, tmp_path: Path) -> None:
    before = (tmp_path / rows).read_bytes()
    (tmp_path / "notes.jsonl").write_text("mine\n")
    with serving(teacher) as server:
        for own, why in ((rows, "is a file of the data"), ("notes.jsonl", "no earlier call of this command wrote it")):
            done = _ask(run, server, rows, "-o", own, "-n", "1")
            assert done.returncode == 2
            assert f"{own}: " in done.stderr
            assert f"{why}; name another file with --output" in done.stderr
        assert not server.requests
    assert (tmp_path / rows).read_bytes() == before
    assert (tmp_path / "notes.jsonl").read_text() == "mine\n"


TEMPLATE = """
marker: "=>"
query: "{input} explain:"
answer: " {rationale} => {label}"
separator: " "
stop: ["buy"]
max_tokens: 6
demonstrations:
  - {input: "the bird is red", rationale: "red", label: "red"}
"""


def test_a_local_teacher(run: Run, tiny_lm: Path, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(TEMPLATE, encoding="utf-8")
    words = ["rationales", "data.name=toy_rationales", "data.world.pool_rows=5", "--template", "t.yaml"]
    words += ["--local", str(tiny_lm), "--device", "cpu", "--batch-size", "2"]
    done = run(*words, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["rows"], report["answered"], report["labelled"]) == (5, 5, 5)
    texts = (tmp_path / report["completions"]).read_text()
    assert len(texts.splitlines()) == 6
    assert json.loads(run(*words, "--json").stdout) == report
    assert (tmp_path / report["completions"]).read_text() == texts
    shown = run("rationales", "data.name=toy_rationales", "--template", "t.yaml", "--show-prompt")
    assert shown.stdout.startswith("the bird is red explain: red => red ")
    assert run("rationales", "--show-template", "--template", "cqa").stdout.startswith("# Questions with five choices")
    sampled = run(*words, "--samples", "2", "--json")
    assert json.loads(sampled.stdout)["samples"] == 2


def test_the_shared_prefix_changes_nothing(tiny_lm: Path) -> None:
    model = LocalLM(str(tiny_lm), "cpu")
    shared = "the bird is red and the cat is blue "
    prompts = [shared + tail for tail in ("and the dog", "the", "a red cat is a bird and")]
    writing = Writing(8, ())
    assert model.prepare(prompts, 8) == [None] * 3
    together = model.answer(prompts, writing, 0)
    for prompt, found in zip(prompts, together, strict=True):
        model.prepare([prompt + " x", prompt], 8)
        model._shared, model._memory = (), None
        assert model.answer([prompt], writing, 0) == [found]


def test_an_encoder_decoder_teacher() -> None:
    model = LocalLM("builtin:toy_t5", "cpu")
    prompts = ["the bird is red and the dog", "the bird is red"]
    model.prepare(prompts, 6)
    assert model._shared
    together = model.answer(prompts, Writing(6, ()), 0)
    model._shared, model._memory = (), None
    assert model.answer(prompts[:1], Writing(6, ()), 0) == together[:1]


def test_prompts_beyond_the_window_are_refused(tiny_lm: Path) -> None:
    model = LocalLM(str(tiny_lm), "cpu")
    fits, too_long = model.prepare(["the bird", "the " * 255], 8)
    assert fits is None
    assert too_long is not None
    assert "exceed the LM's window of 256" in too_long


def test_stop_texts_end_a_batch_early(tiny_lm: Path) -> None:
    model = LocalLM(str(tiny_lm), "cpu")
    model.prepare(["the bird is"], 20)
    whole = model.answer(["the bird is"], Writing(20, ()), 0)[0]
    stop = whole.text.split()[2]
    reply = model.answer(["the bird is"], Writing(20, (stop,)), 0)[0]
    assert reply.text == whole.text[: whole.text.find(stop)]
    assert (reply.completion_tokens or 0) <= 3
    assert reply.finish_reason == "stop"
