"""Text on a terminal: what comes from files, names and paths is shown as text, whatever it holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from promptcomp.plain import UNSEEN, printable


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
