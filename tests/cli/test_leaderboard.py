"""`promptcomp leaderboard` as a person runs it: a tiny track in real trials, its files, and the board built of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.forks import fork_workers

TINY = (
    "data.world.num_train_tasks=8",
    "data.world.num_test_tasks=8",
    "data.world.num_dev_tasks=4",
    "data.world.num_queries=4",
    "data.num_demonstrations=8",
    "trainer.max_steps=2",
    "trainer.batch_size=2",
    "trainer.eval_every=1",
    "trainer.accelerator=cpu",
    "optim.warmup_steps=0",
    "evaluation.bootstrap_resamples=100",
    "evaluation.measure_cost=false",
)
WORDS = (
    "leaderboard", "demonstrations", *TINY, "--methods", "mend,pool", "--slots", "2", "--bytes", "1/8,1/1000",
    "--rates", "1e-3", "--rivals", "truncate", "--seeds", "2", "-o", "board",
)  # fmt: skip


def test_a_track_of_real_runs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_workers(monkeypatch)
    plan = json.loads(run(*WORDS, "--dry-run", "--json").stdout)
    assert (plan["trials"], plan["finished"]) == (6, 0)
    assert not any(tmp_path.iterdir())
    done = run(*WORDS, "--json", "--workers", "2")
    assert done.returncode == 0, done.stderr
    board, folder = json.loads(done.stdout), tmp_path / "board"
    assert json.loads((folder / "leaderboard.json").read_text()) == board
    found = {line["row"]: line for line in board["slots"][0]["lines"]}
    assert set(found) == {"mend-2", "pool-2", "truncate_tail-2", "shuffled_mend-2", "random_mend-2", "shuffled_pool-2"}
    for line in found.values():
        assert line["seeds"] == 2
        assert line["slots"] == pytest.approx(2)
        assert None not in (line["score"]["value"], line["kl"], line["top1"], line["kv_bytes"])
    assert found["mend-2"]["train_steps"] == 2
    assert found["mend-2"]["train_flops"] > 0
    assert found["mend-2"]["compress_flops"] > 0
    row = json.loads((folder / "rows" / "mend-2" / "1.json").read_text())
    assert (row["seed"], row["rate"], row["dev_metric"], len(row["contexts"]["row"])) == (1, 1e-3, "dev/accuracy", 8)
    assert row["command"].startswith("promptcomp leaderboard demonstrations data.world.num_train_tasks=8")
    wide, narrow = ({line["row"]: line for line in block["lines"]} for block in board["bytes"])
    assert wide["mend-bytes-0.125"]["entered_with"] == "mend-2"
    assert "its smallest, has" in narrow["mend-bytes-0.001"]["note"]
    runs = {path: path.stat().st_mtime_ns for path in (folder / "sweep" / "runs").glob("*/results.json")}
    again = run(*WORDS)
    assert again.returncode == 0
    assert "equal slots: 2 slots" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in runs} == runs
    shutil.rmtree(next((folder / "sweep" / "runs").glob("row_mend*")))
    partly = run(*WORDS)
    assert partly.returncode == 2
    assert "the run of a finished trial is gone; put it back, or remove board/sweep" in partly.stderr
    shutil.rmtree(folder / "sweep")  # the board needs the rows alone
    before = (folder / "leaderboard.md").read_bytes()
    built = run("leaderboard", "build", "board")
    assert built.returncode == 0
    assert (folder / "leaderboard.md").read_bytes() == before
    (folder / "rows" / "pool-2" / "0.json").write_text("{}")
    broken = run("leaderboard", "build", "board")
    assert broken.returncode == 2
    assert "pool-2/0.json: not a row of a leaderboard" in broken.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demonstration"], "did you mean 'demonstrations'"),
        (["demonstrations", "--slots", "4,"], "a value is empty"),
        (["demonstrations", "trainer.max_step=1"], "did you mean 'max_steps'"),
        (["build", "nowhere"], "no rows"),
    ],
)
def test_mistakes_are_found_before_anything_runs(words: list[str], message: str, run: Run, tmp_path: Path) -> None:
    done = run("leaderboard", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not any(tmp_path.iterdir())
