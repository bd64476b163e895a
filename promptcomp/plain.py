"""Foreign text made safe to show and to keep: no control characters, no credentials, no endless values."""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, what turns the direction of writing, and half surrogate pairs."""
SECRETS = ("password", "passwd", "sslpassword", "token", "access_token", "api_key", "apikey", "key", "secret")
"""Names of values in addresses that nobody may read."""
_USER = re.compile(r"(?<=://)(?!USER@)(?:[^\s/?#@:]*:[^\s@'\"]*|[^\s/?#@]*)@")
_VALUE = re.compile(rf"(?i)(?<![\w.])((?:{'|'.join(SECRETS)})=)[^&\s'\"]+")
_OTHERS = {
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), "UTF-16; save it as UTF-8"),
    **dict.fromkeys((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"), "a compressed file; decompress it first"),
    b"PK": "a ZIP archive or an Excel file; extract it, or save it as CSV",
}
"""What files begin with that are no text, and what they are."""
_LARGEST = 2**64
_PIECES = re.compile(r"\s*(?:`[^`]*`\S*|promptcomp .*|\S+)|\s+")
"""Of a line: a command in quotation marks, one that ends the line, a word; each with the spaces in front of it."""


def printable(text: str) -> str:
    """A text with every character that a terminal would act upon written as an escape, such as `\\x1b`."""
    return UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def trimmed(text: str, sides: object) -> str:
    """A text without the white space at its "left", its "right" or both sides (True); as it is for anything else."""
    text = text.lstrip() if sides is True or sides == "left" else text
    return text.rstrip() if sides is True or sides == "right" else text


def without_credentials(text: str) -> str:
    """A text whose addresses (`scheme://...`) have neither user and password nor secret values (`?password=...`)."""
    return _VALUE.sub(r"\1...", _USER.sub("", text)) if "://" in text else text


def not_utf8(content: bytes, otherwise: str = "") -> str:
    """What bytes are that are no UTF-8, as far as their beginning tells; `otherwise`: what to add where it does not."""
    told = (f" but {what}" for start, what in _OTHERS.items() if content.startswith(start))
    return "not UTF-8 text" + next(told, otherwise)


def shown(value: Any, most: int = 120) -> str:
    """A value as a message shows it: its repr, cut where it is long."""
    if isinstance(value, int) and abs(value) >= _LARGEST:  # Python refuses to write out thousands of digits
        return f"a number of {value.bit_length()} bits"
    text = repr(value[:most] if isinstance(value, str | list) else value)
    return text if len(text) <= most else f"{text[: most - 10]}...{text[-1]}"


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a text; a terminal gets it broken between words, a file as it is, however long its lines are."""
    text = wrapped(text, console.width) if console.is_terminal else text
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def telling(console: Console, text: str) -> Iterator[Callable[[str], None]]:
    """What is being done: one line that changes in a terminal, a line for each elsewhere."""
    if not console.is_terminal:
        yield partial(say, console)
        return
    with console.status(text) as status:
        yield status.update


def wrapped(text: str, width: int) -> str:
    """A text whose lines have at most so many characters. A command, a path or a long word stays in one piece, so that
    it can be copied: the terminal breaks it where it has to."""
    return "\n".join(_wrapped_line(line, width) for line in text.split("\n"))


def _wrapped_line(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    found, indent = [""], line[: len(line) - len(line.lstrip())]
    for piece in _PIECES.findall(line):
        if found[-1].strip() and len(found[-1]) + len(piece.rstrip()) > width:
            found[-1] = found[-1].rstrip()
            found.append(indent + piece.lstrip())
        else:
            found[-1] += piece
    return "\n".join(found)


def continued(command: str, width: int, indent: str = "    ") -> str:
    """A command whose lines have at most so many characters where its words allow it; each but the last ends in `\\`,
    with which a shell reads them as one."""
    words = [shlex.quote(word) for word in shlex.split(command)]
    if len(command) <= width or " ".join(words) != command:  # the other one holds more than words
        return command
    parts: list[str] = []
    for word in words:
        if parts and parts[-1].startswith("-") and " " not in parts[-1]:  # an option and its value
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    found = [parts[0]]
    for part in parts[1:]:
        if len(found[-1]) + len(part) + len(" " + " \\") > width:
            found.append(indent + part)
        else:
            found[-1] += f" {part}"
    return " \\\n".join(found)


def near(path: Path) -> Path:
    """A path as seen from the current folder, where that is shorter."""
    return min(path, Path(os.path.relpath(path)), key=lambda each: len(str(each))) if path.is_absolute() else path


def told_apart(files: Sequence[Path], taken: Iterable[str] = ()) -> list[str]:
    """The shortest ends of paths that tell them apart, and from names that are taken."""
    others = set(taken)
    for length in range(1, max((len(file.parts) for file in files), default=0) + 1):
        names = ["/".join(file.parts[-length:]) for file in files]
        if len({*names}) == len(names) and not others & {*names}:
            return names
    return [str(file) for file in files]


def csv_text(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A table as CSV; None is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()
