"""What can be looked up: keys, sections, experiments; what a shell completes; flags that mean the same everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.main import get_command

from promptcomp import reference
from promptcomp.cli import app
from promptcomp.commands import completing
from promptcomp.config import ConfigError
from promptcomp.documents import parse_yaml, shipped
from promptcomp.experiment import load
from tests.cli.conftest import Run


def commands(group: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that the help shows."""
    for name, each in (get_command(app) if group is None else group).commands.items():
        if hasattr(each, "commands"):
            yield from commands(each, (*words, name))
        elif not each.hidden:
            yield " ".join((*words, name)), each


def test_every_key_and_every_choice_has_a_sentence() -> None:
    found = reference.entries()
    assert not [each.path for each in found.values() if len(each.meaning) < 5]
    assert not [f"{each.path}={name}" for each in found.values() for name, text in each.choices.items() if not text]
    assert not [each.path for each in found.values() if "None" in each.meaning]  # a file says null


@pytest.mark.parametrize(
    ("word", "holds"),
    [
        ("method.mend", ("Li et al. 2024", "num_slots", "mend_metaicl")),
        ("mend", ("method.mend", "kl_weight")),
        ("trainer.select_by", ("one of auto, loss", "loss: that of the right answers", "gist_t5")),
        ("data.table_icl", ("Your own examples", "columns")),
        ("optim.lr", ("= 0.001", "number > 0", "0.002:", "weight_decay")),
        ("optim.lr=1e-4", ("Highest learning rate",)),
        ("evaluation.rivals", ("drop_tokens:", "list of section")),
        ("evict.score", ("snapkv:", "kvzip:")),
        ("method.num_slots", ("method.gist.num_slots = 1", "sweep gist_tokens", "same in")),
        ("sweep.pruning", ("hyperband",)),
        ("slurm.time", ("Time limit",)),
        ("lm", ("path", "required")),
    ],
)
def test_a_word_is_explained(run: Run, monkeypatch: pytest.MonkeyPatch, word: str, holds: tuple[str, ...]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = run("explain", word)
    assert done.returncode == 0, done.stderr
    assert not [text for text in holds if text not in done.stdout], done.stdout


def test_explained_keys_are_data_too(run: Run) -> None:
    (found,) = json.loads(run("explain", "method.mend.num_slots", "--json").stdout)
    assert (found["key"], found["default"], found["type"]) == ("method.num_slots", "100", "whole number > 0")
    assert found["set_by"]["16"] == ["mend", "mend_smollm2"]
    assert "method" in json.loads(run("explain", "--json").stdout)
    (section,) = json.loads(run("methods", "gist", "--json").stdout)
    assert "method.gist.kl_weight" in section["keys"]
    (section,) = json.loads(run("data", "list", "text", "--json").stdout)
    assert section["path"] == "data.text"
    assert json.loads(run("experiments", "mend", "--json").stdout)["config"]["method"]["num_slots"] == 16


def test_a_wrong_word_gets_the_nearest(run: Run) -> None:
    done = run("explain", "trainer.selct_by")
    assert done.returncode == 2
    assert "did you mean trainer.select_by" in done.stderr
    for words in (("methods", "mned"), ("data", "list", "table"), ("experiments", "mned")):
        done = run(*words)
        assert done.returncode == 2
        assert "did you mean" in done.stderr
    assert "`promptcomp distill --help`" in run("explain", "distill").stderr
    assert run("explain", "KV").stdout.startswith("KV\n")


def test_lists_have_a_line_each(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for words, most in (("data list", 16), ("methods", 16), ("experiments", len(shipped()) + 12)):
        lines = run(*words.split()).stdout.splitlines()
        assert len(lines) <= most, "\n".join(lines)


def test_the_reference_page_holds_every_key() -> None:
    page = reference.markdown()
    assert not [e.path for e in reference.entries().values() if f"`{e.path.rpartition('.')[2]}`" not in page and e.key]
    assert page.count("| `attn_implementation` |") == 1  # a section that occurs in several places has its table once


@pytest.mark.parametrize("name", ["mend", "gist_lora_long", "paper/step_by_step_cqa"])
def test_comments_change_nothing(name: str) -> None:
    chosen = load(name, None)
    text = reference.commented(chosen)
    assert parse_yaml(text) == chosen.model_dump(mode="json")
    assert text.count("# ") > 80


def test_a_dry_run_can_carry_comments(run: Run) -> None:
    done = run("fit", "mend", "--dry-run", "--explain")
    assert "# Highest learning rate." in done.stdout
    assert run("fit", "mend", "--explain").returncode == 2


def test_guesses_work_or_name_the_command(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.yaml").write_text(shipped()["mend"].read_text())
    (tmp_path / "sweep.yaml").write_text("{experiment: mend, space: {optim.lr: [0.001, 0.002]}}")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "config.yaml").write_text(shipped()["mend"].read_text())
    (tmp_path / "runs" / "mend-1").mkdir(parents=True)
    (tmp_path / "runs" / "mend-1" / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert load(None, None, ["mend", "seed=3"]).seed == 3
    assert load("mend", None) == load(None, shipped()["mend"]) == load(None, Path("mend")) == load("own.yaml", None)
    done = run("sweep", "own.yaml", "optim.lr=1e-3,2e-3", "--dry-run", "--no-measure")
    assert done.returncode == 0, done.stderr
    for words, advice in {
        "fit loss_weight": "promptcomp sweep loss_weight",
        "fit demonstrations": "promptcomp leaderboard demonstrations",
        "fit toy_t5": "promptcomp pretrain toy_t5",
        "fit sweep.yaml": "promptcomp sweep sweep.yaml",
        "fit done": "promptcomp fit --resume done",
        "fit mned": "did you mean 'mend'?",
        "sweep mend": "no key has several values",
        "evaluate mend": "promptcomp fit mend",
        "compare mend": "promptcomp fit mend",
        "compress mend -o x": "promptcomp fit mend",
        "compare mend-2": "did you mean 'runs/mend-1'?",
        "compare .": "promptcomp sweep show .",
        "evaluate .": "promptcomp sweep show .",
        "fit own.yml": "did you mean 'own.yaml'?",
        "fit optim.lr 5e-5": "name an experiment first",
        "fit mend optim.lr 5e-5": "as one word: optim.lr=5e-5",
        "fit mend optim.lr= 5e-5": "without spaces: optim.lr=5e-5",
        "fit mend gist": "'gist' is another experiment",
        "fit mend steps=3": "did you mean 'trainer.max_steps'?",
        "fit mend data=table_icl": "one of its keys is data.name",
        "fit --lr 0.1": "no dashes: optim.lr=0.1",
        "fit --metod mend": "did you mean --method?",
        "sweep gist_tokens --seed 3": "did you mean --seeds?",
        "sweep lis": "promptcomp sweep --list",
        "mend": "promptcomp fit mend",
        "train mend": "promptcomp fit mend",
        "resume runs/a": "promptcomp fit --resume runs/a",
        "fti mend": "promptcomp fit",
        "help fit": "promptcomp fit --help",
        "data table_icl": "promptcomp data list table_icl",
        "experiments gist_tokens": "promptcomp sweep gist_tokens",
        "compare": "RUNS is missing",
        "compress runs/mend-1": "--output/-o is missing",
        "fit -o": "requires an argument",
    }.items():
        done = run(*words.split())
        assert done.returncode == 2
        assert advice in done.stderr, f"{words}: {done.stderr}"
        assert done.stderr.startswith("error: "), f"{words}: {done.stderr}"


def test_a_mistake_behind_python_m_has_a_sentence_too() -> None:
    words = [sys.executable, "-m", "promptcomp", "mend"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: there is no command 'mend'; did you mean `promptcomp fit mend`?\n"


def test_a_shell_completes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mend-1").mkdir(parents=True)
    (tmp_path / "runs" / "mend-1" / "config.yaml").touch()
    asked = SimpleNamespace(params={"method": "mend"})
    assert completing.experiment_names("men") == ["mend", "mend_chunks", "mend_metaicl", "mend_smollm2", "mend_t5"]
    assert completing.method_names("po") == ["pool"]
    assert completing.run_folders("") == completing.run_folders("runs/m") == ["runs/mend-1"]
    assert completing.words_to_explain("trainer.sel") == ["trainer.select_by"]
    assert "optim." in completing.words_to_explain("o")
    assert completing.overrides(asked, "method.slots") == ["method.slots_in=", "method.slots="]
    assert completing.overrides(asked, "data.world.min_c") == ["data.world.min_classes="]
    assert not completing.overrides(asked, "method.shared_emb")  # gist's
    assert completing.overrides(asked, "optim.schedule=c") == ["optim.schedule=cosine", "optim.schedule=constant"]
    monkeypatch.setenv("COMP_WORDS", "promptcomp\nfit\n-m\nmend\noptim.schedule\n=\nco")
    assert completing.overrides(asked, "co") == ["cosine", "constant"]  # bash ends a word at "="
    monkeypatch.delenv("COMP_WORDS")
    assert "mend" in completing.overrides(SimpleNamespace(params={}), "m")


@pytest.mark.parametrize("width", [80, 100, 200])
def test_help_has_the_terminals_width_and_whole_summaries(
    run: Run, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for words in ((), ("sweep",), ("data",), ("data", "build"), ("models",), ("checkpoint",), ("leaderboard",)):
        lines = run(*words, "--help").stdout.splitlines()
        assert not [line for line in lines if line.rstrip().endswith("...") and not line.startswith("Usage")], lines
        assert max(map(len, lines)) <= width
    assert max(map(len, run("fit", "--help").stdout.splitlines())) > width - 25


def test_flags_mean_the_same_everywhere() -> None:
    same = {"-o": "--output", "-y": "--yes", "-m": "--method", "-c": "--config", "-f": "--format", "-w": "--workers"}
    for name, each in commands():
        options = [set(option.opts) for option in each.params]
        assert any("--json" in names for names in options), name
        for short, long in same.items():
            assert all((short in names) == (long in names) for names in options), f"{name} {short}"


def test_words_and_meanings_are_explained(run: Run) -> None:
    assert "(full prompt - no prompt)" in run("explain", "retained").stdout
    assert json.loads(run("explain", "Slots", "--json").stdout)[0]["type"] == "word"
    assert "method.mend.slots" in run("explain", "slots").stdout
    assert run("explain", "learning_rate").stdout.startswith("optim.lr")
    assert run("explain", "Mend").stdout.startswith("method.mend\n")


def test_a_sweep_is_completed_as_what_it_runs() -> None:
    def completed(*words: str) -> list[str]:
        group = get_command(app).commands["sweep"]  # type: ignore[attr-defined]
        with group.make_context("sweep", list(words[:-1]), resilient_parsing=True) as context:
            return [each.value for each in group.shell_complete(context, words[-1])]

    assert completed("gi") == ["gist_tokens"]
    assert completed("sh") == ["show"]
    assert completed("--dr") == ["--dry-run"]


def test_an_unknown_section_is_named() -> None:
    with pytest.raises(ConfigError, match="lists the sections"):
        reference.find("qqqqqq")
