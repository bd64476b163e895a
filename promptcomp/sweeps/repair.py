"""`promptcomp sweep doctor`: what is wrong with a sweep's directory and storage, and putting it right."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna

from promptcomp.config import ConfigError, build, dump, read_yaml
from promptcomp.errors import first_line
from promptcomp.files import write_atomic
from promptcomp.lease import is_live
from promptcomp.sweeps.journal_repair import check_journal, check_lock
from promptcomp.sweeps.planning import Planned, Record, groups, standing
from promptcomp.sweeps.queue import Queue
from promptcomp.sweeps.reaping import abandoned, adopt, is_finished, reap, run_of
from promptcomp.sweeps.storage import address_of, close_storage, exclusive, open_storage, study_name
from promptcomp.sweeps.study import Sweep, open_sweep
from promptcomp.sweeps.sweep_config import SweepConfig
from promptcomp.sweeps.sweep_directory import SweepDirectory

_PROBE_LINES = 50
_PROBE = """
import os, sys, time
lock, target, name, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
for number in range(count):
    deadline = time.monotonic() + 20
    while True:
        try:
            os.symlink(target, lock)
            break
        except FileExistsError:
            if time.monotonic() > deadline:
                sys.exit(3)
            time.sleep(0.0005)
    with open(target, "ab") as file:
        file.write(f"{name} {number}\\n".encode())
        file.flush()
        os.fsync(file.fileno())
    os.unlink(lock)
"""
"""What Optuna's journal asks of a disk, from a process of its own: a symbolic link as a lock, then an append."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong."""

    what: str
    """One sentence."""
    repaired: bool = False
    advice: str = ""
    """What to do where `--repair` cannot."""


def examine(directory: SweepDirectory, repair: bool = False) -> list[Finding]:
    """Look a sweep over.

    Args:
        directory: the sweep's.
        repair: put right what can be; a damaged journal is kept beside the repaired one.

    Returns:
        What was found, repaired or not. After a repair a second look finds nothing.

    Raises:
        ConfigError: no such directory, or a database that does not answer.
    """
    if not directory.path.is_dir():
        raise ConfigError(f"{directory.path}: no such directory")
    address = address_of(directory, None)
    if address is None and not directory.journal.is_file() and not directory.config.is_file():
        raise ConfigError(f"{directory.path} is no sweep: it has neither sweep.yaml nor journal.log")
    found: list[Finding] = []
    with exclusive(directory, address):
        if address is None:
            found += _as_findings(check_lock(directory, repair, _is_anybody_at_work(directory)), repair)
            found += _as_findings(check_journal(directory, repair, _is_anybody_at_work(directory)), repair)
        usable = not _unrepaired(found)
        if usable and (address is not None or directory.journal.is_file()):
            found += _config(directory, repair)
        if usable and directory.config.is_file() and not _unrepaired(found):
            sweep = open_sweep(directory)
            for check in (_version, _zombies, _doubles, _untold, _leases):
                found += check(sweep, repair)
            sweep.close()
    return found + list(_disk(directory))


def _as_findings(lines: Iterator[tuple[str, str]], repair: bool) -> list[Finding]:
    return [Finding(what, repair and not advice, advice) for what, advice in lines]


def _unrepaired(found: list[Finding]) -> bool:
    return any(not finding.repaired for finding in found)


def _is_anybody_at_work(directory: SweepDirectory) -> bool:
    files = [*directory.leases.glob("*.json"), *directory.worker_leases.glob("*.json")]
    return any(is_live(path) for path in files)


def _config(directory: SweepDirectory, repair: bool) -> Iterator[Finding]:
    """sweep.yaml: the storage has a copy."""
    try:
        build(SweepConfig, read_yaml(directory.config), source=str(directory.config))
        return
    except ConfigError as error:
        problem = first_line(error)
    storage = open_storage(directory, address_of(directory, None))
    copy = Queue(storage, study_name(directory)).attribute("config")
    close_storage(storage)
    if not isinstance(copy, dict):
        yield Finding(f"sweep.yaml: {problem}", False, "the storage has no copy; write it again or begin another sweep")
        return
    if repair:
        if directory.config.is_file():
            directory.config.replace(directory.config.with_name("sweep.yaml.damaged"))
        write_atomic(directory.config, dump(build(SweepConfig, copy, source="the storage's copy")))
    yield Finding(f"sweep.yaml: {problem}; the storage has a copy", repair)


def _version(sweep: Sweep, repair: bool) -> Iterator[Finding]:
    """Optuna: another version may draw other points from the same seed."""
    begun = sweep.trials.attribute("optuna")
    if begun != optuna.__version__:
        if repair:
            sweep.trials.set_attribute("optuna", optuna.__version__)
        yield Finding(
            f"the sweep was begun with optuna {begun}, this is {optuna.__version__}: samplers may draw other points",
            repair,
        )


def _zombies(sweep: Sweep, repair: bool) -> Iterator[Finding]:
    """Attempts that count as running and are not."""
    gone = abandoned(sweep)
    if repair:
        reap(sweep, lambda _: None)
    for _, record, is_control in gone:
        kind = "control" if is_control else "trial"
        yield Finding(f"{kind} {record.number} ({record.cell}) counts as running, but its process is gone", repair)


def _doubles(sweep: Sweep, repair: bool) -> Iterator[Finding]:
    """Trials with two results: the first one counts."""
    for queue in (sweep.trials, sweep.controls):
        for attempts in groups(queue.records()).values():
            over = [record for record in attempts if record.state == "complete"]
            for extra in over[1:]:
                if repair:
                    queue.ignore(extra.number)
                yield Finding(
                    f"trials {over[0].number} and {extra.number} are both finished runs of {extra.cell}; "
                    "the first one counts",
                    repair,
                )


def _untold(sweep: Sweep, repair: bool) -> Iterator[Finding]:
    """Finished runs that the storage does not know of."""
    for queue, is_control in ((sweep.trials, False), (sweep.controls, True)):
        for attempts in groups(queue.records()).values():
            record = standing(attempts)
            if record.state not in ("waiting", "fail") or record.kind in ("value", "config"):
                continue
            run = run_of(sweep, record, is_control)
            if is_finished(sweep, record, run, is_control):
                if repair:
                    _adopt_untold(sweep, queue, record, run, is_control)
                yield Finding(f"{run} is finished, but trial {record.number} does not say so", repair)


def _adopt_untold(sweep: Sweep, queue: Queue, record: Record, run: Path, is_control: bool) -> None:
    number = record.number
    if record.state == "fail":
        queue.enqueue(Planned(record.point, record.seed, record.attempt + 1, record.params), record.cell)
        number = max(each.number for each in queue.records() if each.key == record.key)
    queue.take(number, "doctor", sweep.place)
    adopt(sweep, queue, number, run, 0.0, is_control)


def _leases(sweep: Sweep, repair: bool) -> Iterator[Finding]:
    """Leases that nobody keeps any more."""
    directory = sweep.directory
    for path in [*sorted(directory.leases.glob("*.json")), *sorted(directory.worker_leases.glob("*.json"))]:
        if not is_live(path):
            if repair:
                path.unlink(missing_ok=True)
            yield Finding(f"{path.relative_to(directory.path)}: a lease of a process that is gone", repair)
    for path in [*directory.leases.glob(".now-*"), *directory.worker_leases.glob(".now-*")]:
        if repair:
            path.unlink(missing_ok=True)
        yield Finding(f"{path.relative_to(directory.path)}: left over from a process that was killed", repair)


def _disk(directory: SweepDirectory) -> Iterator[Finding]:
    """Whether the disk does what a journal needs, tried with two processes."""
    advice = "use a database (--storage postgresql://...), or put the sweep on another disk"
    try:
        with tempfile.TemporaryDirectory(prefix=".probe-", dir=directory.path) as folder:
            problem = _probe(Path(folder))
    except OSError as error:
        yield Finding(f"{directory.path} cannot be written to ({error.strerror})", False, "free space or rights")
        return
    if problem:
        yield Finding(f"the disk of {directory.path} is unfit for a journal: {problem}", False, advice)


def _probe(folder: Path) -> str | None:
    target = folder / "lines"
    words = [sys.executable, "-I", "-S", "-c", _PROBE, str(folder / "lock"), str(target)]
    both = [
        subprocess.Popen([*words, name, str(_PROBE_LINES)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name in ("a", "b")
    ]
    codes = [process.wait() for process in both]
    if any(codes):
        return f"a symbolic link does not work as a lock (exit codes {codes})"
    lines = target.read_text(encoding="utf-8").splitlines()
    expected = {f"{name} {number}" for name in ("a", "b") for number in range(_PROBE_LINES)}
    if set(lines) != expected or len(lines) != len(expected):
        return f"of {len(expected)} lines that two processes appended, {len(set(lines) & expected)} are there"
    return None
