"""What comes from outside is shown as text: no escape reaches the terminal, markup and emoji codes are letters."""

from __future__ import annotations

import io

import pytest
from rich.table import Table
from rich.text import Text

from promptcomp.plain import printable, say, shown, without_credentials
from promptcomp.terminal import PlainConsole

EVIL = "\x1b[31m[red]x[/] [/nothing] :smile: \x9b1m \x07 \u202e \ud800 \x7f"


@pytest.mark.parametrize("kind", ["text", "cell", "title", "header", "Text", "rule"])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_foreign_text_is_literal_wherever_it_is_shown(kind: str, is_terminal: bool) -> None:
    out = io.StringIO()
    console = PlainConsole(file=out, width=300, force_terminal=is_terminal, color_system=None)
    table = Table(title=EVIL if kind == "title" else None)
    table.add_column(EVIL if kind == "header" else "x")
    table.add_row(EVIL if kind == "cell" else "y" * 100)
    if kind == "rule":
        console.rule(EVIL)
    else:
        console.print({"text": EVIL, "Text": Text(EVIL)}.get(kind, table))
    found = out.getvalue()
    assert "[red]x[/] [/nothing] :smile:" in found
    assert not set(found) & set("\x1b\x9b\x07\u202e\ud800\x7f")
    assert "\\x1b[31m" in found


def test_printable_keeps_lines_tabs_and_other_scripts() -> None:
    assert printable("a\tb\nß漢\x1b") == "a\tb\nß漢\\x1b"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("two words or more", ["two words", "or more"]),
        ("a `copied command` b", ["a", "`copied command`", "b"]),
        ("Go on: promptcomp fit mend", ["Go on:", "promptcomp fit mend"]),
        ("  in a/path/that/is/long", ["  in", "  a/path/that/is/long"]),
    ],
)
def test_a_terminal_gets_whole_words_and_a_file_whole_lines(text: str, lines: list[str]) -> None:
    for is_terminal in (True, False):
        out = io.StringIO()
        say(PlainConsole(file=out, width=10, force_terminal=is_terminal, color_system=None), text)
        assert out.getvalue().splitlines() == (lines if is_terminal else [text])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://user:to/ken@h.org/x?a=1", "see https://h.org/x?a=1"),
        ("postgresql://u:p w@h", "postgresql://u:p w@h"),
        ("postgresql+psycopg://u:pw@h:1/d?password=pw&x=1", "postgresql+psycopg://h:1/d?password=...&x=1"),
        ("http://token@h/v1", "http://h/v1"),
        ("is written postgresql://USER@HOST/DATABASE", "is written postgresql://USER@HOST/DATABASE"),
        ("http://h/v1/user@x", "http://h/v1/user@x"),
        ("key=value, me@home", "key=value, me@home"),
        ("lm.path=https://a:b@h and https://c:d@h", "lm.path=https://h and https://h"),
    ],
)
def test_credentials_of_addresses_are_left_out(text: str, expected: str) -> None:
    assert without_credentials(text) == expected


def test_long_values_are_cut_in_messages() -> None:
    assert len(shown("x" * 10_000)) <= 121
    assert shown(10**5000) == "a number of 16610 bits"
    assert shown([1, 2]) == "[1, 2]"
