"""Runs through a real SLURM: several tasks and nodes, warnings, requeueing; equal to runs that nobody disturbed."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch

from promptcomp.cluster.profile import SlurmProfile
from promptcomp.cluster.submit import Job, submit
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Call, wait_for

TINY = (
    "--method", "step_by_step", "data.train_count=60", "data.world.dev_rows=16", "data.world.test_rows=16",
    "trainer.max_steps=60", "trainer.batch_size=4", "trainer.eval_every=20", "trainer.checkpoint_every=10",
    "trainer.threads=1", "trainer.accelerator=cpu", "evaluation.measure_cost=false",
    "evaluation.bootstrap_resamples=100", "evaluation.rationales=false",
)  # fmt: skip
# the nodes have no names in DNS; a real cluster needs none of this
LOOPBACK = (
    "slurm.environment.GLOO_SOCKET_IFNAME=lo", "slurm.environment.MASTER_ADDR=127.0.0.1", "slurm.signal_seconds=30",
)  # fmt: skip


def steps(run: Path) -> list[str]:
    """The steps in metrics.csv."""
    path = run / "metrics.csv"
    return [row["step"] for row in csv.DictReader(path.read_text().splitlines())] if path.is_file() else []


def log(run: Path) -> str:
    """What the job has written."""
    return "".join(path.read_text() for path in (run / "slurm").glob("*.out"))


@pytest.fixture(scope="module")
def runs(cluster: Cluster, program: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain: without SLURM; one: a task, requeued by force; two: two tasks; nodes: two nodes, warned and requeued."""
    folder = tmp_path_factory.mktemp("runs with a space")
    layouts = {"one": (), "two": ("slurm.tasks_per_node=2",), "nodes": ("slurm.nodes=2",)}
    for name, asked in layouts.items():
        program("fit", *TINY, "--run-dir", str(folder / name), *LOOPBACK, *asked, "--slurm")
    number = {name: _number(folder / name) for name in layouts}
    wait_for("training on two nodes", lambda: bool(steps(folder / "nodes")))
    cluster.call("scancel", "--batch", "--signal=USR1", number["nodes"])
    wait_for("a checkpoint", lambda: (folder / "one" / "checkpoints" / "last.ckpt").is_file())
    cluster.call("scontrol", "requeue", number["one"])
    program("fit", *TINY, "--run-dir", str(folder / "plain"))
    for name in layouts:
        own = folder / name / "log.txt"  # its last line comes after results.json
        wait_for(f"the end of {name}\n{log(folder / name)}", lambda: " finished\n" in own.read_text())  # noqa: B023
    return folder


def _number(run: Path) -> str:
    return json.loads((run / "slurm" / "jobs.json").read_text())["jobs"][-1]["id"]


def _same(first: Path, second: Path) -> None:
    weights = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (first, second)
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    assert (first / "metrics.csv").read_bytes() == (second / "metrics.csv").read_bytes()
    assert (first / "predictions.jsonl").read_bytes() == (second / "predictions.jsonl").read_bytes()


def test_warned_job_on_two_nodes_equals_an_undisturbed_one(runs: Path) -> None:
    said = log(runs / "nodes")
    assert "Stopped after step" in said
    assert "requeueing job" in said
    assert "start 2" in said
    assert "start 2" not in log(runs / "two")
    _same(runs / "two", runs / "nodes")


def test_requeued_job_equals_a_run_without_slurm(runs: Path) -> None:
    assert "start 2" in log(runs / "one")
    _same(runs / "plain", runs / "one")


def test_tasks_are_ranks_of_one_run(runs: Path) -> None:
    for name in ("two", "nodes"):
        assert (runs / name / "log.txt").read_text().count(" finished\n") == 1
        assert len(json.loads((runs / name / "environment.json").read_text())["history"]) == 1 + (name == "nodes")


def _worker(folder: Path, body: str) -> str:
    """A stand-in for the interpreter: called as `python -m promptcomp WORDS`."""
    path = folder / "worker.sh"
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_array_requeues_the_element_that_makes_room(cluster: Cluster, tmp_path: Path) -> None:
    # element 0 is warned and leaves with 75, element 1 ends at once, element 2 fails
    body = (
        'n="${@: -1}"; echo "element $n start ${SLURM_RESTART_COUNT:-0} words $*" >>seen; [ "$n" = 1 ] && exit 0\n'
        '[ "$n" = 2 ] && exit 3; [ "${SLURM_RESTART_COUNT:-0}" = 1 ] && exit 0\n'
        "trap 'exit 75' USR1; while :; do sleep 0.2; done"
    )
    profile = SlurmProfile(python=_worker(tmp_path, body), environment={"HOME": "/root"}, signal_seconds=30)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        words = ("sweep", "work", str(tmp_path), "--worker", "{worker}")
        number = submit(Job("a sweep", "workers", tmp_path / "slurm", words, 1, array=3), profile, "default")
    seen = tmp_path / "seen"
    wait_for("element 0", lambda: seen.is_file() and "element 0 start 0" in seen.read_text())
    wait_for("elements 1 and 2", lambda: _states(cluster, number).get(f"{number}_2") == "FAILED")
    cluster.call("scancel", "--batch", "--signal=USR1", f"{number}_0")
    wait_for("the restart", lambda: "element 0 start 1" in seen.read_text())
    wait_for("the end", lambda: _states(cluster, number).get(f"{number}_0") == "COMPLETED")
    assert _states(cluster, number)[f"{number}_1"] == "COMPLETED"
    assert f"-m promptcomp sweep work {tmp_path} --worker 1" in seen.read_text()
    assert seen.read_text().count("element 1") == 1


def _states(cluster: Cluster, number: str) -> dict[str, str]:
    """The states of an array's elements."""
    fields = ("--noheader", "--states=all", f"--jobs={number}", "--array", "--Format=JobArrayID:|,State:|")
    lines = [line.split("|") for line in cluster.call("squeue", *fields).splitlines()]
    return {line[0].strip(): line[1].strip() for line in lines}


def test_cancel_is_final_though_the_tasks_ask_to_go_on(cluster: Cluster, tmp_path: Path) -> None:
    body = "touch up; trap 'exit 75' TERM USR1; while :; do sleep 0.2; done"
    profile = SlurmProfile(python=_worker(tmp_path, body), signal_seconds=30)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        number = submit(Job("stubborn", "worker", tmp_path / "slurm", ("work",), 1, array=1), profile, "default")
    wait_for("the worker", (tmp_path / "up").is_file)
    other = cluster.call("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 60").strip()
    cluster.call("scancel", number)
    wait_for("the end", lambda: _states(cluster, number) == {f"{number}_0": "CANCELLED"})
    assert "it is not restarted" in (tmp_path / "slurm" / f"{number}_0.out").read_text()
    wait_for("the other job alone", lambda: cluster.call("squeue", "-h", "-o", "%i").split() == [other])
    cluster.call("scancel", other)


def test_a_sweep_goes_on_when_one_of_its_workers_is_killed(cluster: Cluster, program: Call, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    words = ("-o", str(sweep), "optim.lr=1e-3,2e-3", "--seeds", "1", "--objective", "exact_match")
    done = program("sweep", *TINY, *words, "--slurm", "--workers", "2", *LOOPBACK, "slurm.signal_seconds=60")
    wait_for("two trials", lambda: len(list(sweep.glob("runs/*/metrics.csv"))) == 2)
    workers = sorted((sweep / "leases" / "workers").glob("*.json"))
    assert len(workers) == 2
    os.kill(json.loads(workers[0].read_text())["pid"], signal.SIGKILL)
    wait_for("the end", lambda: sorted(_states(cluster, done["job"]).values()) == ["COMPLETED", "FAILED"], 240)
    logs = [path.read_text() for path in sweep.glob("runs/*/log.txt")]
    assert [text.count(" finished\n") for text in logs] == [1, 1]
    assert all(trial["status"] == "finished" for trial in program("sweep", "show", str(sweep))["trials"])
