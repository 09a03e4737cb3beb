"""The terminal: what comes from outside (names of files, folders and networks, others' messages) is shown as text.

Nothing in it is markup of ``rich``, an emoji's name or a control sequence.
"""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn
from rich.segment import Segment

from anchored.errors import printable

DEFAULT_COLUMNS = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
"""Columns of a progress bar: what is being done, a bar, the share in per cent."""


class PlainConsole(Console):
    """A console of ``rich`` that takes text for text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is shown, without others' control characters."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text, style, control) if control else Segment(printable(text, keep="\n"), style)


def progress_bar(console: Console, *columns: ProgressColumn, **options: Any) -> Progress:
    """Return a progress bar that is shown on a terminal only."""
    return Progress(*(columns or DEFAULT_COLUMNS), console=console, disable=not console.is_terminal, **options)
