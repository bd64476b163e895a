"""Where Optuna keeps a sweep: a journal file in its directory, or a database; and the lock for planning.

The journal is Optuna's own, behind a lock that makes it safe against full disks and killed writers: without it the next
line would be glued to a torn one, and Optuna lose both, and a lock whose holder was killed would last half a minute.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, NoSuchModuleError

from promptcomp.config import ConfigError
from promptcomp.errors import command, first_line
from promptcomp.files import locked, read_text
from promptcomp.lease import STORAGE_VARIABLE, Lease, is_dead, lease_of
from promptcomp.plain import SECRETS, without_credentials
from promptcomp.sweeps.checking import url_of
from promptcomp.sweeps.sweep_directory import SweepDirectory

_GRACE = 30.0  # seconds; Optuna's own
_PAUSE = 0.001, 0.1  # seconds between two looks, at first and at most


class HolderLock(JournalFileSymlinkLock):
    """A symbolic link, as Optuna's own lock is; ours points to nothing and says who holds it.

    A line is in the journal as a whole or not at all: whoever takes the lock cuts off one that a full disk or a kill
    has torn, which nobody was told to be written.

    Args:
        journal: the file that it protects.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self.path, self._journal = Path(self._lock_file), journal

    def acquire(self) -> bool:
        """Wait for the lock; one whose holder is dead, or that has not changed hands for 30 s, is broken.

        Raises:
            OSError: the disk is full or away.
        """
        pause, since, last = _PAUSE[0], time.monotonic(), None
        holder = json.dumps(asdict(lease_of()))
        while True:
            try:
                os.symlink(holder, self.path)
                break
            except FileExistsError:
                found = self.look()
            except OSError as error:  # it names what the link says
                raise OSError(error.errno, error.strerror, str(self.path)) from None
            if found != last:
                last, since = found, time.monotonic()
            if found is not None and (_is_left_behind(found[0]) or time.monotonic() - since > _GRACE):
                if self.look() == found:
                    self.release()
                continue
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE[1])
        try:
            _cut_torn_line(self._journal)
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        """Give it back."""
        self.path.unlink(missing_ok=True)

    def look(self) -> tuple[str, float] | None:
        """Who holds it, and since when on the disk's clock; None: nobody."""
        try:
            return os.readlink(self.path), self.path.lstat().st_mtime
        except OSError:
            return None


def _is_left_behind(holder: str) -> bool:
    """Whether a lock's holder is known to be dead (Optuna's own locks do not say who holds them)."""
    try:
        return is_dead(Lease(**json.loads(holder)))
    except (ValueError, TypeError):
        return False


def _cut_torn_line(journal: Path) -> None:
    with journal.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read() not in (b"\n", b""):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def journal_at(path: Path) -> JournalFileBackend:
    """A journal file, made if there is none."""
    return JournalFileBackend(str(path), HolderLock(path))


PARENT_VARIABLE = "PROMPTCOMP_SWEEP_PARENT"
"""Process id of the `promptcomp sweep` that has started a worker, which ends when that one does."""
DAMAGE = (ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError)
"""What Optuna raises while it replays a journal whose lines are not its own."""

Result = TypeVar("Result")


def address_of(directory: SweepDirectory, storage: str | None) -> URL | None:
    """The database of a sweep; None: its journal file.

    Args:
        directory: the sweep's.
        storage: what the user has given; None: what the sweep was begun with.

    Raises:
        ConfigError: no address of a database, or another one than the sweep was begun with.
    """
    given = url_of(storage) if storage else None
    whole = os.environ.get(STORAGE_VARIABLE)
    with_password = url_of(whole) if whole else None
    kept = directory.storage.is_file()
    before = url_of(read_text(directory.storage, "storage address").strip()) if kept else None
    found = given or before or with_password
    if found is None:
        return None
    if before is None and directory.journal.is_file() and directory.journal.stat().st_size:
        raise ConfigError(
            f"{directory.path} keeps its trials in {directory.journal.name}, so --storage comes too late: leave it "
            "out, or start another sweep with -o"
        )
    if given is not None and before is not None and plain(given) != plain(before):
        raise ConfigError(
            f"{directory.path} keeps its trials in {plain(before)}, not in {plain(given)}; leave --storage out, "
            "or start another sweep with -o"
        )
    if given is not None and _has_secret(given):
        return given
    return with_password if with_password is not None and plain(with_password) == plain(found) else found


def plain(url: URL) -> str:
    """The address without its password, wherever that stands in it."""
    query = {name: value for name, value in url.query.items() if name.lower() not in SECRETS}
    bare = URL.create(url.drivername, url.username, None, url.host, url.port, url.database, query)
    return bare.render_as_string(hide_password=False)


def _has_secret(url: URL) -> bool:
    return url.password is not None or any(name.lower() in SECRETS for name in url.query)


def open_storage(directory: SweepDirectory, address: URL | None) -> BaseStorage:
    """Open (or make) the storage.

    Raises:
        ConfigError: a damaged journal, a missing driver, or a database that does not answer.
    """
    try:
        if address is None:
            return JournalStorage(journal_at(directory.journal))
        return RDBStorage(address.render_as_string(hide_password=False), engine_kwargs={"pool_pre_ping": True})
    except (ImportError, NoSuchModuleError):
        assert address is not None
        raise _no_driver(address) from None
    except DAMAGE as error:
        if address is not None:
            raise
        raise damaged(directory.journal, error) from None


def damaged(path: Path, error: Exception) -> ConfigError:
    """What to say of a journal that Optuna cannot read."""
    return ConfigError(
        f"{path} is damaged ({type(error).__name__}: {_first_line(error)}); "
        f"`{command('sweep', 'doctor', path.parent, '--repair')}` drops the truncated lines and keeps a copy"
    )


def close_storage(storage: BaseStorage) -> None:
    """Give a database's connections back."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


@contextlib.contextmanager
def exclusive(
    directory: SweepDirectory, address: URL | None, stopped: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Hold the sweep's planning lock: a lock on a file, and with a database one there too, for other machines.

    Both are released by the system when their holder dies. Where a disk does not lock at all, or on Windows, two
    workers may begin the same trial; the one with the higher number finds that and leaves it.

    Raises:
        InterruptedError: `stopped` while waiting.
    """
    directory.leases.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        lock = locked(directory.planning_lock, on_wait=lambda: None, stopped=stopped, required=False)
        stack.enter_context(lock)
        if address is not None and address.get_backend_name() == "postgresql":
            try:
                engine = create_engine(address)
            except (ImportError, NoSuchModuleError):
                raise _no_driver(address) from None
            stack.callback(engine.dispose)
            number = int.from_bytes(hashlib.sha256(study_name(directory).encode()).digest()[:7], "big")
            connection = stack.enter_context(engine.connect())  # the lock ends with the connection
            connection.execute(text("SELECT pg_advisory_lock(:number)"), {"number": number})
        yield


def _no_driver(address: URL) -> ConfigError:
    return ConfigError(
        f"the driver of {address.drivername} is not installed; for PostgreSQL: pip install 'promptcomp[postgres]'"
    )


def study_name(directory: SweepDirectory) -> str:
    """Name of a sweep's study: its directory's when it was begun, so that machines with a common database agree."""
    return place_of(directory)[1] or directory.path.resolve().name


def place_of(directory: SweepDirectory) -> tuple[str, str]:
    """Identity of a sweep's directory and name of its study, empty before it is begun."""
    if not directory.place.is_file():
        return "", ""
    identity, _, name = read_text(directory.place, "sweep's identity").strip().partition("\n")
    return identity, name.strip()


def patiently(
    call: Callable[[], Result], say: Callable[[str], None], stopped: Callable[[], bool], wait: float
) -> Result:
    """Call until the database answers: servers are restarted, networks fail.

    Args:
        call: may be called again.
        say: is told once.
        stopped: gives up early.
        wait: most seconds.
    """
    since, pause, told = time.monotonic(), 0.2, False
    while True:
        try:
            return call()
        except (DBAPIError, optuna.exceptions.StorageInternalError) as error:
            if stopped() or time.monotonic() - since > wait:
                raise unreachable(error) from None
            if not told:
                told = True
                say(f"the database does not answer ({_first_line(error)}); trying again for {wait:.0f} s")
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def unreachable(error: Exception) -> ConfigError:
    """What to say of a database that does not answer."""
    return ConfigError(f"the sweep's database does not answer: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return without_credentials(first_line(original))
