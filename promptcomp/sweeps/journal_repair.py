"""Finding and repairing what is wrong with a journal file: torn lines, a lock that nobody holds.

Each check yields (what is wrong, advice where it cannot be repaired now).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from optuna.storages import JournalStorage

from promptcomp.files import write_atomic
from promptcomp.lease import disk_time
from promptcomp.sweeps.journal import WholeLines
from promptcomp.sweeps.storage import DAMAGE, study_name
from promptcomp.sweeps.sweep_directory import SweepDirectory

_HELD = 1.0  # seconds; a writer holds the lock for milliseconds
_OLD = 60.0
_STOP_FIRST = "workers are at work: stop them first, then repair"
_STARTS = (b'{"op_code"', b'{"op_code":')


def check_lock(directory: SweepDirectory, repair: bool, busy: bool) -> Iterator[tuple[str, str]]:
    """The journal's lock, a symbolic link, and what is left of locks that were broken."""
    lock = Path(f"{directory.journal}.lock")
    before = _changed(lock)
    if before is not None:
        if not busy and disk_time(directory.path) - before < _OLD:
            time.sleep(_HELD)
        old = disk_time(directory.path) - before > _OLD
        if _changed(lock) == before and (old or not busy):
            if repair:
                lock.unlink(missing_ok=True)
            yield f"{lock.name}: a lock that nobody holds (its process was killed while writing)", ""
    for left in directory.path.glob(f"{lock.name}*.rename"):
        if repair:
            left.unlink(missing_ok=True)
        yield f"{left.name}: left over from a lock", ""


def _changed(lock: Path) -> float | None:
    try:
        return lock.lstat().st_mtime
    except OSError:
        return None


def check_journal(directory: SweepDirectory, repair: bool, busy: bool) -> Iterator[tuple[str, str]]:
    """The journal's lines, then the journal as a whole."""
    journal = directory.journal
    if not journal.is_file():
        return
    text = journal.read_bytes()
    kept, problems = _whole_lines(text)
    advice = _STOP_FIRST if repair and busy and problems else ""
    for problem in problems:
        yield f"{journal.name}: {problem}", advice
    if advice:
        return
    error = _replay(kept, study_name(directory))
    if error is None:
        if problems and repair:
            _replace(journal, text, kept)
        return
    if repair and not busy:
        _replace(journal, text, b"")
    yield (
        f"{journal.name}: its lines do not follow from each other ({error}); repairing begins a new journal, and "
        "finished runs are taken over when the sweep is started again",
        _STOP_FIRST if repair and busy else "",
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
            problems.append(f"line {number} is torn and another one is glued to it")
        else:
            problems.append(f"line {number} is no entry")
    if tail:
        problems.append(f"the last line is torn ({len(tail)} bytes)")
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
            storage = JournalStorage(WholeLines(copy))
            found = {study.study_name: study._study_id for study in storage.get_all_studies()}
            if text and name not in found:
                return f"the study {name!r} is not in it"
            for identity in found.values():
                storage.get_all_trials(identity, deepcopy=False)
        except DAMAGE as error:
            return f"{type(error).__name__}: {error}"
    return None


def _replace(journal: Path, text: bytes, kept: bytes) -> None:
    """Put the repaired journal in place at once; the damaged one stays beside it."""
    copy = journal.with_name(f"{journal.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    with copy.open("xb") as file:
        file.write(text)
    write_atomic(journal, kept.decode("utf-8"))
