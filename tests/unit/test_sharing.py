"""Runs and exports work where they are moved to; exports go to a hub (a local fake of its API) and come back."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml

import promptcomp
from promptcomp.config import ConfigError
from promptcomp.exports.card import files_of, of_prompt
from promptcomp.exports.export import export
from promptcomp.prompts.compressing import Compressor
from promptcomp.prompts.prompt_files import load_prompt
from tests.cli.conftest import program
from tests.prompt_runs import save_lm, save_run

TEXT, QUERY, COMMIT = "we like cat . so happy", "the dog again", "c" * 40
GIST = {"name": "gist", "num_slots": 2, "train": "none"}


class FakeHub:
    """Repositories by name: their files, and who may write."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def reply(self, code: int, value: Any = None, content: bytes | None = None) -> None:
                body = json.dumps(value).encode() if content is None else content
                self.send_response(code)
                if content is not None:
                    self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
                    self.send_header("X-Repo-Commit", COMMIT)
                if code == 404:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                if self.headers["Authorization"] != "Bearer hf_right":
                    self.reply(401, {"error": "no"})
                elif self.path == "/api/repos/create":
                    asked = json.loads(body)
                    name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                    private = bool(asked.get("private")) or asked.get("visibility") == "private"
                    hub.private.setdefault(name, private)
                    hub.repositories.setdefault(name, {})
                    self.reply(200, {"url": f"{hub.url}/{name}", "name": name, "id": name})
                elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
                    files = [
                        {**each, "uploadMode": "regular", "shouldIgnore": False} for each in json.loads(body)["files"]
                    ]
                    self.reply(200, {"files": files})
                elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
                    for line in map(json.loads, body.splitlines()):
                        if line["key"] == "file":
                            content = base64.b64decode(line["value"]["content"])
                            hub.repositories[found[1]][line["value"]["path"]] = content
                    address = f"{hub.url}/{found[1]}/commit/{COMMIT}"
                    self.reply(200, {"success": True, "commitOid": COMMIT, "commitUrl": address})
                else:
                    self.reply(200, {})

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
                    files = hub.repositories.get(found[1])
                    if files is None or found[3] not in (None, "main", "v1", COMMIT):
                        self.reply(404, {"error": "Repository not found"})
                    elif found[2] == "tree":
                        rows = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
                        self.reply(200, rows)
                    else:
                        rows = [{"rfilename": name} for name in files]
                        about = {"id": found[1], "sha": COMMIT, "private": hub.private.get(found[1], False)}
                        self.reply(200, {**about, "siblings": rows})
                elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.*)", path):
                    self.reply(200, content=hub.repositories[found[1]][found[2]])
                else:
                    self.reply(404, {"error": "unknown"})

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    hub = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_a_run_and_its_lm_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training data is not needed, and the working directory does not matter."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    monkeypatch.chdir(old)
    save_lm(Path("models/lm"), "llama")
    rows = Path("rows.jsonl")
    rows.write_text('{"instruction": "we like", "input": "cat", "output": "dog"}\n' * 2, encoding="utf-8")
    data = {"name": "instructions", "files": {"train": str(rows), "dev": str(rows)}, "template": "plain"}
    run = save_run(Path("run"), Path("models/lm"), GIST, data=data)
    prompt = promptcomp.compress(run, text=TEXT, device="cpu")
    prompt.save("run/prompt.safetensors")
    expected = prompt.generate(QUERY, max_new_tokens=8)
    monkeypatch.chdir(tmp_path)
    (old / rows).unlink()
    old.rename(new)
    again = promptcomp.compress(new / "run", text=TEXT, device="cpu")
    assert again.generate(QUERY, max_new_tokens=8) == expected
    with pytest.raises(ConfigError, match=r"no longer at .*--model"):
        load_prompt(new / "run" / "prompt.safetensors").generate(QUERY)
    (new / "models" / "lm").rename(new / "lm")  # beside the run: found by its name, known by its hash
    assert load_prompt(new / "run" / "prompt.safetensors").generate(QUERY, max_new_tokens=8) == expected
    named = Compressor.load(new / "run", model=new / "lm", device="cpu").compress(TEXT)
    assert named.generate(QUERY, max_new_tokens=8) == expected


def test_an_export_knows_its_lm(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", save_lm(tmp_path / "lm", "gpt2"), GIST)
    expected = promptcomp.compress(run, text=TEXT, device="cpu").generate(QUERY, max_new_tokens=8)
    export(run, tmp_path / "out", "tensors")
    shutil.rmtree(run)
    (tmp_path / "lm").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"no longer at .*--model"):
        Compressor.load(tmp_path / "out")
    with pytest.raises(ConfigError, match="another LM"):
        Compressor.load(tmp_path / "out", model=save_lm(tmp_path / "other", "gpt2", seed=1), device="cpu")
    found = Compressor.load(tmp_path / "out", model=tmp_path / "moved", device="cpu").compress(TEXT)
    assert found.generate(QUERY, max_new_tokens=8) == expected


def test_a_card(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", Path("builtin:toy_decoder"), GIST)
    results = {"schema": 1, "method": "gist", "family": "decoder", "data": "toy_icl", "lm": "x", "seed": 0}
    results |= {"size": {"memory_slots": 2}}
    split = {"metric": "accuracy", "count": 8, "method": 0.5, "method_ci": [0.25, 0.75], "full_prompt": 0.9}
    split |= {"full_prompt_ci": [0.8, 1.0], "no_prompt": 0.1}
    (run / "results.json").write_text(json.dumps({**results, "splits": {"unseen": split}}), encoding="utf-8")
    history = [{"command": ["promptcomp", "fit", "--method", "gist"]}]
    (run / "environment.json").write_text(json.dumps({"history": history}), encoding="utf-8")
    export(run, tmp_path / "out", "tensors")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "apache-2.0"
    assert head["promptcomp"]["export"] == "tensors"
    assert set(head["promptcomp"]["files"]) == {file.name for file in (tmp_path / "out").iterdir()}
    assert "| unseen | accuracy | 0.500 [0.250, 0.750] | 0.900 [0.800, 1.000] | 0.100 |" in text
    assert "promptcomp fit --method gist" in text
    info = promptcomp.compress(run, text=TEXT, device="cpu").info
    said = "".join(of_prompt(info, ""))
    assert "| unseen | accuracy | 0.500 [0.250, 0.750] |" in said
    assert "on its test data, with 2 slots (mean over contexts):" in said
    (run / "results.json").unlink()
    assert "was not measured" in "".join(of_prompt(info, ""))


def test_push_and_load(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(tmp_path / "run", save_lm(tmp_path / "lm", "gpt2"), GIST)
    expected = promptcomp.compress(run, text=TEXT, device="cpu").generate(QUERY, max_new_tokens=8)
    export(run, tmp_path / "out", "tensors")
    call = program(monkeypatch, capsys, tmp_path)
    asked = call("push", "out", "me/gist")
    assert asked.returncode == 2
    assert "--yes" in asked.stderr
    assert not hub.repositories
    done = call("push", "out", "me/gist", "--private", "--yes")
    assert done.returncode == 0, done.stderr
    assert hub.private["me/gist"]
    assert hub.repositories["me/gist"] == {
        file.name: file.read_bytes() for file in (tmp_path / "out").iterdir() if file.is_file()
    }
    loaded = promptcomp.load_compressor("me/gist", revision="v1", device="cpu")
    assert loaded.compress(TEXT).generate(QUERY, max_new_tokens=8) == expected
    done = call("compress", "me/gist", "--text", TEXT, "-o", "p.safetensors", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert load_prompt(tmp_path / "p.safetensors").generate(QUERY, max_new_tokens=8) == expected
    for words in (("me/nothing",), ("me/gist", "--revision", "v2")):
        done = call("compress", *words, "--text", TEXT, "-o", "q.safetensors")
        assert done.returncode == 2
        assert "repository" in done.stderr
        assert "Traceback" not in done.stderr
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    done = call("push", "out", "me/new", "--yes")
    assert done.returncode == 2
    assert "the upload has failed; either all files are there or none" in done.stderr
    assert "hf auth login" in done.stderr


def test_a_prompt_of_the_hub(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = promptcomp.compress(save_run(tmp_path / "run", save_lm(tmp_path / "lm", "gpt2"), GIST), text=TEXT)
    prompt.save(tmp_path / "p.safetensors")
    call = program(monkeypatch, capsys, tmp_path)
    assert call("export", "p.safetensors", "--to", "tensors", "-o", "out").returncode == 0
    assert call("push", "out", "me/prompt", "--yes").returncode == 0
    wanted = prompt.generate(QUERY)
    for place in (("out",), ("me/prompt",), ("me/prompt", "--revision", "v1")):
        done = call("generate", QUERY, "--prompt", *place, "--device", "cpu")
        assert done.stdout.strip() == wanted, done.stderr
    assert json.loads(call("inspect", "me/prompt", "--json").stdout)["slots"] == 2
    loaded = promptcomp.load_prompt("me/prompt", revision="v1", model=tmp_path / "lm", device="cpu")
    assert loaded.generate(QUERY) == wanted
    done = call("push", "out", "me/prompt", "--yes", "--private")
    assert (done.returncode, "is there already and public" in done.stderr) == (2, True)
    hub.repositories["me/prompt"]["trained.safetensors"] = b""
    assert "from before: trained.safetensors" in call("push", "out", "me/prompt", "--yes").stdout
    hub.repositories["me/gist"] = {"trained.safetensors": b""}
    hub.repositories["me/other"] = {"README.md": b""}
    monkeypatch.delenv("HF_TOKEN")
    for words, said in {
        ("me/nothing",): "cannot be got as a repository",
        ("me/prompt", "--revision", "v2"): "cannot be got as a repository",
        ("out", "--revision", "v1"): "goes with a repository",
        ("me/gist",): "promptcomp compress me/gist",
        ("me/other",): "has no prompt.safetensors",
        ("me/missing.safetensors",): "no such file",  # and no repository
    }.items():
        done = call("generate", QUERY, "--prompt", *words)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
        assert done.stderr.count("\n") == 1
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    done = call("generate", QUERY, "--prompt", "me/new")
    assert (done.returncode, "Connection refused" in done.stderr) == (2, True), done.stderr


def test_what_is_not_pushed(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", save_lm(tmp_path / "lm", "gpt2"), GIST)
    with pytest.raises(ConfigError, match="is no export"):
        files_of(run)
    out = tmp_path / "out"
    export(run, out, "tensors")
    assert sorted(files_of(out)) == sorted(file.name for file in out.iterdir())
    (out / ".env").write_text("KEY=1", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"\.env: is no file of the export"):
        files_of(out)
    (out / ".env").unlink()
    secret = tmp_path / "secret"
    (out / "config.yaml").rename(secret)
    with pytest.raises(ConfigError, match="is not there"):
        files_of(out)
    (out / "config.yaml").symlink_to(secret)
    with pytest.raises(ConfigError, match="leads out"):
        files_of(out)
    (out / "config.yaml").unlink()
    os.mkfifo(out / "config.yaml")  # would be read without end
    with pytest.raises(ConfigError, match="is a pipe"):
        files_of(out)
