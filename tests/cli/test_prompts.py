"""`promptcomp compress`, `inspect` and `generate`, with the refusals that a person meets."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import promptcomp
from promptcomp.memory import SoftPrompt, file_hash, save_memory
from promptcomp.prompts.prompt_files import AnswerSettings
from tests.cli.conftest import Run
from tests.forks import run_fork
from tests.prompt_runs import save_lm, save_run

TEXT = "cat bench => foo \nangry owl tea => bar \n"


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lm(tmp_path_factory.mktemp("lm") / "gpt2", "gpt2")


@pytest.fixture(scope="module")
def gist_run(lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "gist", lm, {"name": "gist", "num_slots": 2})


@pytest.fixture(scope="module")
def mend_run(lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "mend", lm, {"name": "mend", "num_slots": 4})


@pytest.fixture(scope="module")
def stored(gist_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "prompt.safetensors"
    return promptcomp.compress(gist_run, text=TEXT, device="cpu").save(path)


def feed(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))


def refused(run: Run, *words: str) -> str:
    """The one line that a refusal prints."""
    done = run(*words)
    assert done.returncode == 2, done
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_one_run_compresses_to_several_numbers_of_slots(run: Run, lm: Path, gist_run: Path, tmp_path: Path) -> None:
    several = save_run(tmp_path / "several", lm, {"name": "gist", "num_slots": 4, "budgets": [1, 4]})
    words = ("compress", str(several), "--text", TEXT, "--device", "cpu", "-o")
    for asked, slots in (((), 4), (("--slots", "1"), 1)):
        done = run(*words, str(tmp_path / f"{slots}.safetensors"), *asked, "--json")
        assert json.loads(done.stdout)["slots"] == slots
    assert "11 tokens -> 1 slot (11.0x)" in run("inspect", str(tmp_path / "1.safetensors")).stdout
    output = str(tmp_path / "no.safetensors")
    told = refused(run, *words, output, "--slots", "2")
    assert told == "error: 2 slots were not trained: the run has 1, 4; choose one of them\n"
    assert "9 slots are too many" in refused(run, *words, output, "--slots", "9")
    told = refused(run, "compress", str(gist_run), "--text", TEXT, "-o", output, "--slots", "1")
    assert "the run has 2 alone; method.budgets trains several numbers in one run" in told
    done = run("evaluate", str(several), "evaluation.slots=2")
    assert done.returncode == 2
    assert "evaluation.slots = 2: 2 slots were not trained" in done.stderr


def test_compress_inspect_generate(run: Run, gist_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = run("compress", str(gist_run), "--text", TEXT, "-o", "a.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["slots"], found["tokens"]) == (2, 11)
    assert found["file_bytes"] == (tmp_path / "a.safetensors").stat().st_size
    assert found["kv_bytes"] == 2 * 2 * 2 * 32 * 4  # keys and values, layers, slots, width, bytes
    (tmp_path / "prompt.txt").write_bytes(TEXT.replace("\n", "\r\n").encode("utf-8-sig"))
    assert (
        "11 tokens -> 2 slots" in run("compress", str(gist_run), "--file", "prompt.txt", "-o", "b.safetensors").stdout
    )
    feed(monkeypatch, TEXT.encode())
    assert run("compress", str(gist_run), "--stdin", "-o", "c.safetensors", "--keep-text").returncode == 0
    a, b, c = (load_file(tmp_path / f"{name}.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) and torch.equal(a[name], c[name]) for name in a)

    shown = json.loads(run("inspect", "c.safetensors", "--json").stdout)
    assert shown["text"] == TEXT
    assert shown["next_position"] == 13
    assert shown["kind"] == "KVCache"
    assert json.loads(run("inspect", "a.safetensors", "--json").stdout)["text"] is None
    table = run("inspect", "a.safetensors").stdout
    for part in ("hash verified", "11 tokens -> 2 slots", "gist", "not kept", "num_slots=2"):
        assert part in table

    one = run("generate", "cat tea", "--prompt", "a.safetensors", "--max-new-tokens", "6")
    assert one.returncode == 0, one.stderr
    as_json = json.loads(run("generate", "cat tea", "-p", "a.safetensors", "--max-new-tokens", "6", "--json").stdout)
    (answer,) = as_json["answers"]
    assert one.stdout.strip() == answer["output"] != ""
    assert len(answer["ids"]) <= 6
    assert promptcomp.load_prompt(tmp_path / "a.safetensors").generate("cat tea", max_new_tokens=6) == answer["output"]


def test_many_queries(run: Run, stored: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [{"id": "x", "input": "cat tea"}, {"input": "angry boat leek owl"}, {"id": 3, "input": ""}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ("--prompt", str(stored), "--max-new-tokens", "5")
    done = run("generate", *words, "--queries", "q.jsonl", "-o", "answers.jsonl", "--batch-size", "2")
    assert done.stdout == "3 answers in answers.jsonl\n"
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [answer.get("id") for answer in answers] == ["x", None, 3]
    (tmp_path / "q.txt").write_text("cat tea\n\nangry boat leek owl\n", encoding="utf-8")
    lines = run("generate", *words, "--queries", "q.txt").stdout.splitlines()
    assert [json.loads(line)["ids"] for line in lines] == [answer["ids"] for answer in answers[:2]]
    feed(monkeypatch, b"cat tea\n")
    assert json.loads(run("generate", *words).stdout)["ids"] == answers[0]["ids"]
    assert "exists already" in refused(run, "generate", *words, "--queries", "q.txt", "-o", "answers.jsonl")


def test_another_process_and_a_moved_run(gist_run: Path, stored: Path, run: Run, tmp_path: Path) -> None:
    words = ["generate", "cat tea", "--prompt", str(stored), "--max-new-tokens", "6", "--json"]
    here = json.loads(run(*words).stdout)
    done = run_fork("promptcomp", *words)  # a new Python: tests/unit/test_prompts.py
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == here
    moved = tmp_path / "moved"
    shutil.copytree(gist_run, moved)
    assert json.loads(run(*words, "--model", str(moved)).stdout) == here


def test_a_whole_prompt_for_comparison(run: Run, lm: Path, gist_run: Path, tmp_path: Path) -> None:
    full = save_run(tmp_path / "full", lm, {"name": "full_prompt"})
    file = promptcomp.compress(full, text=TEXT, device="cpu").save(tmp_path / "full.safetensors")
    words = ("generate", "cat tea", "--max-new-tokens", "6", "--json")
    behind_file = json.loads(run(*words, "--prompt", str(file)).stdout)
    assert json.loads(run(*words, "--text", TEXT, "--model", str(full)).stdout) == behind_file
    assert "--model RUN" in refused(run, *words, "--text", TEXT)
    assert json.loads(run(*words, "--text", TEXT, "--model", str(gist_run)).stdout)["answers"]


def test_demonstrations(run: Run, mend_run: Path, tmp_path: Path) -> None:
    rows = [{"input": "cat bench", "output": "foo"}, {"input": "angry owl tea", "output": "bar"}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run("compress", str(mend_run), "--demonstrations", "d.jsonl", "-o", "a.safetensors").returncode == 0
    assert run("compress", str(mend_run), "--text", TEXT, "-o", "b.safetensors").returncode == 0
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert a.keys() == {"embeds", "mask"}
    assert torch.equal(a["embeds"], b["embeds"])
    pairs = promptcomp.compress(mend_run, demonstrations=[(row["input"], row["output"]) for row in rows])
    assert torch.equal(pairs.memory.embeds, a["embeds"])  # type: ignore[union-attr]
    assert "--demonstrations" in refused(run, "compress", str(mend_run), "--file", "d.jsonl", "-o", "c.safetensors")


def test_prompts_that_cannot_be_compressed(run: Run, lm: Path, gist_run: Path, tmp_path: Path) -> None:
    words = ("compress", str(gist_run), "-o", "p.safetensors")
    assert "nothing to compress" in refused(run, *words, "--text", " \n ")
    assert "no prompt" in refused(run, *words)
    assert "give one of" in refused(run, *words, "--text", "a", "--stdin")
    assert "256" in refused(run, *words, "--text", TEXT * 40)
    (tmp_path / "latin").write_bytes("café".encode("latin-1"))
    assert "not UTF-8" in refused(run, *words, "--file", "latin")
    (tmp_path / "wide").write_text("a text", encoding="utf-16")
    assert "wide: not UTF-8 text but UTF-16; save it as UTF-8" in refused(run, *words, "--file", "wide")
    assert "no such file" in refused(run, *words, "--file", "missing")
    assert "no such run" in refused(run, "compress", "nowhere", "--text", "cat", "-o", "p.safetensors")
    assert "does not exist" in refused(run, *words[:3], "no/folder/p.safetensors", "--text", "cat")
    assert "is a folder" in refused(run, *words[:3], ".", "--text", "cat")
    (tmp_path / "p.safetensors").write_text("mine")
    assert "--force" in refused(run, *words, "--text", "cat")
    assert (tmp_path / "p.safetensors").read_text() == "mine"
    assert run(*words, "--text", "cat", "--force").returncode == 0
    nothing = save_run(tmp_path / "nothing", lm, {"name": "no_prompt"})
    assert "nothing to save" in refused(run, "compress", str(nothing), "--text", "cat", "-o", "q.safetensors")
    assert not list(tmp_path.glob("*.partial"))


def rewritten(source: Path, target: Path, *, hashed: bool, **changes: Any) -> str:
    """A copy of a prompt file with other metadata, whose hash fits or not."""
    with safe_open(source, "pt") as file:
        entries = file.metadata()
    header = json.loads(entries["promptcomp"])
    for key, value in changes.items():
        (header if key in header else header["metadata"])[key] = value
    text, tensors = json.dumps(header), load_file(source)
    digest = file_hash(text, tensors) if hashed else entries["sha256"]
    save_file(tensors, target, metadata={"promptcomp": text, "sha256": digest})
    return str(target)


def test_damaged_and_foreign_files(run: Run, stored: Path, tmp_path: Path) -> None:
    raw = stored.read_bytes()

    def message(content: bytes) -> str:
        (tmp_path / "bad.safetensors").write_bytes(content)
        generated = refused(run, "generate", "cat", "--prompt", "bad.safetensors")
        assert generated == refused(run, "inspect", "bad.safetensors")
        return generated

    for length in (0, 5, 100, len(raw) // 2, len(raw) - 1):
        assert "truncated" in message(raw[:length])
    edited = bytearray(raw)
    edited[-1] ^= 1
    assert "edited or damaged" in message(bytes(edited))
    assert "edited or damaged" in message(raw.replace(b"=>", b"->", 1))
    assert "pickle" in message(pickle.dumps({"a": 1}, protocol=4))
    torch.save({"mask": torch.ones(1)}, tmp_path / "torch.pt")
    assert "pickle" in message((tmp_path / "torch.pt").read_bytes())
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "not a memory file" in message((tmp_path / "other.safetensors").read_bytes())
    save_memory(tmp_path / "memory.safetensors", SoftPrompt(torch.zeros(1, 2, 4), torch.ones(1, 2) > 0), {"a": 1})
    assert "not a compressed prompt" in message((tmp_path / "memory.safetensors").read_bytes())
    newer = rewritten(stored, tmp_path / "newer.safetensors", hashed=True, format=2)
    assert "update it" in message(Path(newer).read_bytes())
    assert "no such file" in refused(run, "inspect", "missing.safetensors")
    assert "folder" in refused(run, "inspect", ".")


def test_the_wrong_or_no_lm(run: Run, lm: Path, mend_run: Path, stored: Path, tmp_path: Path) -> None:
    words = ("generate", "cat", "--prompt", str(stored))
    assert "other weights" in refused(run, *words, "--model", str(lm))  # the LM before the run trained it
    assert "other weights" in refused(run, *words, "--model", str(mend_run))
    assert "another family" in refused(run, *words, "--model", str(save_lm(tmp_path / "t5", "t5")))
    other = save_lm(tmp_path / "other", "gpt2")
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["cat"], vocabulary["owl"] = vocabulary["owl"], vocabulary["cat"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert "another tokenizer" in refused(run, *words, "--model", str(other))
    assert "cannot be read" in refused(run, *words, "--model", str(tmp_path / "missing"))
    gone = rewritten(stored, tmp_path / "gone.safetensors", hashed=True, run=str(tmp_path / "gone"))
    assert "is no longer at" in refused(run, "generate", "cat", "--prompt", gone)
    gone = rewritten(
        stored, tmp_path / "gone.safetensors", hashed=True, lm_is_trained=False, lm={"path": str(tmp_path / "gone")}
    )
    assert "is no longer at" in refused(run, "generate", "cat", "--prompt", gone)


def test_options_that_contradict(run: Run, stored: Path, tmp_path: Path) -> None:
    words = ("generate", "--prompt", str(stored))
    assert "--prompt" in refused(run, "generate", "cat")
    assert "not both" in refused(run, *words, "cat", "--queries", "q.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    assert "no query" in refused(run, *words, "--queries", "empty.txt")
    (tmp_path / "bad.jsonl").write_text('{"input": 3}\n')
    assert "bad.jsonl:1" in refused(run, *words, "--queries", "bad.jsonl")
    assert "positions" in refused(run, *words, "cat", "--max-new-tokens", "300")
    assert "top_p" in refused(run, *words, "cat", "--top-p", "0", "--temperature", "1")
    assert "beam" in refused(run, *words, "cat", "--beams", "2", "--temperature", "1")
    assert "temperature must be a finite number" in refused(run, *words, "cat", "--temperature", "inf")
    assert "the seed must be a whole number from" in refused(
        run, *words, "cat", "--seed", "9" * 20, "--temperature", "1"
    )
    assert "--device mps: torch sees no Apple GPU here" in refused(run, *words, "cat", "--device", "mps")


def test_what_no_tokenizer_file_or_window_takes(run: Run, gist_run: Path, stored: Path) -> None:
    half = "cat \udcff"  # what Python makes of bytes that are not UTF-8
    words, generate = ("compress", str(gist_run), "--text"), ("generate", "--prompt", str(stored))
    assert "the prompt is no UTF-8 text (character 5)" in refused(run, *words, half, "-o", "x.safetensors")
    assert "a query is no UTF-8 text (character 5)" in refused(run, *generate, half)
    for rival in ("{name: [evict]}", "[evict]"):
        assert "choose truncate" in refused(run, *words, "cat", "-o", "x.safetensors", "--rival", rival)
    assert "is a device, not a file" in refused(run, *generate, "cat", "-o", "/dev/null", "--force")
    assert "more than the LM's window of 256" in refused(run, *generate, "cat", "--max-new-tokens", "9" * 20)


def test_the_coldest_temperature_takes_the_likeliest_tokens(run: Run, stored: Path) -> None:
    words = ("generate", "cat tea", "--prompt", str(stored), "--max-new-tokens", "6", "--json")
    greedy, cold = run(*words), run(*words, "--temperature", "1e-40")
    assert cold.returncode == 0, cold.stderr
    assert cold.stdout == greedy.stdout


def test_the_snippets_of_the_page(mend_run: Path, lm: Path, tmp_path: Path) -> None:
    """Plain transformers reads the files as docs/compressed_prompts.md says."""
    page = (Path(__file__).parents[2] / "docs" / "compressed_prompts.md").read_text(encoding="utf-8")
    snippets = [part.split("```")[0] for part in page.split("```python\n")[1:] if "from_pretrained" in part]
    assert len(snippets) == 2
    gist = save_run(tmp_path / "gist", lm, {"name": "gist", "num_slots": 2, "train": "none"})
    for run, snippet in zip((gist, mend_run), snippets, strict=True):
        prompt = promptcomp.compress(run, text=TEXT, device="cpu")
        file = prompt.save(tmp_path / f"{run.name}.safetensors")
        filled = snippet.replace('"prompt.safetensors"', repr(str(file))).replace('"MODEL"', repr(str(lm)))
        found: dict[str, Any] = {}
        exec(compile(filled, "snippet", "exec"), found)  # noqa: S102 (our own page)
        (answer,) = prompt.answers(["cat tea"], AnswerSettings(max_new_tokens=20))
        assert tuple(found["answer"]) == answer.ids
