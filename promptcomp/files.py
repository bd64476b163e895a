"""Files: bounded reads, atomic writes, locks. A symbolic link is never written through, only replaced.

What is written here has the permissions that the user's umask gives.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from promptcomp.errors import ConfigError, NoSpace, check_utf8, errno_of, is_full
from promptcomp.plain import not_utf8

if sys.platform != "win32":  # there two processes may get in each other's way
    import fcntl

Place = str | os.PathLike[str]
"""A path, or an object that is one (`Run`)."""
_READABLE = 0o666
_NAME = 120
"""Letters of a name that its temporary file repeats; file systems allow 255 bytes."""
_LOOK = 0.05
"""Seconds between two looks at a lock."""
_TAIL = 16_384
"""Bytes of a log that are read."""
_NO_LINK, _NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)


def read_bounded(path: Path, limit: int, what: str) -> bytes:
    """The bytes of a file.

    Args:
        path: the file; a link to one is followed.
        limit: maximum number of bytes.
        what: what it should be, for the message ("configuration file").

    Raises:
        ConfigError: it is missing, no regular file (a pipe is never waited for), larger than `limit`, or unreadable.
    """
    try:
        check_regular(path, what)
        with open(os.open(path, os.O_RDONLY | _NO_WAIT), "rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such {what}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{_short(path)}: cannot be read ({_reason(error)})") from None
    if len(content) > limit:
        raise ConfigError(f"{path}: is larger than {limit / 2**20:.0f} MiB, too large for a {what}")
    return content


def check_regular(path: Path, what: str) -> None:
    """Before a library opens a file, which may wait for a pipe without end.

    Raises:
        ConfigError: it is there and no regular file.
        OSError: it cannot be looked at.
    """
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind):
        raise ConfigError(f"{path}: is {kind_of(kind)}, not a {what}")


def check_file(path: Path, what: str) -> None:
    """As `check_regular`, of a file that has to be there.

    Raises:
        ConfigError: it is not, or no regular file.
    """
    try:
        check_regular(path, what)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise ConfigError(f"{path}: cannot be read as a {what} ({reason})") from None


def decoded(content: bytes, path: Path | str) -> str:
    """The UTF-8 text of a file, without a byte order mark.

    Raises:
        ConfigError: it is no UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = not_utf8(content, f" (byte 0x{content[error.start]:02x}); save it as UTF-8")
        raise ConfigError(f"{path}, line {line}: {found}") from None


def read_text(path: Path, what: str, limit: int = 2**33) -> str:
    """The text of a file that a run has written, or of a table of answers.

    Args:
        path: the file.
        what: what it should be, for the message ("results file").
        limit: maximum number of bytes.

    Raises:
        ConfigError: the file is missing, unreadable, too large or not UTF-8.
    """
    return decoded(read_bounded(path, limit, what), path)


def is_file_name(name: str) -> bool:
    """Whether a name stays in the folder that it is put into: no path, nothing hidden behind `..`, not too long."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0") and len(name.encode("utf-8", "replace")) <= 255


def kind_of(mode: int) -> str:
    """What something is that is no regular file, in words."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def write_atomic(path: Path, text: str) -> None:
    """Replace the file `path` by `text`; a reader (or a crash at any moment) sees the old file or the new one.

    Args:
        path: the file; a link is replaced, not followed.
        text: what it is to hold.

    Raises:
        ConfigError: the folder is missing, not writable or full. The old file, if any, is untouched.
    """
    try:
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise unwritable(path, error, "; free space or choose another output_dir") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file beside `path` that takes its place when the block ends, flushed; left out if the block raises.

    Args:
        path: the file to be; a link is replaced, not followed.

    Raises:
        OSError: it cannot be made or written, or `path` is something that is no file.
    """
    with contextlib.suppress(FileNotFoundError):
        found = os.lstat(path).st_mode
        if not (stat.S_ISREG(found) or stat.S_ISLNK(found)):
            raise OSError(None, f"it is {kind_of(found)}, not a file", str(path))
    temporary = path.with_name(f".{path.name[:_NAME]}.{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, _READABLE)
    try:
        mode = stat.S_IMODE(os.fstat(handle).st_mode)  # as the umask has it
        os.close(handle)
        yield temporary
        os.chmod(temporary, mode)  # libraries that write whole files themselves make private ones
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except Exception as error:
        if isinstance(error, OSError) or (number := errno_of(error)) is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from None  # a library in Rust has a class of its own
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def follow_umask(path: Path) -> None:
    """Give a file, or all files of a folder, the permissions of the user's umask: safetensors makes private ones."""
    mask = os.umask(0o077)
    os.umask(mask)
    for file in path.rglob("*") if path.is_dir() else (path,):
        if not file.is_symlink() and file.is_file():
            file.chmod(_READABLE & ~mask)


def open_append(path: Path) -> IO[bytes]:
    """Open a file for reading and for adding at its end; it is made if it is not there.

    Raises:
        ConfigError: it is a link or no file, or cannot be written.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _NO_LINK | _NO_WAIT, _READABLE)
        kind = os.fstat(handle).st_mode
    except OSError as error:
        if os.path.islink(path):
            raise ConfigError(f"{path}: is a link, and files are not written through links; remove it") from None
        raise unwritable(path, error) from None
    if not stat.S_ISREG(kind):
        os.close(handle)
        raise ConfigError(f"{path}: is {kind_of(kind)}, not a file")
    return os.fdopen(handle, "ab+")


def check_output(path: Path, force: bool, example: str = "prompt.safetensors") -> None:
    """Find out before the work whether a file can be written.

    Raises:
        ConfigError: says what is in the way.
    """
    if path.suffix != ".html":
        check_utf8(path)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file, for example {path / example}")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: is {kind_of(path.stat().st_mode)}, not a file; name a file")
    if path.exists() and not force:
        raise ConfigError(f"{path}: exists already; replace it with --force, or name another file")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path}: the folder {path.parent} cannot be written to; name another file")


def check_empty(folder: Path, instead: str = "name another folder with --output") -> None:
    """
    Raises:
        ConfigError: a folder that is to be filled holds something already, is none, or has a name that is not UTF-8.
    """
    check_utf8(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; {instead}")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; {instead}")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, whose content is at `path` when the block ends; if the block raises, nothing is there.

    Args:
        path: new, or an empty folder.

    Raises:
        ConfigError: it holds something, or cannot be written; the disk is full.
    """
    check_empty(path)
    is_there = path.is_dir()  # perhaps the root of another disk, onto which nothing can be moved
    temporary = (path if is_there else path.parent) / f".{path.name[:_NAME]}.{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        follow_umask(temporary)
        for each in temporary.iterdir() if is_there else ():
            os.replace(each, path / each.name)
        if not is_there:
            os.replace(temporary, path)
    except Exception as error:
        if is_full(error):
            raise NoSpace(f"{path}: cannot be written ({os.strerror(errno.ENOSPC)})") from None
        if temporary.name in str(getattr(error, "filename", "")):
            raise unwritable(path, error) from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(path: Path, advice: str = "") -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        ConfigError: it cannot be made; the message ends in `advice`.
    """
    check_utf8(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error, advice, "made") from None


def check_no_links(folder: Path, names: tuple[str, ...]) -> None:
    """
    Raises:
        ConfigError: one of the folders `names` inside `folder`, which are to be written into, is a link.
    """
    for name in names:
        if (folder / name).is_symlink():
            raise ConfigError(
                f"{folder / name}: is a link, and files are not written through links; put the folder there, or move"
                f" all of {folder}"
            )


@contextlib.contextmanager
def locked(
    path: Path,
    on_wait: Callable[[], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    required: bool = True,
) -> Iterator[int]:
    """Hold the lock of a file (made if it is not there); the system releases it when the process ends in any way.

    Gives the file's descriptor: a process that inherits it holds the lock too.

    Args:
        path: the file; its content is left alone.
        on_wait: called before waiting for another process; None: do not wait.
        stopped: gives up waiting.
        required: False: go on without a lock on a disk that does not lock at all.

    Raises:
        ConfigError: another process holds the lock and `on_wait` is None, or the file cannot be opened.
        InterruptedError: `stopped` while waiting.
    """
    with open_append(path) as file:
        try:
            if not take_lock(file):
                if on_wait is None:
                    raise ConfigError(f"{path.parent} is in use by another process; wait for it or stop it")
                on_wait()
                while not take_lock(file):
                    if stopped():
                        raise InterruptedError("stopped while waiting for a lock")
                    time.sleep(_LOOK)
        except OSError as error:
            if required or isinstance(error, InterruptedError):
                raise
        yield file.fileno()


def take_lock(file: IO[Any]) -> bool:
    """Lock an open file for this process if nobody else has it; whether it did.

    Raises:
        OSError: the disk does not lock.
    """
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def tail(log: Path, start: int = 0) -> str:
    """The end of what processes have printed to a log; empty where there is none.

    Args:
        log: the file.
        start: bytes that others had written before.
    """
    try:
        check_regular(log, "log")
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - _TAIL))
            return file.read().decode("utf-8", "replace")
    except (OSError, ConfigError):
        return ""


def last_line(log: Path, start: int = 0) -> str:
    """The last line of a log, for people; `start`: see `tail`."""
    lines = [line.strip() for line in tail(log, start).splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was printed"


def cache_folder() -> Path:
    """Where what can be made again is kept: $PROMPTCOMP_CACHE, or promptcomp in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        ConfigError: this user has no home.
    """
    chosen, caches = os.environ.get("PROMPTCOMP_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(chosen or Path(caches or Path.home() / ".cache") / "promptcomp")
    except RuntimeError:
        raise ConfigError("this user has no home to keep a cache in; set PROMPTCOMP_CACHE to a folder") from None


def flush(path: Path) -> None:
    """Make a file (or the names in a folder) last; some file systems cannot sync a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def unwritable(path: Path, error: Exception, advice: str = "", what: str = "written") -> ConfigError:
    """What the system says of a file that cannot be written, as a mistake (or `NoSpace`) to be raised."""
    kind = NoSpace if is_full(error) else ConfigError
    return kind(f"{_short(path)}: cannot be {what} ({_reason(error)}){advice}")


def _reason(error: Exception) -> str:
    number = errno_of(error)
    return (error.strerror if isinstance(error, OSError) else number and os.strerror(number)) or str(error)


def _short(path: Path | str) -> str:
    return str(path) if len(str(path)) < 2 * _NAME else f"{str(path)[:_NAME]}..."
