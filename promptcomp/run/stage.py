"""Progress of a long piece of work: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from promptcomp.plain import say
from promptcomp.terminal import time_columns

_EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


class WorkStage:
    """One part of the work; use as a context manager. What was done before this call is not in the time left. `says`:
    with lines where there is no terminal."""

    def __init__(self, console: Console, name: str, total: int, says: bool = True) -> None:
        columns = (BarColumn(bar_width=20), TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[state]}"))
        shown = {"console": console, "disable": not console.is_terminal}
        self._rich = Progress(TextColumn(f"[bold]{name}"), *columns, *time_columns(console), **shown)  # type: ignore[arg-type]
        self._console, self._name, self._total = console, name, total
        self._says = says and not console.is_terminal
        self._task = self._rich.add_task(name, total=total, state="")
        self._done, self._first = 0, -1
        self._started = self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._rich.stop()

    def at(self, done: int, state: str = "", *, always: bool = False) -> None:
        """So much is done."""
        self._first = done if self._first < 0 else self._first
        self._done, moment = done, time.monotonic()
        self._rich.update(self._task, completed=done, state=state)
        due = always or done == self._total or moment - self._said > _EVERY
        if self._says and due:
            self._said = moment
            rate = (done - self._first) / max(moment - self._started, 1e-9)
            left = f", {(self._total - done) / rate:.0f} s left" if rate and done < self._total else ""
            say(self._console, f"{self._name}: {done}/{self._total}{f', {state}' if state else ''}{left}")

    def more(self, count: int, state: str = "") -> None:
        """So many more are done."""
        self.at(self._done + count, state)
