"""`methods`, `data`, `doctor`, `pretrain` and `fit --dry-run`, as a person or a script calls them."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

import promptcomp
from promptcomp.documents import shipped
from promptcomp.experiment import load
from tests.cli.conftest import Run


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_experiment_is_valid_and_has_a_dry_run(
    name: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)  # this asks a page of its own
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **_: asked.append(words) or [])
    named = load(name, None).method.name in name or name.startswith("paper/")
    assert named or name in ("task_distillation", "bbh_smollm2")  # finetune with the teacher's labels; bounds
    room = "lm.from_scratch={settings: {max_position_embeddings: 8192}}"
    is_made_first = load(name, None).lm.path.startswith(("models/", "smollm2"))
    own = ["lm.path=builtin:toy_decoder", room] if is_made_first else []
    done = run("fit", "--method", name, "--dry-run", "--json", *own)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["estimate"]["total_bytes"] > 0
    assert not any(tmp_path.iterdir())
    assert not asked, "a dry run needs no network"
    if name in PAPERS:
        _has_the_papers_sizes(name, found)


PAPERS = {  # trained parameters, slots
    "paper/mend_gpt2_large_class_to_class": (125_500_928, 100),  # dossier of the paper: small -> large
    "paper/gist_llama_7b": (6_738_415_616 + 4096, 1),
    "paper/gist_flan_t5_xxl": (11_135_332_352 + 4096, 1),
}


def _has_the_papers_sizes(name: str, found: dict[str, Any]) -> None:
    estimate, trainer = found["estimate"], found["config"]["trainer"]
    parts = {part["name"]: part for part in estimate["parts"]}
    assert (sum(part["trained"] for part in parts.values()), estimate["memory_slots"]) == PAPERS[name]
    if "mend" in name:
        assert parts["slots"]["parameters"] == 100 * 768
        assert parts["projection"]["parameters"] == 984_320
        assert parts["lm"]["trained"] == 0
    else:
        rows, new = (384_000, 512) if "llama" in name else (256_000, 128)
        assert trainer["max_steps"] * trainer["batch_size"] == rows
        assert found["config"]["evaluation"]["max_new_tokens"] == new


def test_the_papers_configurations_are_shipped() -> None:
    assert set(PAPERS) <= set(shipped())


def test_a_dry_run_for_people(run: Run) -> None:
    done = run("fit", "--method", "mend", "--dry-run")
    for part in ("num_slots:", "distiller", "slots", "memory of a step", "FLOP"):
        assert part in done.stdout


def test_methods_and_data_are_listed(run: Run) -> None:
    listed = json.loads(run("methods", "--json").stdout)
    assert {"mend", "full_prompt", "no_prompt", "prompt_tuning", "metaicl"} <= {m["name"] for m in listed["methods"]}
    assert "mend" in run("methods").stdout
    assert {"toy_icl", "metaicl", "text"} <= set(json.loads(run("data", "list", "--json").stdout))
    assert "num_demonstrations" in run("data", "list", "toy_icl").stdout


@pytest.mark.parametrize("split", ["train", "dev", "test", "test_hard"])
def test_rows_are_shown_as_the_model_sees_them(run: Run, split: str) -> None:
    (row,) = json.loads(run("data", "show", "--method", "mend", "--split", split, "--json").stdout)
    assert len(row["demonstrations"]) == 24
    assert row["query"].endswith("=>")
    shown = run("data", "show", "--method", "mend", "--split", split).stdout
    assert row["demonstrations"][0].replace("\n", "\\n") in shown


def test_bad_rows_are_found_with_file_and_line(run: Run, tmp_path: Path) -> None:
    rows = [
        '{"task": "a", "input": "x", "output": "yes", "options": ["yes", "no"]}',
        '{"task": "a", "input": "x", "output": "maybe", "options": ["yes", "no"]}',
        "{broken",
        '{"task": "a", "input": "y"}',
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "own.yaml").write_text(
        "method: {name: full_prompt}\nlm: {path: 'builtin:toy_decoder', bos: true}\n"
        "data: {name: table_icl, test: [rows.jsonl]}\n"
    )
    done = run("data", "validate", "--config", "own.yaml")
    assert done.returncode == 1, done.stdout + done.stderr
    for line in (2, 3, 4):
        assert f"rows.jsonl:{line}:" in done.stdout
    assert run("data", "validate", "--method", "mend").returncode == 0


def test_doctor(run: Run) -> None:
    findings = {finding["subject"]: finding for finding in json.loads(run("doctor", "--json").stdout)}
    subjects = {"promptcomp", "python", "packages", "extras", "disk", "cache", "devices", "built-in models"}
    assert subjects <= set(findings)
    assert promptcomp.__version__ in findings["promptcomp"]["detail"]
    assert all(finding["ok"] for finding in findings.values()), findings


def test_doctor_counts_memory_that_caches_files_as_free(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = tmp_path / "meminfo"
    told.write_text("MemFree:          102400 kB\nMemAvailable:    8388608 kB\nCached:  8000000 kB\n")
    monkeypatch.setattr("promptcomp.commands.doctor._MEMORY", told)
    monkeypatch.setitem(sys.modules, "torch", None)
    findings = {finding["subject"]: finding for finding in json.loads(run("doctor", "--json").stdout)}
    assert (findings["memory"]["ok"], findings["memory"]["detail"][:12]) == (True, "8.0 GiB free")


def test_doctor_without_torch(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What it can say it says, and what is missing is one line."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("PROMPTCOMP_CACHE", str(tmp_path / "not" / "there"))
    done = run("doctor", "--json")
    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert "import of torch" in findings["torch"]["detail"]
    assert str(tmp_path) in findings["cache"]["detail"]
    assert findings["cache"]["ok"]
    assert "devices" not in findings


def test_pretrain_makes_a_model_that_fit_takes(run: Run, tmp_path: Path) -> None:
    short = ("steps=2", "batch_size=2", "check_every=2", "data.skill_documents=2", "data.report_documents=2")
    done = run("pretrain", "toy_decoder", *short, "--output", "base", "--json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "base" / "model.safetensors").is_file()
    assert run("pretrain", "toy_decoder", "--output", "base").returncode == 2
    assert run("fit", "--method", "mend", "--dry-run", "lm.path=base").returncode == 0


def test_pretrain_refuses_an_architecture_that_cannot_learn_the_data(run: Run, tmp_path: Path) -> None:
    done = run("pretrain", "toy_decoder", "architecture={model_type: t5, settings: {d_model: 16}}", "--output", "base")
    assert done.returncode == 2
    assert "decoder-only" in done.stderr
    assert not (tmp_path / "base").exists()
