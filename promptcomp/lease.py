"""Leases: a file that names the process that works on something, touched while that process lives.

A trainer keeps one where it is asked to (`fit --lease FILE`, as a sweep does it). On the same machine a lease is as
good as its process; elsewhere it is judged by its age, on the clock of the disk that it is on.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from promptcomp.config import ConfigError
from promptcomp.documents import read_json
from promptcomp.files import write_atomic

GRACE_VARIABLE = "PROMPTCOMP_LEASE_GRACE"
"""Seconds after which an untouched lease of another machine has run out."""
STORAGE_VARIABLE = "PROMPTCOMP_STORAGE"
"""The whole address of a sweep's database, password included: for its workers, and no run gets to know it."""
_GRACE, _NETWORK_GRACE = 60.0, 300.0
_NETWORK_DISKS = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph", "fuse.", "9p", "afs", "panfs")


@dataclass(frozen=True, slots=True)
class Lease:
    """Who is at work."""

    host: str
    pid: int
    born: str
    """When the process was started, in the system's own unit: a pid alone may be another process by now."""
    machine: str
    """Boot and pid namespace: only inside one of them a pid means anything."""
    job: str
    """The cluster's job, or empty."""
    started: str
    """ISO time."""
    note: str = ""
    """What it is at work on, for workers."""

    @property
    def name(self) -> str:
        """host:pid, and the job where there is one."""
        return f"{self.host}:{self.pid}" + (f" (job {self.job})" if self.job else "")

    @property
    def is_here(self) -> bool:
        """Whether its process is one of this machine."""
        return self.host == socket.gethostname() and self.machine == _machine()


def lease_of(pid: int | None = None) -> Lease:
    """A new lease of a process of this machine; None: of this one."""
    pid = os.getpid() if pid is None else pid
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Lease(socket.gethostname(), pid, _born(pid) or "", _machine(), os.environ.get("SLURM_JOB_ID", ""), now)


def write_lease(path: Path, lease: Lease) -> None:
    """Write a lease; its folder is made if needed.

    Raises:
        ConfigError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(asdict(lease)) + "\n")


def read_lease(path: Path) -> Lease | None:
    """The lease in a file; None where there is none (or a damaged one, which is worth as much)."""
    try:
        return Lease(**read_json(path, "lease"))
    except (ConfigError, TypeError):
        return None


def is_live(path: Path, now: float | None = None, grace: float | None = None) -> bool:
    """Whether the process of a lease is still at work.

    Args:
        path: the lease.
        now: time on the disk's clock (`disk_time`), for leases of other machines; None: ask the disk.
        grace: seconds that such a lease lasts untouched; None: as configured.
    """
    lease = read_lease(path)
    if lease is None:
        return False
    if lease.is_here:
        return bool(lease.born) and _born(lease.pid) == lease.born
    try:
        touched = path.stat().st_mtime
    except OSError:
        return False
    now = disk_time(path.parent) if now is None else now
    return now - touched < (grace_of(path.parent) if grace is None else grace)


def is_dead(lease: Lease) -> bool:
    """Whether a lease is of a process of this machine that has ended; False where that cannot be known."""
    return lease.is_here and bool(lease.born) and _born(lease.pid) != lease.born


def disk_time(folder: Path) -> float:
    """The time as the clock of a disk has it: a file server's may differ from this machine's by minutes."""
    probe = folder / f".now-{socket.gethostname()}-{os.getpid()}"
    try:
        probe.touch()
        found = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
    except OSError:
        return time.time()
    return found


def grace_of(folder: Path) -> float:
    """Seconds that an untouched lease lasts: as configured, or by the kind of disk (NFS shows changes late)."""
    chosen = os.environ.get(GRACE_VARIABLE)
    if chosen:
        with contextlib.suppress(ValueError):
            if float(chosen) > 0:
                return float(chosen)
        raise ConfigError(f"{GRACE_VARIABLE}={chosen!r}: expected a number of seconds above 0")
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return _GRACE
    here = folder.resolve()
    mounts = [(Path(parts[1]), parts[2]) for line in lines if len(parts := line.split()) > 2]
    kinds = [(len(mount.parts), kind) for mount, kind in mounts if here.is_relative_to(mount)]
    return _NETWORK_GRACE if kinds and max(kinds)[1].startswith(_NETWORK_DISKS) else _GRACE


class Keeper:
    """Holds a lease of this process, as a context manager: writes it, touches it from a thread, removes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        own, before = lease_of(), read_lease(path)
        # a sweep writes a trial's first lease, and the trial knows nothing of the job around it
        self.lease = replace(own, job=before.job) if before is not None and before.pid == own.pid else own
        self._done = threading.Event()
        self._seconds = min(10.0, grace_of(path.parent) / 6)
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Self:
        write_lease(self.path, self.lease)
        self._thread.start()
        return self

    def note(self, text: str) -> None:
        """Say what this process is at work on now."""
        self.lease = replace(self.lease, note=text)
        write_lease(self.path, self.lease)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._done.wait(self._seconds):
            with contextlib.suppress(OSError):  # a share that is away for a moment, or the folder has been removed
                os.utime(self.path)


@contextlib.contextmanager
def kept(path: Path | None) -> Iterator[None]:
    """Keep a lease for the length of this block, where there is one to keep: the first process of a run does."""
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    if path is None or rank != "0":
        yield
        return
    with Keeper(path):
        yield


def _born(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; "unknown" where there is no /proc; None: no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return "unknown"
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces
    return None if fields[0] in "ZX" else fields[19]


@functools.cache
def _machine() -> str:
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)
