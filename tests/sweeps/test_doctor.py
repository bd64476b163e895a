"""What the doctor finds, and that nothing is wrong after its repair."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from promptcomp.config import ConfigError
from promptcomp.errors import NoSpace
from promptcomp.lease import Keeper, lease_of, read_lease, write_lease
from promptcomp.sweeps.repair import examine
from promptcomp.sweeps.study import begin, open_sweep, read_state
from promptcomp.sweeps.sweep_directory import SweepDirectory
from promptcomp.sweeps.views.html_report import write_report
from promptcomp.sweeps.worker import work
from tests.sweeps.helpers import assert_exactly_once, run, statuses, sweep_config

LINE = b'{"op_code":2,"worker_id":"x","study_id":0,"user_attr":{"a":1}}\n'


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep's journal."""
    folder = tmp_path_factory.mktemp("finished") / "s"
    run(sweep_config(), folder)
    return folder


@pytest.fixture
def sweep(finished: Path, tmp_path: Path) -> SweepDirectory:
    """A copy of it."""
    import shutil

    shutil.copytree(finished, tmp_path / "s")
    return SweepDirectory(tmp_path / "s")


def _garbage(sweep: SweepDirectory) -> None:
    lines = sweep.journal.read_bytes().splitlines(keepends=True)
    sweep.journal.write_bytes(b"".join([*lines[:9], b"\0\0\0\0\n", *lines[9:]]))


def _glued(sweep: SweepDirectory) -> None:
    sweep.journal.write_bytes(sweep.journal.read_bytes() + b'{"op_code":2,"wor' + LINE)


def _torn(sweep: SweepDirectory) -> None:
    sweep.journal.write_bytes(sweep.journal.read_bytes() + b'{"op_code":2,"wor')


def _lock(sweep: SweepDirectory) -> None:
    Path(f"{sweep.journal}.lock").symlink_to(sweep.journal)


def _lease(sweep: SweepDirectory) -> None:
    write_lease(sweep.leases / "gone.json", replace(lease_of(), pid=2**22 + 1))


def _no_config(sweep: SweepDirectory) -> None:
    sweep.config.write_text("sampler: [")


def _zombie(sweep: SweepDirectory) -> None:
    begin(sweep_config(seeds=2), sweep, None, 1)
    opened = open_sweep(sweep)
    record = opened.trials.records()[0]
    planned = replace(record, seed=1, attempt=1)
    assert opened.trials.begin(planned, {}, cell="some-cell", worker="vm:1", place=opened.place) == 2


def _other_optuna(sweep: SweepDirectory) -> None:
    open_sweep(sweep).trials.set_attribute("optuna", "4.0.0")


def _not_told(sweep: SweepDirectory) -> None:
    opened = open_sweep(sweep)
    record = opened.trials.records()[0]
    text = sweep.journal.read_text().splitlines(keepends=True)
    last = max(i for i, line in enumerate(text) if f'"trial_id":{record.number},' in line and '"state":1' in line)
    kept = [line for line in text[:last] if not ('"op_code":6' in line and '"trial_id":1,' in line)] + text[last + 1 :]
    sweep.journal.write_text("".join(kept))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_garbage, "line 10 is not an entry"),
        (_glued, "is truncated and joined with the next one"),
        (_torn, "the last line is truncated"),
        (_lock, "a lock that nobody holds"),
        (_lease, "a lease of a process that is gone"),
        (_no_config, "the storage has a copy"),
        (_zombie, "counts as running, but its process is gone"),
        (_other_optuna, "started with optuna 4.0.0"),
        (_not_told, "counts as running"),
    ],
)
def test_findings_and_repair(sweep: SweepDirectory, spoil: Callable[[SweepDirectory], None], words: str) -> None:
    assert examine(sweep) == []
    before = read_state(sweep).trials
    spoil(sweep)
    found = examine(sweep)
    assert any(words in finding.what for finding in found), found
    assert not any(finding.repaired for finding in found)
    repaired = examine(sweep, repair=True)
    assert all(finding.repaired for finding in repaired), repaired
    assert examine(sweep) == []
    after = read_state(sweep)
    assert [trial.values for trial in after.trials[:2]] == [trial.values for trial in before]
    assert statuses(after)["running"] + statuses(after)["stale"] == 0


def _no_operation(sweep: SweepDirectory) -> None:
    sweep.journal.write_bytes(sweep.journal.read_bytes().replace(b'"op_code":6', b'"op_code":77'))


@pytest.mark.parametrize("spoil", [_garbage, _no_operation])
def test_damage_is_said_by_the_reader(sweep: SweepDirectory, spoil: Callable[[SweepDirectory], None]) -> None:
    spoil(sweep)
    with pytest.raises(ConfigError, match=r"is damaged.*promptcomp sweep doctor .* --repair"):
        read_state(sweep)


def test_a_torn_tail_does_not_hurt(sweep: SweepDirectory) -> None:
    """The next write takes it away."""
    _torn(sweep)
    assert_exactly_once(run(sweep_config(seeds=2), sweep.path), 4)
    assert examine(sweep) == []


def test_a_hopeless_journal_is_begun_anew(sweep: SweepDirectory) -> None:
    lines = sweep.journal.read_bytes().splitlines(keepends=True)
    sweep.journal.write_bytes(b"".join(lines[5:]))  # the study itself is gone
    assert any("contradict each other" in finding.what for finding in examine(sweep))
    examine(sweep, repair=True)
    assert list(sweep.path.glob("journal.log.damaged-*"))
    assert_exactly_once(run(sweep_config(), sweep.path), 2)
    assert not list(sweep.path.glob("*/*/repeated.txt"))
    assert examine(sweep) == []


def test_a_sweep_that_was_killed_at_its_start(tmp_path: Path) -> None:
    """Its message names the doctor, who knows what to do."""
    directory = SweepDirectory(tmp_path)
    directory.journal.touch()
    with pytest.raises(ConfigError, match=r"no sweep\.yaml; `promptcomp sweep doctor .* --repair`"):
        read_state(directory)
    found = examine(directory, repair=True)
    assert [(each.repaired, each.advice) for each in found] == [
        (False, "the storage has no copy; give the command that started the sweep again")
    ]
    assert_exactly_once(run(sweep_config(), tmp_path), 2)


def test_a_full_disk_is_said_as_one(sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of the journal is a link, and the message names its place and not what it says."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "what the link says")

    monkeypatch.setattr("promptcomp.sweeps.storage.os.symlink", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*journal\.log\.lock'"):
        begin(sweep_config(seeds=2), sweep, None, 1)
    assert [each.what for each in examine(sweep)] == [f"{sweep.path} cannot be written to (No space left on device)"]
    monkeypatch.setattr("promptcomp.sweeps.views.html_report._pictures", full)
    with pytest.raises(NoSpace, match="report: cannot be written"):
        write_report(read_state(sweep))


def test_a_directory_may_be_renamed(sweep: SweepDirectory) -> None:
    moved = SweepDirectory(sweep.path.rename(sweep.path.with_name("another-name")))
    assert examine(moved) == []
    assert statuses(read_state(moved)) == {"finished": 2}


def test_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no sweep directory"):
        examine(SweepDirectory(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"neither sweep\.yaml nor journal\.log"):
        examine(SweepDirectory(tmp_path))


def test_a_lease_says_who(tmp_path: Path) -> None:
    lease = lease_of()
    write_lease(tmp_path / "a.json", lease)
    assert set(asdict(lease)) == {"host", "pid", "born", "machine", "job", "started", "note"}


def test_a_trial_that_knows_no_job_keeps_that_of_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    write_lease(tmp_path / "a.json", lease_of())
    monkeypatch.delenv("SLURM_JOB_ID")
    with Keeper(tmp_path / "a.json") as keeper:
        keeper.note("at work")
        found = read_lease(tmp_path / "a.json")
    assert found is not None
    assert (found.job, found.note) == ("7", "at work")
    assert Keeper(tmp_path / "b.json").lease.job == ""


def test_no_worker_of_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no sweep directory: it has no sweep\.yaml"):
        work(tmp_path / "none")
    assert not (tmp_path / "none").exists()
