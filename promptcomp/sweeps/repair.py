"""`promptcomp sweep doctor`: what is wrong with a sweep's directory and storage, and its repair."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage

from promptcomp.config import ConfigError, build, dump, read_yaml
from promptcomp.errors import first_line, is_full
from promptcomp.files import write_atomic
from promptcomp.lease import disk_time, is_live
from promptcomp.sweeps.attempts import Attempts
from promptcomp.sweeps.outcomes import abandoned, adopt, is_finished, take_back, title_of
from promptcomp.sweeps.planning import Trial, groups, standing
from promptcomp.sweeps.storage import (
    DAMAGE,
    HolderLock,
    address_of,
    close_storage,
    exclusive,
    journal_at,
    open_storage,
    study_name,
)
from promptcomp.sweeps.study import Sweep, open_sweep
from promptcomp.sweeps.sweep_config import SweepConfig
from promptcomp.sweeps.sweep_directory import SweepDirectory

_PROBE_LINES = 25
"""Of each writer that tries the disk."""


@dataclass(slots=True)
class Finding:
    """Something that is wrong."""

    what: str
    """One sentence."""
    fix: Callable[[], object] | None
    """Puts it right; None: that cannot be done here."""
    advice: str = ""
    """What to do then."""
    repaired: bool = False


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
    directory.check(directory.journal, directory.storage)
    address = address_of(directory, None)
    found: list[Finding] = []

    def look(findings: Iterable[Finding]) -> bool:
        """Note findings and put them right; whether nothing is in the way of a further look."""
        for each in findings:
            if repair and each.fix is not None:
                each.fix()
                each.repaired = True
            found.append(each)
        return all(finding.repaired for finding in found)

    with exclusive(directory, address):
        usable = True
        if address is None:
            look(_lock(directory))
            usable = look(_journal(directory))
        if usable and (address is not None or directory.journal.is_file()):
            usable = look(_config(directory))
        if usable and directory.config.is_file():
            sweep = open_sweep(directory)
            for check in (_version, _zombies, _doubles, _untold, _leases):
                look(check(sweep))
            sweep.close()
    look(_disk(directory))
    return found


def _is_anybody_at_work(directory: SweepDirectory) -> bool:
    files = [*directory.leases.glob("*.json"), *directory.worker_leases.glob("*.json")]
    return any(is_live(path) for path in files)


def _config(directory: SweepDirectory) -> Iterator[Finding]:
    """sweep.yaml: the storage has a copy."""
    try:
        build(SweepConfig, read_yaml(directory.config), source=str(directory.config))
        return
    except ConfigError as error:
        problem = first_line(error)
    storage, name = open_storage(directory, address_of(directory, None)), study_name(directory)
    is_begun = name in {study.study_name for study in storage.get_all_studies()}  # else killed, or full, at its start
    copy: Any = Attempts(storage, name).attribute("config") if is_begun else None
    close_storage(storage)

    def restore() -> None:
        if directory.config.is_file():
            directory.config.replace(directory.config.with_name("sweep.yaml.damaged"))
        write_atomic(directory.config, dump(build(SweepConfig, copy, source="the storage's copy")))

    if isinstance(copy, dict):
        yield Finding(f"sweep.yaml: {problem}; the storage has a copy", restore)
    else:
        advice = "the storage has no copy; give the command that started the sweep again"
        yield Finding(f"sweep.yaml: {problem}", None, advice)


def _version(sweep: Sweep) -> Iterator[Finding]:
    """Optuna: another version may draw other points from the same seed."""
    begun, now = sweep.trials.attribute("optuna"), optuna.__version__
    if begun != now:
        yield Finding(
            f"the sweep was started with optuna {begun}, this is {now}: samplers may draw other points",
            lambda: sweep.trials.set_attribute("optuna", now),
        )


def _zombies(sweep: Sweep) -> Iterator[Finding]:
    """Attempts that count as running and are not."""
    for record in abandoned(sweep):
        yield Finding(
            f"{title_of(record)} ({record.cell}) counts as running, but its process is gone",
            functools.partial(take_back, sweep, record, lambda _: None),
        )


def _doubles(sweep: Sweep) -> Iterator[Finding]:
    """Trials with two results: the first one counts."""
    for attempts in groups(sweep.records()).values():
        over = [record for record in attempts if record.status == "finished"]
        for extra in over[1:]:
            numbers = f"{over[0].number} and {extra.number}"
            yield Finding(
                f"trials {numbers} are both finished runs of {extra.cell}; the first one counts",
                functools.partial(sweep.study_of(extra).ignore, extra.number),
            )


def _untold(sweep: Sweep) -> Iterator[Finding]:
    """Finished runs that the storage does not know of."""
    for attempts in groups(sweep.records()).values():
        record = standing(attempts)
        if record.status == "failed" and record.kind not in ("value", "config") and is_finished(sweep, record):
            run = sweep.directory.path / record.run
            text = f"{run} is finished, but trial {record.number} is not recorded as finished"
            yield Finding(text, functools.partial(_adopt_untold, sweep, record, run))


def _adopt_untold(sweep: Sweep, record: Trial, run: Path) -> None:
    again = replace(record, attempt=record.attempt + 1)
    number = sweep.study_of(record).begin(again, {}, cell=record.cell, worker="doctor", place=sweep.place)
    adopt(sweep, replace(again, number=number), run, 0.0)


def _leases(sweep: Sweep) -> Iterator[Finding]:
    """Leases that nobody keeps any more."""
    for folder in (sweep.directory.leases, sweep.directory.worker_leases):
        dead = [path for path in sorted(folder.glob("*.json")) if not is_live(path)]
        for path in dead:
            yield _left(sweep.directory, path, "a lease of a process that is gone")
        for path in folder.glob(".now-*"):
            yield _left(sweep.directory, path, "left over from a process that was killed")


def _left(directory: SweepDirectory, path: Path, what: str) -> Finding:
    return Finding(f"{path.relative_to(directory.path)}: {what}", functools.partial(path.unlink, missing_ok=True))


def _disk(directory: SweepDirectory) -> Iterator[Finding]:
    """Whether the disk does what a journal needs: links as locks, and appending, tried with two writers."""
    advice = "use a database (--storage postgresql://...), or put the sweep on another disk"
    try:
        with tempfile.TemporaryDirectory(prefix=".probe-", dir=directory.path) as folder:
            problem = _probe(Path(folder) / "journal.log")
    except OSError as error:
        yield Finding(f"{directory.path} cannot be written to ({error.strerror})", None, "free space, or get rights")
        return
    if problem:
        yield Finding(f"the disk of {directory.path} cannot hold a journal: {problem}", None, advice)


def _probe(path: Path) -> str | None:
    def write(name: str) -> None:
        journal = journal_at(path)
        for number in range(_PROBE_LINES):
            journal.append_logs([{name: number}])

    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(write, "ab"))
        lines = list(journal_at(path).read_logs(0))
    except (OSError, ValueError) as error:
        if is_full(error):
            raise
        return f"a symbolic link as a lock, or a line behind others, fails ({first_line(error)})"
    expected = [{name: number} for name in "ab" for number in range(_PROBE_LINES)]
    there = sum(line in lines for line in expected)
    whole = there == len(lines) == len(expected)
    return None if whole else f"of {len(expected)} lines that two writers appended, {there} are there"


_HELD = 1.0  # seconds; a writer holds the lock for milliseconds
_OLD = 60.0
_STOP_FIRST = "workers are running: stop them first, then repair"
_STARTS = (b'{"op_code"', b'{"op_code":')


def _lock(directory: SweepDirectory) -> Iterator[Finding]:
    """The journal's lock."""
    lock, busy = HolderLock(directory.journal), _is_anybody_at_work(directory)
    before = lock.look()
    if before is not None:
        age = disk_time(directory.path) - before[1]
        if not busy and age < _OLD:
            time.sleep(_HELD)
        if lock.look() == before and (age > _OLD or not busy):
            what = "a lock that nobody holds (its process was killed while writing)"
            yield _left(directory, lock.path, what)


def _journal(directory: SweepDirectory) -> Iterator[Finding]:
    """The journal's lines, then the journal as a whole; nothing is put right under a writer."""
    journal = directory.journal
    if not journal.is_file():
        return
    kept, problems = _whole_lines(journal.read_bytes())
    busy, error = _is_anybody_at_work(directory), _replay(kept, study_name(directory))
    fix = None if busy else functools.partial(_replace, journal, kept if error is None else b"")
    advice = _STOP_FIRST if busy else ""
    for problem in problems:
        yield Finding(f"{journal.name}: {problem}", fix, advice)
    if error is not None:
        yield Finding(
            f"{journal.name}: its lines contradict each other ({error}); repairing begins a new journal, and "
            "finished runs are taken over when the sweep is started again",
            fix,
            advice,
        )


def _whole_lines(text: bytes) -> tuple[bytes, list[str]]:
    """The lines that are whole, those glued to a torn one included, and what is wrong with the others."""
    kept, problems = [], []
    lines = text.split(b"\n")
    tail = lines.pop()
    for number, line in enumerate(lines, start=1):
        if _is_entry(line):
            kept.append(line)
            continue
        start = max(line.rfind(mark) for mark in _STARTS)
        if start > 0 and _is_entry(line[start:]):  # the torn line was never confirmed, the one glued to it was
            kept.append(line[start:])
            problems.append(f"line {number} is truncated and joined with the next one")
        else:
            problems.append(f"line {number} is not an entry")
    if tail:
        problems.append(f"the last line is truncated ({len(tail)} bytes)")
    return b"".join(line + b"\n" for line in kept), problems


def _is_entry(line: bytes) -> bool:
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return isinstance(found, dict) and isinstance(found.get("op_code"), int)


def _replay(text: bytes, name: str) -> str | None:
    """Have Optuna read a journal; what it stumbles over."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "journal.log"
        copy.write_bytes(text)
        try:
            storage = JournalStorage(journal_at(copy))
            found = {study.study_name: study._study_id for study in storage.get_all_studies()}
            if text and name not in found:
                return f"the study {name!r} is not in it"
            for identity in found.values():
                storage.get_all_trials(identity, deepcopy=False)
        except DAMAGE as error:
            return f"{type(error).__name__}: {error}"
    return None


def _replace(journal: Path, kept: bytes) -> None:
    """Put the repaired journal in place at once, unless it is there; the damaged one stays beside it."""
    text = journal.read_bytes()
    if text == kept:
        return
    copy = journal.with_name(f"{journal.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    with copy.open("xb") as file:
        file.write(text)
    write_atomic(journal, kept.decode("utf-8"))
