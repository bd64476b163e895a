"""The errors that end a command with a message, in a module of their own so that the command line starts fast."""

import difflib
import shlex
from collections.abc import Iterable
from pathlib import Path


class ConfigError(ValueError):
    """A mistake of the user's, told in one message; the CLI prints it and exits with code 2."""


class RankLost(RuntimeError):
    """Another process of the same run has ended; the CLI prints it and exits with code 1."""


class RunFailed(RuntimeError):
    """A run in a process of its own has ended without results, and has said why; the CLI adds the message, if there is
    one, and exits with `code`."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def command(*words: object) -> str:
    """A call of the program for messages, quoted so that a shell and the program read it as it is meant."""
    return shlex.join(["promptcomp", *(f"./{word}" if _like_an_option(word) else str(word) for word in words)])


def did_you_mean(found: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """The nearest of the known names; where none is near: `otherwise`, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(found, names, n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise or f"known: {', '.join(names) or 'none'}"


def first_line(error: Exception) -> str:
    """The first line with something in it of what an error says; its type where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _like_an_option(word: object) -> bool:
    return isinstance(word, Path) and str(word).startswith("-")
