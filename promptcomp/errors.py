"""The errors that end a command with a message, and exit codes; a module of its own so that the command line starts
fast."""

import difflib
import errno
import os
import shlex
from collections.abc import Iterable
from enum import IntEnum
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args, get_type_hints


class Exit(IntEnum):
    """How a command has ended: what a sweep, a job script or a person can go by, whatever was printed.

    Where the system has a number for it (sysexits.h), it is that one. A process that a signal has killed has none.
    """

    FINISHED = 0
    CRASHED = 1
    """An unexpected error, with a traceback, or another process of the same run has ended."""
    MISTAKE = 2
    """A user's mistake."""
    NOT_FINITE = 65
    """A loss that is not finite (EX_DATAERR)."""
    OUT_OF_MEMORY = 71
    """Of a GPU or of the machine, where the system did not kill the process (EX_OSERR)."""
    NO_SPACE = 74
    """The disk, or the user's share of it, is full (EX_IOERR)."""
    PREEMPTED = 75
    """A run that was preempted and can be continued (EX_TEMPFAIL: try again later)."""
    INTERRUPTED = 130
    """A run that a person has stopped and that can be continued (128 + SIGINT)."""


class ConfigError(ValueError):
    """A user's mistake, in one message; the CLI prints it and exits with code 2."""

    exit_code = Exit.MISTAKE


class NoSpace(ConfigError):
    """The disk is full; exit code 74."""

    exit_code = Exit.NO_SPACE


class RankLost(RuntimeError):
    """Another process of the same run has ended; the CLI prints it and exits with the code of that process if it is one
    of `Exit`, otherwise 1."""

    def __init__(self, message: str, code: int = Exit.CRASHED) -> None:
        super().__init__(message)
        self.exit_code = known_code(code)


class RunFailed(RuntimeError):
    """A run in a separate process has ended without results, and has said why; the CLI adds the message, if there is
    one, and exits with `exit_code`."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = known_code(code)


def known_code(code: int) -> Exit:
    """The exit code of a process as one of `Exit`; CRASHED for any other, and for a signal."""
    return Exit(code) if code in set(Exit) else Exit.CRASHED


def errno_of(error: BaseException) -> int | None:
    """The system's number of an error; libraries in Rust (safetensors, tokenizers) have it in their message only."""
    if isinstance(error, OSError):
        return error.errno
    number = str(error).partition("(os error ")[2].partition(")")[0]
    return int(number) if number.isdigit() else None


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk, the user's share of it, or what a file may hold (ulimit -f) is full."""
    return isinstance(error, NoSpace) or errno_of(error) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up: Python's, the system's or torch's (for a CPU it has no class)."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    names = {each.__name__ for each in type(error).__mro__}
    return "OutOfMemoryError" in names or (type(error) is RuntimeError and "DefaultCPUAllocator" in str(error))


def command(*words: object) -> str:
    """A call of the program for messages, quoted so that a shell and the program read it as it is meant."""
    parts = (f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words)
    return shlex.join(["promptcomp", *parts])


def check_place(given: object, what: str) -> str:
    """A path that a program has given, as text.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(given, str | os.PathLike):
        raise ConfigError(f"{what} must be a path, not {type(given).__name__}")
    return str(os.fspath(given))


def check_utf8(path: Path) -> None:
    """
    Raises:
        ConfigError: something is to be written whose name is not UTF-8, which readers of weights and logs cannot open.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{path}: the name is not UTF-8, and weights cannot be read under it; choose another"
        ) from None


def close_matches(word: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known names that are nearest to a word whatever the case, at most `n`, the nearest first."""
    names = {name.lower(): name for name in reversed(list(known))}
    return [names[each] for each in difflib.get_close_matches(word.lower(), names, n, cutoff)]


def did_you_mean(found: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """The nearest of the known names; where none is near: `otherwise`, or all of them."""
    names = list(known)
    near = close_matches(found, names)
    return f"did you mean {near[0]!r}?" if near else otherwise or f"known: {', '.join(names) or 'none'}"


def first_line(error: BaseException) -> str:
    """The first line with something in it of what an error says; its type where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


_KINDS: dict[type, tuple[type, str]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a text"),
    bool: (bool, "True or False"),
}


def check_fields(settings: Any, option: str = "{}") -> None:
    """Make sure that the fields of a frozen dataclass hold what they say, where a command line has not: their types (a
    number of NumPy becomes one of Python), and the limits of typer's options.

    Args:
        settings: With fields of one type of `_KINDS` each, or None.
        option: How a message names one of them, with `{}` for its name.

    Raises:
        ConfigError: names the first that does not.
    """
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value, limits, shown = getattr(settings, name), getattr(hint, "__metadata__", ()), option.format(name)
        kind, *others = get_args(getattr(hint, "__origin__", hint)) or (getattr(hint, "__origin__", hint),)
        if value is None and others:
            continue
        wanted, words = _KINDS[kind]
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{shown} {value!r}: give {words}")
        object.__setattr__(settings, name, kind(value))
        for least, most in ((each.min, each.max) for each in limits):
            if (least is not None and value < least) or (most is not None and value > most):
                raise ConfigError(
                    f"{shown} {value}: give {words} from {least} on" + (f", up to {most}" if most else "")
                )
