"""Signals that ask a run to make room, and who starts the processes of a run."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from promptcomp.config import build
from promptcomp.errors import ConfigError
from promptcomp.experiment import TrainerConfig
from promptcomp.run.callbacks import SaveBetweenSteps
from promptcomp.run.processes import cluster_environment, device_count, started_by_srun, started_rank
from promptcomp.stopping import StopRequested, StopSignals, is_preemption, stop_signals

TASK = {
    "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_NAME": "x",
}  # fmt: skip
BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "x"}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC")) or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)


def test_signals_are_noted_and_handlers_put_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with StopSignals().installed() as stop:
        assert StopSignals.current() is stop
        with stop_signals() as found:
            assert found is stop
        for _ in range(2):  # a cluster repeats itself
            os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.received == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == before
    assert StopSignals.current() is None


def test_outside_the_main_thread_signals_stay_as_they_are() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    callback = SaveBetweenSteps(Mock(), 1)

    def start() -> object:
        with StopSignals().installed():
            callback.on_train_start(Mock(received_sigterm=None), Mock())
        return signal.getsignal(signal.SIGUSR1)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(start).result() == before


def test_lightnings_handler_does_not_come_back_after_training() -> None:
    before = signal.getsignal(signal.SIGTERM)
    callback = SaveBetweenSteps(Mock(), 1)
    signal.signal(signal.SIGTERM, lambda *_: None)  # Lightning's, which swallows it
    callback.on_train_start(Mock(received_sigterm=None), Mock())
    signal.signal(signal.SIGTERM, before)  # Lightning has ended
    callback.restore()
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_has_nothing_to_save_is_left_at_once() -> None:
    with stop_signals() as stop:
        with stop.leaving_at_once():
            pass
        with pytest.raises(StopRequested), stop.leaving_at_once():
            os.kill(os.getpid(), signal.SIGUSR2)
        with pytest.raises(StopRequested), stop.leaving_at_once():  # it came before
            pytest.fail("began")


def test_sigterm_asks_to_make_room_in_a_job_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_preemption(signal.SIGTERM)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert is_preemption(signal.SIGTERM)
    assert is_preemption(signal.SIGUSR1)
    assert not is_preemption(None)


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, None),
        (BATCH, None),  # a batch script or an interactive shell: what is started by hand there is a run of its own
        ({**BATCH, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({**BATCH, "PROMPTCOMP_LAUNCHER": "slurm"}, 0),
        (TASK, 3),
        ({**TASK, "RANK": "1", "LOCAL_RANK": "1"}, 1),
        ({"LOCAL_RANK": "1"}, 1),
    ],
)
def test_started_rank(variables: dict[str, str], rank: int | None) -> None:
    assert started_rank(variables) == rank
    assert started_by_srun(variables) == (variables.get("SLURM_STEP_NUM_TASKS") == "4" or "slurm" in variables.values())


def _set(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_task_of_srun_is_a_rank_and_nothing_is_requeued_behind_our_back(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, TASK)
    found = cluster_environment()
    assert isinstance(found, SLURMEnvironment)
    assert not found.auto_requeue


def test_a_shell_within_a_job_starts_its_own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, BATCH)
    assert isinstance(cluster_environment(), LightningEnvironment)


def test_torchrun_within_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, {**BATCH, "TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2"})
    assert isinstance(cluster_environment(), TorchElasticEnvironment)


@pytest.mark.parametrize(
    ("devices", "nodes", "said"),
    [(1, 2, "set trainer.devices=2"), (4, 1, "trainer.num_nodes=2"), ("auto", 1, "trainer.num_nodes=2")],
)
def test_tasks_and_configuration_must_agree(
    devices: int | str, nodes: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set(monkeypatch, TASK)
    with pytest.raises(ConfigError, match=f"srun has started 2 .*{said}"):
        device_count(build(TrainerConfig, {"devices": devices, "num_nodes": nodes, "accelerator": "cpu"}))
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ConfigError, match="--ntasks-per-node"):
        cluster_environment()
