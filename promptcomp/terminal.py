"""Text on a terminal, and tables in a notebook: what comes from files, names and paths is shown as text, whatever it
holds."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from promptcomp.plain import UNSEEN, printable

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


class PlainConsole(Console):
    """A console that takes no markup and no emoji codes from texts and lets no control character of theirs through.

    Args:
        stderr: write to standard error.
    """

    def __init__(self, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A text as it is."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As Rich draws it, without the control characters of `Text` objects."""
        for segment in super().render(renderable, options):
            safe = segment.control or not UNSEEN.search(segment.text)
            yield segment if safe else Segment(printable(segment.text), segment.style)


def plain_table(
    columns: Iterable[str], rows: Iterable[Sequence[str | Text]], right: Container[str] = (), **options: Any
) -> Table:
    """A table without lines; the columns of `right` are aligned there.

    Args:
        columns: their names.
        rows: their cells.
        right: names of columns.
        options: more of Rich's.
    """
    table = Table(**{"box": None, "pad_edge": False, "title_justify": "left", **options})
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left")
    for row in rows:
        table.add_row(*row)
    return table


def open_table(title: str | None = None, left: Iterable[str] = (), right: Iterable[str] = (), **options: Any) -> Table:
    """A table that wastes no column of an 80-column terminal.

    Args:
        title: above it.
        left: its first columns, which are not wrapped, but for the first one where there is no room for all.
        right: the columns after them, aligned on the right and not wrapped.
        options: more of Rich's.
    """
    open_ = {"show_edge": False, "pad_edge": False, "collapse_padding": True, **options}
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, **open_)
    for name in left:
        table.add_column(name, no_wrap=bool(table.columns), overflow="ellipsis" if table.columns else "fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def time_columns(console: Console) -> tuple[ProgressColumn, ...]:
    """The last columns of a bar of progress: how long it has taken, where there is room, and how long it will take."""
    from rich.progress import TextColumn, TimeElapsedColumn, TimeRemainingColumn

    left = TimeRemainingColumn(elapsed_when_finished=False), TextColumn("left")
    return left if console.width <= 80 else (TimeElapsedColumn(), TextColumn("elapsed,"), *left)


def as_text(draw: Callable[[Console], None]) -> str:
    """What a wide console would show."""
    out = io.StringIO()
    draw(PlainConsole(file=out, width=110))
    return out.getvalue().rstrip()


def frame(rows: Iterable[Mapping[str, Any]]) -> Any:
    """A DataFrame; without pandas a list of dictionaries."""
    found = [dict(row) for row in rows]
    if importlib.util.find_spec("pandas") is None:
        return found
    import pandas

    return pandas.DataFrame(found)
