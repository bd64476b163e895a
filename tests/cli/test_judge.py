"""`promptcomp judge` as a person runs it, against a real server on loopback."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from promptcomp.chat.client import Message
from promptcomp.chat.local_lm import LocalLM
from promptcomp.chat.session import Writing
from promptcomp.toy.icl_world import toy_tokenizer
from tests.cli.conftest import Done, Run
from tests.judge_server import Answer, JudgeServer, completion, fault, judge, serving, shown

pytest.importorskip("openai")

COUNT = 12


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def _line(split: str, i: int, text: str) -> str:
    rows = {"method": text, "full_prompt": "f" * (i + 2), "no_prompt": ""}
    line = {"split": split, "example": i, "context": i, "instruction": f"{split} {i}", "input": "", "texts": rows}
    return json.dumps({**line, "reference": None}) + "\n"


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    """Run `a` is longer on every second example of `seen` and on all of `unseen`."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lines = [_line("seen", i, "x" * (9 if (name == "a") == (i % 2 == 0) else 4)) for i in range(COUNT)]
        lines += [_line("unseen", i, "x" * (9 if name == "a" else 4)) for i in range(3)]
        (tmp_path / name / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")
    return "a", "b"


def _judge(run: Run, server: JudgeServer, *words: str) -> Done:
    return run("judge", *words, "--model", "m", "--base-url", server.url, "--retries", "0")


def _record(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "a" / "judgements_a.method_vs_b.method.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()[1:]]


def test_win_rates_a_second_time_for_nothing(run: Run, runs: tuple[str, str], tmp_path: Path) -> None:
    with serving() as server:
        done = _judge(run, server, *runs, "--json", "--price-in", "1", "--price-out", "2", "--yes")
        assert done.returncode == 0, done.stderr
        again = _judge(run, server, *runs, "--json", "--price-in", "1", "--price-out", "2")
        assert len(server.requests) == COUNT + 3
        assert server.most_at_once <= 4
    found = json.loads(done.stdout)
    assert "15 calls, about" in done.stderr
    assert found == json.loads(again.stdout)
    assert found == json.loads((tmp_path / "a" / "judgements_a.method_vs_b.method.summary.json").read_text())
    assert found["splits"]["seen"]["win_rate"] == 0.5
    assert found["splits"]["unseen"]["win_rate"] == 1.0
    assert found["splits"]["all splits"]["wins"] == 9
    assert (found["calls"], found["prompt_tokens"], found["models"]) == (15, 1500, ["judge-2026"])
    assert found["cost"] == pytest.approx((1500 * 1 + 150 * 2) / 1e6)
    lines = _record(tmp_path)
    assert {line["swapped"] for line in lines} == {True, False}
    assert all(line["answers"] and line["reason"] == "It is longer." for line in lines)


def test_the_table_and_the_remarks(run: Run, runs: tuple[str, str]) -> None:
    with serving() as server:
        done = _judge(run, server, *runs, "--split", "unseen")
    assert done.returncode == 0
    assert "a:method against b:method, judged by m" in done.stdout
    assert "100.0%" in done.stdout
    assert "judgements_a.method_vs_b.method.jsonl" in done.stdout.replace("\n", "")


def test_rows_identical_answers_and_examples(run: Run, runs: tuple[str, str]) -> None:
    with serving() as server:
        done = _judge(run, server, "a", "a", "--row-b", "full_prompt", "--split", "unseen", "--examples", "2", "--json")
        assert len(server.requests) == 2
        own = _judge(run, server, "a", "a", "--row-b", "full_prompt", "--split", "seen", "--json")
        same = json.loads(own.stdout)["splits"]["seen"]
    assert json.loads(done.stdout)["splits"]["unseen"]["wins"] == 2
    assert (same["identical"], same["count"]) == (0, COUNT)


def test_identical_answers_are_free_ties(run: Run, tmp_path: Path) -> None:
    table = '{"id": 1, "instruction": "i", "input": "", "text": "same"}\n'
    for name in ("p", "q"):
        (tmp_path / f"{name}.jsonl").write_text(table, encoding="utf-8")
    with serving() as server:
        free = _judge(run, server, "p.jsonl", "q.jsonl", "--json")
        assert not server.requests
        of_row = _judge(run, server, "p.jsonl", "q.jsonl", "--row-b", "full_prompt")
        assert (of_row.returncode, "--row-b full_prompt: q.jsonl is a table of answers" in of_row.stderr) == (2, True)
        asked = _judge(run, server, "p.jsonl", "q.jsonl", "--json", "--ask-identical")
        assert len(server.requests) == 1
    assert json.loads(free.stdout)["splits"]["all"]["identical"] == 1
    assert json.loads(asked.stdout)["splits"]["all"]["ties"] == 1


def test_malformed_answers_are_asked_again_counted_and_kept(run: Run, runs: tuple[str, str], tmp_path: Path) -> None:
    def rule(number: int, request: dict[str, Any]) -> Answer:
        task = shown(request)[0]
        if task == "unseen 0" or (task == "unseen 1" and len(request["messages"]) == 2):
            return completion("I like both!", finish="length" if task == "unseen 0" else "stop")
        return judge(number, request)

    with serving(rule) as server:
        done = _judge(run, server, *runs, "--split", "unseen", "--malformed", "tie", "--json")
        asked = server.asked
        dropped = _judge(run, server, *runs, "--split", "unseen")
        assert server.asked == asked == {"unseen 0": 3, "unseen 1": 2, "unseen 2": 1}
        server.rule = lambda *_: fault(500)
        failed = _judge(run, server, *runs, "--split", "unseen", "--retry-malformed")
        server.rule = judge
        healed = _judge(run, server, *runs, "--split", "unseen", "--retry-malformed", "--json")
    found = json.loads(done.stdout)["splits"]["unseen"]
    assert (found["malformed"], found["count"], found["win_rate"]) == (1, 3, pytest.approx(2.5 / 3))
    assert "1 malformed answers (1 of them cut at --max-tokens) were left out" in dropped.stdout.replace("\n", " ")
    assert "0 of 1 judgements were made by this call" in failed.stderr
    assert "the other 1" in failed.stderr
    assert json.loads(healed.stdout)["splits"]["unseen"]["malformed"] == 0
    kept = next(line for line in _record(tmp_path) if line["choice"] is None)
    assert (kept["attempts"], kept["answers"]) == (3, ["I like both!"] * 3)


HTML = Answer(200, b"<html>Sorry</html>", {"Content-Type": "text/html"})


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (fault(500, "boom"), "status 500 (boom)"),
        (fault(429, "slow down"), "status 429 (slow down)"),
        (fault(401, "bad key"), "the key is refused"),
        (HTML, "answers with HTML"),
        (Answer(200, b'{"choices": [{"mes'), "no complete JSON"),
        (Answer(200, b'{"choices": []}'), "without choices"),
        (Answer(200, b"y" * 500, drop=True), "cannot be reached"),
        (Answer(delay=2.0), "no answer within 0.5 s"),
    ],
)
def test_faults_lose_nothing(broken: Answer, words: str, run: Run, runs: tuple[str, str], tmp_path: Path) -> None:
    with serving(lambda n, request: broken if n > 5 else judge(n, request)) as server:
        done = _judge(run, server, *runs, "--timeout", "0.5", "--concurrency", "2")
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert "the same command continues with the other 10" in done.stderr
        assert len(_record(tmp_path)) == 5
        first = server.asked
        server.rule = judge
        done = _judge(run, server, *runs, "--json")
        repeated = [task for task, count in server.asked.items() if count > 1]
    assert done.returncode == 0
    assert json.loads(done.stdout)["splits"]["all splits"]["count"] == COUNT + 3
    assert len(repeated) <= 2, "only what the broken server was asked is asked again"
    assert sum(first.values()) <= 7


def test_a_server_that_is_down(run: Run, runs: tuple[str, str]) -> None:
    with serving() as server:
        pass
    done = _judge(run, server, *runs)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "0 of 15 judgements" in done.stderr


def test_a_refused_example_is_counted_and_a_refused_model_stops(run: Run, runs: tuple[str, str]) -> None:
    def rule(number: int, request: dict[str, Any]) -> Answer:
        return fault(400, "too long") if shown(request)[0] == "seen 0" else judge(number, request)

    with serving(rule) as server:
        done = _judge(run, server, *runs, "--json")
        found = json.loads(done.stdout)["splits"]["seen"]
        server.rule = lambda *_: fault(400, "wrong model")
        everything = _judge(run, server, *runs, "-o", "other.jsonl")
    assert (done.returncode, found["refused"], found["count"]) == (0, 1, COUNT - 1)
    assert everything.returncode == 1
    assert "refuses the request (400: wrong model)" in everything.stderr


def test_another_judge_needs_another_file(run: Run, runs: tuple[str, str]) -> None:
    with serving() as server:
        _judge(run, server, *runs, "--split", "unseen")
        other = run("judge", *runs, "--model", "n", "--base-url", server.url)
        named = run("judge", *runs, "--model", "n", "--base-url", server.url, "-o", "n.jsonl", "--split", "unseen")
    assert other.returncode == 2
    assert "another judge: m, now n" in other.stderr
    assert named.returncode == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "name the judge: either --model NAME"),
        (("--model", "m", "--local", "x"), "name the judge"),
        (("--model", "m"), "set it in the environment variable OPENAI_API_KEY"),
        (("--model", "m", "--price-in", "1"), "15 calls, about"),
        (("--model", "m", "--malformed", "maybe"), "choose drop or tie"),
        (("--model", "m", "--split", "human"), "it has seen, unseen"),
        (("--model", "m", "--prompt", "nowhere.txt"), "nowhere.txt: no such judge prompt"),
        (("--local", "a"), "a: the model cannot be read"),
        (("--local", "builtin:toy_t5"), "cannot be a judge"),
        (("--local", "builtin:toy_decoder", "--device", "tpu"), "choose auto, cpu, cuda"),
    ],
)
def test_mistakes(words: tuple[str, ...], expected: str, run: Run, runs: tuple[str, str]) -> None:
    done = run("judge", *runs, *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("word", "requests"), [("n", 0), ("y", 3)])
def test_a_person_is_asked(
    word: str, requests: int, run: Run, runs: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", _Terminal(f"{word}\n"))
    with serving() as server:
        done = _judge(run, server, *runs, "--split", "unseen", "--price-in", "3", "--json")
    assert (done.returncode, len(server.requests)) == (0, requests)
    assert "3 calls, about" in done.stderr
    assert ("no request was sent" in done.stderr) == (word == "n")
    assert json.loads(done.stdout) if requests else done.stdout.strip() == ""


def test_many_calls_need_a_yes(run: Run, tmp_path: Path) -> None:
    for name in ("p", "q"):
        rows = [{"id": i, "instruction": "i", "input": "", "text": name * i} for i in range(1, 202)]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    with serving() as server:
        done = _judge(run, server, "p.jsonl", "q.jsonl")
    assert (done.returncode, len(server.requests)) == (2, 0)
    assert "201 calls" in done.stderr
    assert "give --yes" in done.stderr


def test_without_the_openai_package(run: Run, runs: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    done = run("judge", *runs, "--model", "m", "--base-url", "http://127.0.0.1:9/v1")
    assert done.returncode == 2
    assert "pip install 'promptcomp[api]'" in done.stderr


@pytest.fixture(scope="module")
def local_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 with room for the judge prompt."""
    folder, tokenizer = tmp_path_factory.mktemp("judge_lm"), toy_tokenizer()
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=1536, n_embd=8, n_layer=1, n_head=1)
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_local_judge_that_knows_nothing(run: Run, runs: tuple[str, str], local_judge: Path, tmp_path: Path) -> None:
    words = ("judge", *runs, "--split", "unseen", "--local", str(local_judge), "--max-tokens", "4", "--attempts", "2")
    done = run(*words, "--batch-size", "2", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["splits"]["unseen"]["malformed"] == 3
    assert found["splits"]["unseen"]["win_rate"] is None
    assert found["judge"] == f"local:{local_judge}"
    lines = _record(tmp_path)
    assert [line["attempts"] for line in lines] == [2, 2, 2]
    again = run(*words, "--json")
    assert json.loads(again.stdout) == found
    assert len(_record(tmp_path)) == 3


def test_a_local_judge_reads_what_transformers_reads(local_judge: Path) -> None:
    model = LocalLM(str(local_judge), "cpu", chat=True)
    first: list[Message] = [{"role": "system", "content": "the bird is red"}, {"role": "user", "content": "the cat"}]
    again: list[Message] = [
        *first,
        {"role": "assistant", "content": "a dog"},
        {"role": "user", "content": "is it blue"},
    ]
    other: list[Message] = [first[0], {"role": "user", "content": "and the dog is a cat"}]
    assert model.prepare([first, other], 6) == [None, None]
    assert model._shared
    for chats in ([first, other], [again], [first, again]):
        for chat, reply in zip(chats, model.answer(chats, Writing(6), 0), strict=True):
            ids = torch.tensor([model._encode(chat)])
            new = model.lm.hf.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
            assert reply.text == model._tokenizer.decode(new, skip_special_tokens=True)
            assert reply.prompt_tokens == ids.shape[1]


def test_a_chat_at_the_end_of_the_window_takes_no_room_from_others(local_judge: Path) -> None:
    """As a reply that is asked for again makes them: alone and beside others the answers are the same."""
    model = LocalLM(str(local_judge), "cpu", chat=True)
    chats: list[list[Message]] = [[{"role": "user", "content": "the cat" + " dog" * n}] for n in (0, 1520, 1600, 1)]
    assert model.prepare(chats, 6)[0] is None
    found = model.answer(chats, Writing(6), 0)
    assert [reply.completion_tokens for reply in found] != [0, 0, 0, 0]
    assert found == [model.answer([chat], Writing(6), 0)[0] for chat in chats]
    assert (found[2].text, found[2].completion_tokens) == ("", 0)


def test_a_local_judge_whose_window_is_too_small(
    run: Run, runs: tuple[str, str], tiny_lm: Path, tmp_path: Path
) -> None:
    done = run("judge", *runs, "--split", "unseen", "--local", str(tiny_lm), "--device", "cpu", "--json")
    assert json.loads(done.stdout)["splits"]["unseen"]["refused"] == 3
    assert "exceed the LM's window of 256" in _record(tmp_path)[0]["error"]


def _start(folder: Path, server: JudgeServer) -> subprocess.Popen[str]:
    words = ["judge", "a", "b", "--model", "m", "--base-url", server.url, "--concurrency", "2"]
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        [sys.executable, "-m", "promptcomp", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for(server: JudgeServer, requests: int) -> None:
    end = time.monotonic() + 60
    while len(server.requests) < requests:
        assert time.monotonic() < end, "the program asks nothing"
        time.sleep(0.01)


def _slowly(number: int, request: dict[str, Any]) -> Answer:
    answer = judge(number, request)
    answer.delay = 0.15
    return answer


def test_kill_in_the_middle_and_continue(runs: tuple[str, str], tmp_path: Path, run: Run) -> None:
    with serving(_slowly) as server:
        process = _start(tmp_path, server)
        _wait_for(server, 7)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = {f"{line['split']} {line['example']}" for line in _record(tmp_path)}
        assert len(kept) >= 4
        server.rule = judge
        done = _judge(run, server, "a", "b", "--json")
        asked = server.asked
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["splits"]["all splits"]["count"] == COUNT + 3
    assert all(asked[task] == 1 for task in kept), "what was judged is not asked again"
    assert sum(asked.values()) <= COUNT + 3 + 3, "only what was under way is asked again"


def test_ctrl_c_keeps_even_what_was_under_way(runs: tuple[str, str], tmp_path: Path, run: Run) -> None:
    with serving(_slowly) as server:
        process = _start(tmp_path, server)
        _wait_for(server, 5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        asked = len(server.requests)
        server.rule = judge
        done = _judge(run, server, "a", "b", "--json")
    assert process.returncode == 130
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    assert asked < COUNT + 3
    assert len(server.requests) == COUNT + 3, "nothing is asked twice"
    assert done.returncode == 0
